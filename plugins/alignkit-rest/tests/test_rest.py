"""ReST: which samples an Improve learns from, that the sets are nested, and that it never learns from nothing."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_rest import ReST, distinct, threshold_at
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import AlignkitError, Batch, ConfigError, DataError, FunctionReward, Groups, Policy, Run
from alignkit.testing import default_host

quick = settings(max_examples=60, deadline=None)
few = st.integers(-3, 3).map(float)  # few values: many ties


def groups(*rows: dict[str, Any]) -> Groups:
    return Groups.from_rows(rows)


def row(prompt: str, values: list[float | None], **more: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "responses": [f"{prompt}{k}" for k in range(len(values))],
        "rewards": {"r": values},
        **more,
    }


def improves(optimizer: ReST, grown: Groups) -> list[Batch]:
    """What each Improve in turn learns from."""
    state, batches = optimizer.initial_state(), []
    for _ in range(optimizer.rounds):
        batches.append(optimizer.prepare(grown, state, reward_name="r"))
        state = dict(batches[-1].state or {})
    return batches


def kept(batch: Batch) -> list[str]:
    return [response for r in batch.groups for response in r["responses"]]


def letters(response: str) -> float:
    return sum("a" <= c <= "z" for c in response) / max(len(response), 1)


# -- thresholds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantile", "above"),
    [(0.0, [1, 2, 3, 4]), (0.24, [1, 2, 3, 4]), (0.25, [2, 3, 4]), (0.5, [3, 4]), (0.75, [4]), (0.99, [4])],
)
def test_a_quantile_keeps_the_best_share(quantile: float, above: list[int]) -> None:
    values = [3.0, 1.0, 4.0, 2.0]
    assert sorted(v for v in values if v > threshold_at(values, quantile)) == above


def test_equal_values_are_kept_together() -> None:
    assert threshold_at([0.0, 1.0, 1.0, 1.0], 0.5) == 0.0
    assert threshold_at([1.0, 1.0, 1.0], 0.9) == -math.inf


@quick
@given(st.lists(few, min_size=1, max_size=12), st.lists(st.floats(0, 0.99), min_size=2, max_size=4, unique=True))
def test_the_sets_of_the_improves_are_nested_and_never_empty(values: list[float], quantiles: list[float]) -> None:
    sets = [{k for k, v in enumerate(values) if v > threshold_at(values, q)} for q in sorted(quantiles)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(sets))
    assert sets[-1]
    for q, s in zip(sorted(quantiles), sets, strict=True):
        assert len(s) >= len(values) - int(q * len(values))


def test_each_improve_filters_the_whole_grow_higher() -> None:
    grown = groups(row("a", [0.1, 0.9, 0.5]), row("b", [0.2, 0.8]), row("c", [0.7]))
    first, second, third = improves(ReST(thresholds=(0.2, 0.6, 0.8)), grown)
    assert kept(first) == ["a1", "a2", "b1", "c0"]  # 0.2 itself does not lie above
    assert kept(second) == ["a1", "b1", "c0"]
    assert kept(third) == ["a1"]
    assert second.metrics["kept"] == 3
    assert second.metrics["kept_share"] == pytest.approx(0.5)
    assert second.metrics["least_kept"] == pytest.approx(0.7)
    assert second.metrics["kept_reward_mean"] == pytest.approx(0.8)
    assert second.metrics["pool_reward_mean"] == pytest.approx(3.2 / 6)


def test_quantiles_are_of_the_whole_grow_not_of_a_prompt() -> None:
    grown = groups(row("easy", [0.8, 0.9]), row("hard", [0.1, 0.2]))
    assert kept(improves(ReST(quantiles=(0.5,)), grown)[0]) == ["easy0", "easy1"]


# -- what is never learned from ----------------------------------------------------------------------------------------


def test_nan_missing_and_cut_off_responses_are_never_kept() -> None:
    """NaN cannot come from a reward, which makes it missing; here it stands in the rows."""
    grown = groups(row("a", [math.nan, None, 5.0, 1.0], finished=[True, True, False, True]))
    (batch,) = improves(ReST(quantiles=(0.0,)), grown)
    assert kept(batch) == ["a3"]
    assert batch.metrics["kept_share"] == 1.0
    assert kept(improves(ReST(quantiles=(0.0,), require_finished=False), grown)[0]) == ["a2", "a3"]


def test_a_duplicate_counts_once() -> None:
    grown = groups(
        {"prompt": "a", "responses": ["x", "x", "y"], "rewards": {"r": [1.0, 1.0, 2.0]}},
        {"prompt": "a", "responses": ["y", "z"], "rewards": {"r": [2.0, 0.0]}},
        {"prompt": "b", "responses": ["x"], "rewards": {"r": [3.0]}},
    )
    assert [r["responses"] for r in distinct(grown)] == [["x", "y"], ["z"], ["x"]]
    (batch,) = improves(ReST(quantiles=(0.5,)), grown)
    assert batch.metrics["kept"] == 2  # of x 1, y 2, z 0 and x 3


def test_an_empty_set_stops_with_a_message() -> None:
    grown = groups(row("a", [0.1, 0.4]))
    optimizer = ReST(thresholds=(0.3, 0.9))
    first = optimizer.prepare(grown, optimizer.initial_state(), reward_name="r")
    with pytest.raises(DataError, match=r"none of 2 responses lies above 0\.9; the highest is 0\.4"):
        optimizer.prepare(grown, first.state or {}, reward_name="r")
    with pytest.raises(DataError, match="no response has a reward and an end"):
        optimizer.prepare(groups(row("a", [1.0], finished=[False])), {}, reward_name="r")
    with pytest.raises(DataError, match="no response has a reward"):
        optimizer.prepare(groups(row("a", [None])), {}, reward_name="r")


# -- losses that compare -----------------------------------------------------------------------------------------------


def test_contrast_gives_both_sides_of_the_threshold() -> None:
    grown = groups(row("a", [0.1, 0.9, None, 0.7]), row("b", [0.2, 0.3]), row("c", [0.8]))
    (batch,) = improves(ReST(thresholds=(0.5,), contrast=True), grown)
    assert [r["responses"] for r in batch.groups] == [["a0", "a1", "a3"]]
    assert batch.groups[0]["ranks"] == [2, 1, 1]
    assert batch.groups[0]["labels"] == [False, True, True]
    with pytest.raises(DataError, match="no prompt has responses on both sides"):
        improves(ReST(thresholds=(0.5,), contrast=True), groups(row("a", [0.9]), row("b", [0.1])))


# -- what it declares --------------------------------------------------------------------------------------------------


def test_rounds_are_improves_that_share_a_grow() -> None:
    optimizer = ReST(quantiles=(0.5, 0.8), grows=3)
    assert (optimizer.rounds, optimizer.sample_every) == (6, 2)
    assert optimizer.logprob_temperature == 1.0
    assert not optimizer.on_policy
    state = {"improves": 3}  # the second Improve of the second Grow
    assert optimizer.prepare(groups(row("a", [1, 2, 3, 4, 5])), state, reward_name="r").metrics["kept"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"quantiles": (0.5, 0.5)},
        {"quantiles": (0.9, 0.5)},
        {"quantiles": ()},
        {"quantiles": (0.5, 1.0)},
        {"quantiles": (-0.1,)},
        {"thresholds": (2.0, 1.0)},
        {"grows": 0},
    ],
)
def test_what_is_not_rest_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ReST(**wrong)


@pytest.mark.parametrize("name", ["rounds", "sample_every"])
def test_what_follows_from_the_levels_cannot_be_set(name: str) -> None:
    with pytest.raises(AlignkitError, match=name):
        default_host().build("optimizer", f"rest({name}=2)")


# -- in a run ----------------------------------------------------------------------------------------------------------

PROMPTS = Groups.from_prompts([f"say {w}" for w in ("ab", "cd", "ef", "gh", "ij", "kl")])
TRAIN = "learning_rate=5e-3, batch_size=8, epochs=2, require_finished=False"


def test_one_grow_serves_all_improves_and_the_state_counts_them(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as run:
        result = run.improve(
            run.policy("tiny", lora=None),
            PROMPTS,
            optimizer=f"rest(samples_per_prompt=6, {TRAIN})",
            reward=FunctionReward(letters),
            max_new_tokens=8,
        )
    assert len(result.rollouts.groups) == 6
    assert result.result["budget"]["generated_tokens"] <= 6 * 6 * 8
    assert result.state == {"improves": 3}
    assert result.result["last"]["kept"] <= 6


def test_above_no_threshold_it_is_sft_on_the_samples(tmp_path: Path) -> None:
    """Same rows, same steps: the same weights, up to the order of the rows within a step."""
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        drawn = run.sample(v0, PROMPTS, 1, max_new_tokens=8).groups
        scored = drawn.with_rewards("r", [[float(i)] for i in range(len(drawn))])
        common = "batch_size=6, epochs=1, learning_rate=5e-3, schedule='constant'"
        ours = run.improve(
            v0,
            scored,
            optimizer=f"rest(samples_per_prompt=0, quantiles=[0.0], require_finished=False, {common})",
            max_new_tokens=8,
        ).policy.load()
        sft = run.sft(
            v0, drawn, epochs=1, batch_size=6, learning_rate=5e-3, schedule="constant", warmup_ratio=0.0
        ).load()
    start, moved = dict(Policy.load("tiny").named_parameters()), False
    for (name, a), b in zip(ours.named_parameters(), sft.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        moved = moved or not torch.equal(a, start[name])
    assert moved


def hinge_on_gap(chosen_logprobs: Any, rejected_logprobs: Any) -> Any:
    return (1 - (chosen_logprobs - rejected_logprobs)).clamp(min=0)


def good_up_bad_down(logprobs: Any, response_mask: Any, labels: Any) -> Any:
    return -(2 * labels - 1) * (logprobs * response_mask).sum(-1)


@pytest.mark.parametrize("loss", [hinge_on_gap, good_up_bad_down])
def test_any_offline_loss_may_learn_from_the_two_sides(loss: Any, tmp_path: Path) -> None:
    """They get the pairs and labels they ask for, and the loss falls."""
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        grown = run.sample(v0, PROMPTS, 4, max_new_tokens=8).groups
        scored = grown.with_rewards("r", [[letters(x) for x in r["responses"]] for r in grown])
        optimizer = ReST(
            loss=loss,
            contrast=True,
            samples_per_prompt=0,
            quantiles=(0.5,),
            require_finished=False,
            learning_rate=2e-3,
            epochs=4,
        )
        v1 = run.improve(v0, scored, optimizer=optimizer, max_new_tokens=8).policy
    with (v1.path / "metrics.jsonl").open() as lines:
        losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0] - 0.1
