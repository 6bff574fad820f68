"""Rounds whose method measures, is annotated or goes by laps."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from alignkit import Batch, ConfigError, PolicyOptimizer
from alignkit.annotators import Annotator
from alignkit.models import Policy
from alignkit.rewards import FunctionReward, rank_by_reward
from alignkit.testing import PAIRS, ranking, rollouts, training_data


@dataclass(frozen=True)
class Learns(PolicyOptimizer):
    """Learns from pairs; keeps what it was given."""

    loss: object = ranking
    samples_per_prompt: int = 2
    learning_rate: float = 1e-2

    def prepare(self, groups, state, *, measure, max_new_tokens):
        ranked = groups if groups[0]["ranks"] else rank_by_reward(groups, groups.reward_names()[0])
        found = measure(ranked, "logprobs", "ref_logprobs")
        gap = (found["logprobs"] - found["ref_logprobs"]) * found["response_mask"]
        return Batch(ranked, metrics={"gap": float(gap.abs().max()), "most": float(max_new_tokens)})


def test_measure_gives_logprobs_of_any_groups_and_no_gap_before_the_first_step():
    policy = Policy.load("tiny", trainable=True)
    source = rollouts(policy, Learns())
    source.lesson(source.collect(0), 0)
    assert source.last["gap"] == 0.0
    assert source.last["most"] == 12.0
    found = source.known.measure(PAIRS, "logprobs")
    data = training_data(policy, PAIRS)
    with torch.no_grad():
        expected = policy.tensors(data.collate(range(4)))["logprobs"]
    mask = found["response_mask"]
    torch.testing.assert_close(found["logprobs"][mask], expected[mask[:, : expected.shape[1]]], rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="cannot give"):
        source.known.measure(PAIRS, "advantages")


class Longest(Annotator):
    """The longer response is better."""

    def annotate(self, groups, seed=0):
        def rank(row):
            lengths = [len(r) for r in row["responses"]]
            return {"ranks": [1 + sum(other > n for other in lengths) for n in lengths]}

        return {"preference": groups.map_rows(rank)}

    def key(self):
        return "longest"


def test_an_annotator_ranks_each_round_and_no_reward_is_needed():
    policy = Policy.load("tiny", trainable=True)
    source = rollouts(policy, Learns(), reward=None, annotator=Longest())
    data = source.lesson(source.collect(0), 0).data
    for row in data.groups:
        lengths = [len(r) for r in row["responses"]]
        assert (row["ranks"][0] < row["ranks"][1]) == (lengths[0] > lengths[1])


def test_sampling_without_reward_or_annotator_is_told():
    with pytest.raises(ConfigError, match="a reward or an annotator"):
        rollouts(Policy.load("tiny", trainable=True), Learns(), reward=None)


def test_a_method_that_learns_from_scores_is_told_that_an_annotator_gives_ranks():
    @dataclass(frozen=True)
    class Scored(Learns):
        def prepare(self, groups, state, *, reward_name):
            return Batch(groups)

    with pytest.raises(ConfigError, match="learns from scores"):
        rollouts(Policy.load("tiny"), Scored(), reward=None, annotator=Longest())
    rollouts(Policy.load("tiny"), Scored(), annotator=Longest())


def test_missing_rewards_are_counted_over_the_whole_round():
    """Of 10 responses at first none is missing; of the 2 sampled anew one: 1 of 12, not 1 of 2."""
    asked = []

    def sometimes(meta, response, finished):
        asked.append(response)
        return None if len(asked) == 11 else 1.0

    @dataclass(frozen=True)
    class Choosy(Learns):
        def keep(self, groups):
            return [len(asked) > 10 or i > 0 for i in range(len(groups))]

    source = rollouts(Policy.load("tiny", trainable=True), Choosy(), reward=FunctionReward(sometimes), max_missing=0.1)
    source.collect(0)
    assert len(asked) == 12


def test_samples_cannot_be_shared_by_rounds_that_compare_with_their_sampler():
    @dataclass(frozen=True)
    class Ratios(Learns):
        sample_every: int = 2

        def prepare(self, groups, state, *, logprobs):
            return Batch(groups)

    with pytest.raises(ConfigError, match="sample_every"):
        rollouts(Policy.load("tiny"), Ratios(rounds=2))


def test_an_annotator_of_two_dimensions_is_told():
    class Two(Longest):
        dimensions = ("a", "b")

        def annotate(self, groups, seed=0):
            (ranked,) = super().annotate(groups, seed).values()
            return {"a": ranked, "b": ranked}

    with pytest.raises(ConfigError, match="one dimension"):
        rollouts(Policy.load("tiny", trainable=True), Learns(), reward=None, annotator=Two()).collect(0)


@pytest.mark.parametrize(("per_round", "laps"), [(0, 1), (2, 3), (5, 1)])
def test_rounds_zero_is_one_lap_over_the_prompts(per_round, laps):
    source = rollouts(Policy.load("tiny"), Learns(rounds=0, prompts_per_round=per_round))
    assert source.count == laps
    drawn = {row["prompt_id"] for index in range(laps) for row in source.collect.round_prompts(index)}
    assert len(drawn) == 5
