"""The optimizers of comparisons: which pairs they make, what they log, and that they learn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
from alignkit_dpo import DPO, OnlineDPO
from alignkit_dpo.losses import PAIR_LOSSES
from alignkit_dpo.optimizers import best_and_worst, settings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import AlignkitError, Annotator, ConfigError, DataError, Groups, Run, use

WORDS = ["apple", "bear", "cherry", "deer"]
PAIRS = Groups.from_rows(
    {
        "prompt": f"say {word}",
        "responses": [f"{word} yes", f"no {word} {'x' * i}"],
        "ranks": [1, 2] if i % 2 else [2, 1],
    }
    for i, word in enumerate(WORDS)
)
FAST = {"batch_size": 0, "learning_rate": 3e-3, "warmup_ratio": 0.0}


def row(prompt: str, ranks: list[int] | None, **more: Any) -> dict[str, Any]:
    count = len(ranks) if ranks else more.pop("count", 2)
    return {"prompt": prompt, "responses": [f"{prompt} {k}" for k in range(count)], "ranks": ranks, **more}


def groups(*rows: dict[str, Any]) -> Groups:
    return Groups.from_rows(rows)


def learn(
    folder: Path, optimizer: Any, data: Groups = PAIRS, reference: bool = True, **more: Any
) -> list[dict[str, Any]]:
    """The logged steps of an improvement of the tiny model."""
    run = Run(folder, quiet=True, max_tokens=more.pop("max_tokens", 2048))
    v0 = run.policy("tiny")
    made = run.improve(v0, data, optimizer=optimizer, reference=v0 if reference else None, max_new_tokens=6, **more)
    return [json.loads(line) for line in (made.policy.path / "metrics.jsonl").read_text().splitlines()]


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_groups_that_all_differ_are_passed_on_as_they_are() -> None:
    """The same object: the engine then keeps the reference log-probs that it has."""
    batch = DPO().prepare(PAIRS, {})
    assert batch.groups is PAIRS
    assert batch.metrics["pairs"] == 4


def test_every_two_ranks_that_differ_make_a_pair_and_ties_make_none() -> None:
    batch = DPO().prepare(groups(row("a", [1, 2, 3]), row("b", [1, 1]), row("c", None), row("d", [2, 1, 2])), {})
    assert [r["prompt"][0]["content"] for r in batch.groups] == ["a", "d"]
    assert [len(r["responses"]) for r in batch.groups] == [3, 3]
    assert batch.metrics["pairs"] == 3 + 2


@pytest.mark.parametrize(
    "data", [groups(row("a", [1, 1]), row("b", [2, 2])), groups(row("a", None)), groups(row("a", [1]))]
)
def test_nothing_to_compare_is_told(data: Groups) -> None:
    with pytest.raises(DataError, match=r"no comparison(.|\n)*nothing to learn from"):
        DPO().prepare(data, {})


@given(st.lists(st.integers(1, 5), min_size=1, max_size=7))
@settings(max_examples=60, deadline=None)
def test_best_and_worst_against_a_plain_search(ranks: list[int]) -> None:
    best = worst = 0
    for k, rank in enumerate(ranks):
        best = k if rank < ranks[best] else best
        worst = k if rank > ranks[worst] else worst
    assert best_and_worst(ranks) == sorted({best, worst})


def test_online_the_reward_ranks_the_best_against_the_worst() -> None:
    scored = groups(
        row("a", None, count=4, rewards={"r": [0.5, -1.0, 2.0, -1.0]}),
        row("b", None, count=3, rewards={"r": [1.0, 1.0, 1.0]}),
        row("c", None, count=3, rewards={"r": [None, 3.0, 4.0]}),
        row("d", None, count=2, rewards={"r": [None, 3.0]}),
    )
    batch = OnlineDPO(samples_per_prompt=4).prepare(scored, {}, annotated=False, reward_name="r")
    kept = {r["prompt"][0]["content"]: (r["responses"], r["ranks"]) for r in batch.groups}
    assert kept == {"a": (["a 1", "a 2"], [3, 1]), "c": (["c 1", "c 2"], [2, 1])}
    assert batch.metrics == {"pairs": 2.0, "tied_prompts": 1.0, "unscored_prompts": 1.0}


def test_online_a_prompt_without_any_reward_is_counted_apart_from_ties() -> None:
    scored = groups(row("a", None, rewards={"r": [0.0, 1.0]}), row("b", None, rewards={"r": [None, None]}))
    metrics = OnlineDPO().prepare(scored, {}, annotated=False, reward_name="r").metrics
    assert (metrics["pairs"], metrics["tied_prompts"], metrics["unscored_prompts"]) == (1, 0, 1)


def test_online_an_annotator_s_ranks_and_soft_labels_are_used() -> None:
    ranked = groups(row("a", [2, 1], preference_prob=0.7, rewards={"r": [9.0, 0.0]}), row("b", [1, 1]))
    batch = OnlineDPO().prepare(ranked, {}, annotated=True, reward_name="r")
    assert [(r["ranks"], r["preference_prob"]) for r in batch.groups] == [([2, 1], 0.7)]
    assert batch.metrics["tied_prompts"] == 1


def test_online_a_round_of_ties_is_told() -> None:
    with pytest.raises(DataError, match="no comparison"):
        OnlineDPO().prepare(groups(row("a", None, rewards={"r": [1.0, 1.0]})), {}, annotated=False, reward_name="r")


# -- settings ----------------------------------------------------------------------------------------------------------


def test_beta_of_the_loss_is_known_wherever_it_was_written() -> None:
    assert settings_of("dpo", PAIR_LOSSES)["beta"] == 0.1
    assert settings_of("alignkit-dpo/simpo", PAIR_LOSSES)["beta"] == 2.0
    assert settings_of("simpo(beta=3)", PAIR_LOSSES) == {"beta": 3, "gamma": 1.0}
    assert settings_of(use("ipo", beta=0.05), PAIR_LOSSES)["beta"] == 0.05
    assert settings_of(PAIR_LOSSES["hinge"], PAIR_LOSSES)["beta"] == 0.05
    assert settings_of("other-distribution/dpo", PAIR_LOSSES) == {}
    assert "beta" not in settings_of("cpl", PAIR_LOSSES)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DPO(loss="ipo(beta=0)"), "beta=0 must be positive"),
        (lambda: DPO(loss=use("alignkit-dpo/robust", label_smoothing=0.5)), "label_smoothing=0.5"),
        (lambda: DPO(samples_per_prompt=2), "use online_dpo"),
        (lambda: OnlineDPO(samples_per_prompt=1), "a comparison takes two"),
        (lambda: DPO(nll_coef=-1.0), "nll_coef=-1.0"),
    ],
)
def test_wrong_use_is_refused_before_any_work(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_what_the_engine_is_told() -> None:
    dpo, online = DPO(), OnlineDPO()
    assert (dpo.samples_per_prompt, dpo.logprob_temperature, dpo.on_policy) == (0, 1.0, False)
    assert (online.samples_per_prompt, online.logprob_temperature) == (2, 0.9)
    assert dpo.terms()["chosen_nll"].weight == 0
    assert DPO(nll_coef=0.5).terms()["chosen_nll"].weight == 0.5


# -- learning ----------------------------------------------------------------------------------------------------------


def test_it_begins_at_ties_and_learns_the_preference(tmp_path: Path) -> None:
    steps = learn(tmp_path, use("dpo", epochs=6, **FAST))
    first, last = steps[0], steps[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["ties"], first["accuracy"], first["margins"], first["chosen_rewards"]) == (1.0, 0.0, 0.0, 0.0)
    assert (last["ties"], last["accuracy"]) == (0.0, 1.0)
    assert last["loss"] < 0.6
    assert last["margins"] == pytest.approx(last["chosen_rewards"] - last["rejected_rewards"], abs=1e-5)
    moved = last["chosen_logprobs"] - first["chosen_logprobs"]
    assert last["chosen_rewards"] == pytest.approx(0.1 * moved, abs=1e-4)  # beta of the default loss
    assert first["chosen_nll"] > 0


def test_reference_kept_or_online_is_the_same(tmp_path: Path) -> None:
    """Bit by bit: an epoch's micro-batches are those that the kept log-probs were computed with, later ones are not."""
    kept = learn(tmp_path / "kept", use("dpo", **{**FAST, "batch_size": 2}))
    online = learn(tmp_path / "online", use("dpo", **{**FAST, "batch_size": 2}), reference_logprobs="online")
    assert len(kept) == 2
    assert kept == online
    later = [
        learn(tmp_path / f"later {how}", use("dpo", epochs=3, **FAST), reference_logprobs=how)[-1]
        for how in ("kept", "online")
    ]
    assert later[0]["loss"] == pytest.approx(later[1]["loss"], abs=1e-5)


