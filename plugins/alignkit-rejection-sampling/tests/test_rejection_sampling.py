"""Rejection sampling: who wins, what the pool holds, and what is never learned from."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from alignkit_rejection_sampling import RejectionSampling, best_of, best_of_n_kl, compete, newest_first, winners
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import Batch, ConfigError, DataError, Groups

quick = settings(max_examples=60, deadline=None)
maybe = st.one_of(st.just(math.nan), st.integers(-3, 3).map(float))  # few values: many ties


def row(prompt: str, values: list[float | None], iteration: int | None = None, **more: Any) -> dict[str, Any]:
    responses = more.pop("responses", [f"{prompt}{iteration}-{k}" for k in range(len(values))])
    return {"prompt": prompt, "responses": responses, "rewards": {"r": values}, "iteration": iteration, **more}


def groups(*rows: dict[str, Any]) -> Groups:
    return Groups.from_rows(rows)


def prepare(now: Groups, history: Groups | None = None, **fields: Any) -> Batch:
    return RejectionSampling(**fields).prepare(now, {}, reward_name="r", history=history)


def targets(batch: Batch) -> list[str]:
    return [response for row in batch.groups for response in row["responses"]]


# -- best_of -----------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(maybe, max_size=7), st.data())
def test_best_of_against_a_plain_search(rewards: list[float], data: st.DataObject) -> None:
    may = data.draw(st.lists(st.booleans(), min_size=len(rewards), max_size=len(rewards)))
    expected = None
    for k, (value, able) in enumerate(zip(rewards, may, strict=True)):
        if able and value == value and (expected is None or value > rewards[expected]):
            expected = k
    assert best_of(rewards, may) == expected


@quick
@given(st.lists(maybe, min_size=1, max_size=9).filter(lambda x: not math.isnan(x[0])))
def test_more_samples_of_the_same_pool_never_win_less(rewards: list[float]) -> None:
    best = [rewards[best_of(rewards[:n], [True] * n) or 0] for n in range(1, len(rewards) + 1)]
    assert best == sorted(best)
    numbers = [r for r in rewards if not math.isnan(r)]
    assert best[-1] >= sum(numbers) / len(numbers)


def test_nan_never_wins_wherever_it_stands() -> None:
    assert best_of([math.nan, 1.0, 2.0], [True] * 3) == 2
    assert best_of([2.0, 1.0, math.nan], [True] * 3) == 0
    assert best_of([math.nan], [True]) is None


def test_of_equals_the_first_wins() -> None:
    assert best_of([1.0, 3.0, 3.0], [True] * 3) == 1
    assert best_of([3.0, 3.0], [False, True]) == 1


@pytest.mark.parametrize(
    ("n", "kl"),
    [(1, 0.0), (2, 0.193147181), (4, 0.636294361), (10, 1.402585093), (16, 1.835088722), (64, 3.174508083)],
)
def test_what_best_of_n_costs(n: int, kl: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-9)


def test_best_of_n_kl_by_enumeration() -> None:
    """Without ties, best of n among m equally likely responses has KL sum p log(p m) with p = ((i+1)^n - i^n) / m^n."""
    n, m = 4, 2000
    p = [((i + 1) ** n - i**n) / m**n for i in range(m)]
    assert sum(x * math.log(x * m) for x in p) == pytest.approx(best_of_n_kl(n), abs=1e-3)


# -- a round -----------------------------------------------------------------------------------------------------------


def test_the_best_of_each_prompt_becomes_the_target() -> None:
    batch = prepare(groups(row("a", [0.1, 0.9, 0.5]), row("b", [-1.0, -3.0])))
    assert targets(batch) == ["aNone-1", "bNone-0"]
    assert all(len(r["responses"]) == 1 for r in batch.groups)
    assert batch.groups[0]["rewards"][0]["values"] == [0.9]
    assert batch.metrics["reward_mean"] == pytest.approx(-0.5)
    assert batch.metrics["reward_median"] == pytest.approx(0.1)
    assert batch.metrics["best_mean"] == pytest.approx(-0.05)
    assert batch.metrics["best_of_n_kl"] == pytest.approx((best_of_n_kl(3) + best_of_n_kl(2)) / 2)


def test_best_of_one_is_every_sample() -> None:
    now = groups(*(row(name, [value]) for name, value in zip("abc", (3.0, -1.0, 0.0), strict=True)))
    assert targets(prepare(now)) == ["aNone-0", "bNone-0", "cNone-0"]
    assert prepare(now).metrics["best_of_n_kl"] == 0.0


def test_a_missing_reward_never_wins_and_a_prompt_without_any_is_dropped() -> None:
    batch = prepare(groups(row("a", [None, -5.0]), row("b", [None, None])))
    assert targets(batch) == ["aNone-1"]
    assert batch.metrics["dropped_prompts"] == 1


def test_a_response_cut_off_does_not_win_unless_allowed() -> None:
    now = groups(row("a", [9.0, 1.0], finished=[False, True]), row("b", [9.0], finished=[False]))
    assert targets(prepare(now)) == ["aNone-1"]
    assert targets(prepare(now, require_finished=False)) == ["aNone-0", "bNone-0"]


def test_where_nobody_wrote_down_the_end_it_is_taken_for_an_end() -> None:
    assert targets(prepare(groups(row("a", [1.0, 2.0])))) == ["aNone-1"]


@pytest.mark.parametrize("now", [groups(row("a", [None])), groups(row("a", [1.0], finished=[False]))])
def test_it_never_learns_from_nothing(now: Groups) -> None:
    with pytest.raises(DataError, match="Learning from nothing"):
        prepare(now)


def test_the_same_prompt_drawn_twice_competes_with_itself() -> None:
    batch = prepare(groups(row("a", [1.0], responses=["x"]), row("a", [2.0], responses=["y"])))
    assert targets(batch) == ["y"]
    twice = prepare(groups(row("a", [1.0], responses=["x"]), row("a", [1.0], responses=["x"])))
    assert targets(twice) == ["x"]


# -- the pool ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def history() -> Groups:
    return groups(
        row("a", [0.0, 5.0], 1),
        row("b", [0.0, 0.5], 1),
        row("c", [4.0], 1),
        row("b", [2.0, 1.0], 2),
        row("d", [3.0], 2),
    )


def test_winners_of_all_versions_compete_under_the_current_reward(history: Groups) -> None:
    batch = prepare(groups(row("a", [1.0], 3), row("b", [1.5], 3), row("e", [-9.0], 3)), history)
    assert targets(batch) == ["a1-1", "b2-0", "e3-0", "d2-0", "c1-0"]
    counts = [batch.metrics[f"targets_of_iteration_{i}"] for i in (1, 2, 3)]
    assert counts == [2, 2, 1]
    assert batch.metrics["targets"] == 5


def test_the_pool_can_be_the_last_version_or_empty(history: Groups) -> None:
    now = groups(row("a", [1.0], 3), row("b", [1.5], 3))
    assert targets(prepare(now, history, pool="last")) == ["a3-0", "b2-0", "d2-0"]
    assert targets(prepare(now, history, pool="none")) == ["a3-0", "b3-0"]
    assert targets(prepare(now)) == ["a3-0", "b3-0"]


def test_on_a_tie_the_newer_version_wins(history: Groups) -> None:
    assert targets(prepare(groups(row("a", [5.0], 3)), history, pool="all"))[0] == "a3-0"
    tied = groups(row("b", [2.0], 1), row("b", [2.0], 2))
    assert targets(prepare(groups(row("z", [0.0], 3)), tied)) == ["z3-0", "b2-0"]


def test_the_pool_can_carry_a_round_that_won_nothing(history: Groups) -> None:
    batch = prepare(groups(row("a", [None], 3)), history)
    assert "a1-1" in targets(batch)
    assert "best_mean" not in batch.metrics


def test_history_without_versions_is_the_oldest() -> None:
    mixed = groups(row("a", [1.0]), row("b", [1.0], 0))
    assert [r["prompt"][0]["content"] for r in newest_first(mixed, only_last=False)] == ["b", "a"]
    assert [r["prompt"][0]["content"] for r in newest_first(mixed, only_last=True)] == ["b"]
    assert len(newest_first(Groups.from_rows([]), only_last=True)) == 0


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(maybe, min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 9))
def test_each_prompt_gets_its_best_over_all_versions(values: list[list[float]], seed: int) -> None:
    chance = random.Random(seed)
    rows = [row(chance.choice("ab"), [None if math.isnan(v) else v for v in vs], i) for i, vs in enumerate(values)]
    best: dict[str, float] = {}
    for r in rows:
        for v in r["rewards"]["r"]:
            if v is not None:
                best[r["prompt"]] = max(v, best.get(r["prompt"], v))
    pool = compete([winners(groups(*rows[:2]), "r", True), winners(groups(*rows[2:]), "r", True)], "r")
    got = {r["prompt"][0]["content"]: r["rewards"][0]["values"][0] for r in pool}
    assert got == best


# -- what it declares --------------------------------------------------------------------------------------------------


def test_what_the_engine_is_told() -> None:
    optimizer = RejectionSampling()
    assert optimizer.samples_per_prompt == 8
    assert optimizer.temperature == 1.2
    assert optimizer.logprob_temperature == 1.0
    assert not optimizer.on_policy
    assert set(optimizer.prepare_arguments()) == {"reward_name", "history"}
    assert optimizer.terms()["loss"].reduction == "token"
    with pytest.raises(ConfigError, match="pool='some'"):
        RejectionSampling(pool="some")