def test_micro_batches_and_their_padding_change_nothing(tmp_path: Path) -> None:
    whole, split = (
        learn(tmp_path / str(tokens), use("dpo", loss="simpo", epochs=3, **FAST), max_tokens=tokens)
        for tokens in (4096, 60)
    )
    for name in ("loss", "margins", "chosen_logprobs", "accuracy", "ties"):
        assert [s[name] for s in whole] == pytest.approx([s[name] for s in split], abs=2e-4), name


def test_a_ranking_weighs_as_much_as_one_comparison(tmp_path: Path) -> None:
    """The NLL of the chosen ones: mean over a prompt's pairs, then over prompts."""
    three, one = row("aaa", [1, 2, 3]), row("b", [1, 2])

    def nll(data: Groups, folder: str) -> float:
        return float(learn(tmp_path / folder, use("dpo", **FAST), data)[0]["chosen_nll"])

    both = nll(groups(three, one), "both")
    assert both == pytest.approx((nll(groups(three), "three") + nll(groups(one), "one")) / 2, abs=1e-4)


def test_the_nll_term_is_added_and_keeps_the_chosen_logprob_up(tmp_path: Path) -> None:
    plain = learn(tmp_path / "plain", use("dpo", epochs=6, **FAST))
    kept_up = learn(tmp_path / "nll", use("dpo", nll_coef=2.0, epochs=6, **FAST))
    assert kept_up[0]["loss"] == pytest.approx(math.log(2) + 2.0 * kept_up[0]["chosen_nll"], abs=1e-4)
    assert kept_up[-1]["chosen_logprobs"] > plain[-1]["chosen_logprobs"] + 0.5


def test_the_margins_of_simpo_are_those_that_it_compares(tmp_path: Path) -> None:
    """Per token and without the reference, though one was given: the loss of one pair follows from its margin."""
    (step,) = learn(tmp_path, use("dpo", loss="simpo", **FAST), PAIRS.select([0]))
    assert step["margins"] != 0
    assert step["loss"] == pytest.approx(math.log1p(math.exp(1.0 - step["margins"])), abs=1e-5)  # gamma = 1


@pytest.mark.parametrize("loss", ["ipo", "cpl"])
def test_a_loss_of_another_signature_trains(tmp_path: Path, loss: str) -> None:
    free = loss == "cpl"
    steps = learn(tmp_path, use("dpo", loss=loss, epochs=2, **FAST), reference=not free)
    assert len(steps) == 2
    assert all(math.isfinite(value) for step in steps for value in step.values())
    if not free:
        assert steps[0]["ties"] == 1.0
    assert steps[1]["loss"] < steps[0]["loss"]


def test_soft_labels_reach_the_loss(tmp_path: Path) -> None:
    """At p = 1/2 the loss is least where it begins, and nothing moves."""
    even = PAIRS.map_rows(lambda _: {"preference_prob": 0.5})
    steps = learn(tmp_path, use("dpo", epochs=2, **FAST), even)
    assert steps[0]["grad_norm"] == pytest.approx(0.0, abs=1e-6)
    assert steps[1]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_loss_that_needs_a_reference_says_so(tmp_path: Path) -> None:
    with pytest.raises(AlignkitError, match="needs a reference"):
        learn(tmp_path, use("dpo", **FAST), reference=False)


# -- online ------------------------------------------------------------------------------------------------------------


class LargestBytes(Annotator):
    """Prefers the response whose bytes sum to more."""

    dimensions: ClassVar[tuple[str, ...]] = ("size",)

    def annotate(self, groups: Groups, seed: int = 0) -> dict[str, Groups]:
        def ranked(row: dict[str, Any]) -> dict[str, Any]:
            sizes = [sum(ids) for ids in row["response_ids"]]
            return {"ranks": [1 + sum(other > size for other in sizes) for size in sizes]}

        return {"size": groups.map_rows(ranked)}

    def key(self) -> Any:
        return "largest bytes"


def lower_case(meta: dict[str, Any], response: str, finished: bool | None) -> float:
    return sum("a" <= c <= "z" for c in response) / 10


PROMPTS = Groups.from_prompts(WORDS)
ONLINE = use("online_dpo", rounds=3, prompts_per_round=4, samples_per_prompt=4, **FAST)


def test_online_rounds_learn_from_fresh_samples(tmp_path: Path) -> None:
    steps = learn(tmp_path, ONLINE, PROMPTS, reward=lower_case)
    assert [s["round"] for s in steps] == [0, 1, 2]
    assert steps[0]["ties"] == 1.0
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[2]["ties"] == 0.0
    assert {"reward_mean", "kl_per_sequence", "tied_prompts", "pairs"} <= set(steps[2])


def test_online_with_an_annotator_and_no_reward(tmp_path: Path) -> None:
    steps = learn(tmp_path, ONLINE, PROMPTS, annotator=LargestBytes())
    assert "reward_mean" not in steps[0]
    assert [s["pairs"] for s in steps] == [4, 4, 4]


def test_online_the_annotator_goes_before_the_reward(tmp_path: Path) -> None:
    """The reward alone would tie everything, and stop."""
    steps = learn(tmp_path, ONLINE, PROMPTS, annotator=LargestBytes(), reward=lambda meta, response: 0.0)
    assert [(s["pairs"], s["reward_mean"]) for s in steps] == [(4, 0.0)] * 3


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["dpo(loss=ipo(beta=0.2))", "online_dpo(rounds=2, prompts_per_round=4)", "kto"])
def test_the_recipe_runs_on_the_tiny_model(tmp_path: Path, optimizer: str) -> None:
    run = Run(tmp_path, quiet=True)
    method = run.host.build("recipe", "method")
    method(run, policy="tiny", optimizer=optimizer, suite="embedded(prompts=8, heldout=4)", max_new_tokens=8)
    assert (tmp_path / "report.html").exists()
