"""Only what the policy wrote counts as its response, and only while it is the policy that wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from alignkit import Batch, Groups, PolicyOptimizer
from alignkit.data.encode import encode_groups
from alignkit.engine.answer_metrics import answer_logprobs
from alignkit.engine.early_stop import EarlyStop
from alignkit.engine.reference import Reference, kl_per_response
from alignkit.models import Policy
from alignkit.rewards import FunctionReward, Scores
from alignkit.rows import Message
from alignkit.sampling import Drawing, Sampler
from alignkit.testing import PROMPTS, letters, rollouts, tiny_policy


def marked(number: int) -> dict[str, Any]:
    answer = Message("assistant", f"hello there {number}", trained=True)
    return {"prompt": [Message("user", f"hi {number}"), answer, Message("user", "more")]}


MARKED = Groups.from_rows([marked(i) for i in range(3)])


@dataclass(frozen=True)
class Imitates(PolicyOptimizer):
    """Learns from its samples as they are."""

    samples_per_prompt: int = 2

    def prepare(self, groups: Groups, state: Any) -> Batch:
        return Batch(groups)


def test_earlier_turns_that_are_marked_are_no_part_of_a_round() -> None:
    """The mask, on which ratios, advantages, KL and lengths rest, shows as many tokens as were sampled."""
    source = rollouts(tiny_policy(), Imitates(rounds=1), prompts=MARKED)
    lesson = source.lesson(source.collect(0), 0)
    sampled = [len(ids) for row in lesson.data.groups for ids in row["response_ids"]]
    assert lesson.data.response_mask.sum(1).tolist() == sampled
    assert [n for group in lesson.data.learned_tokens for n in group] == sampled
    assert lesson.metrics["kl_per_sequence"] == 0.0
    encoded, _ = encode_groups(MARKED, source.known.models.policy.chat, max_prompt_tokens=500, max_response_tokens=9)
    assert any(encoded[0].prompt_trained or [])  # as supervised fine-tuning reads the same rows


def drawn(policy: Policy) -> Groups:
    return Drawing(policy, Sampler(max_new_tokens=6)).draw(MARKED, 2, seed=(0,), name="s")


def test_the_kl_of_a_policy_to_itself_is_zero_whatever_is_marked() -> None:
    policy = tiny_policy()
    found = kl_per_response(
        policy, drawn(policy), Reference(tiny_policy()), temperature=1.0, max_tokens=200, max_prompt_tokens=500
    )
    assert max(abs(value) for row in found for value in row) < 1e-4


def test_log_probs_of_answers_are_those_of_the_answers_whatever_is_marked() -> None:
    policy = tiny_policy()
    rows = drawn(policy)
    for found, said in zip(answer_logprobs(policy, rows, 200, 500), rows.column("logprobs"), strict=True):
        assert found is not None
        for values, wanted in zip(found, said, strict=True):
            torch.testing.assert_close(values[~values.isnan()], torch.tensor(wanted), rtol=1e-3, atol=1e-3)


def test_no_kl_is_measured_on_what_the_policy_has_learned_since() -> None:
    """Two rounds on the same samples: those of the second are no longer the policy's own."""
    source = rollouts(tiny_policy(), Imitates(rounds=4, sample_every=2))
    said = [source.lesson(source.collect(index), index).metrics for index in range(4)]
    assert ["kl_per_sequence" in metrics for metrics in said] == [True, False, True, False]
    assert ["response_length" in metrics for metrics in said] == [True] * 4


@dataclass(frozen=True)
class Reads(Imitates):
    """Is given its responses, and asks for what a KL is made of."""

    samples_per_prompt: int = 0

    def prepare(self, groups: Groups, state: Any, *, logprobs: Any, ref_logprobs: Any) -> Batch:  # type: ignore[override]
        return Batch(groups)


def test_no_kl_is_measured_on_responses_that_were_given() -> None:
    rows = Groups.from_rows([{"prompt": "a", "responses": ["b"]}])
    source = rollouts(tiny_policy(), Reads(rounds=1), prompts=rows, reward=None)
    assert "kl_per_sequence" not in source.lesson(source.collect(0), 0).metrics


# -- rounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size", "parts"), [(40, 32, [20, 20]), (33, 32, [16, 17]), (7, 3, [2, 2, 3])])
def test_one_pass_takes_each_prompt_once(rows: int, size: int, parts: list[int]) -> None:
    prompts = Groups.from_prompts([f"p{i}" for i in range(rows)])
    source = rollouts(tiny_policy(), Imitates(rounds=0, prompts_per_round=size), prompts=prompts)
    taken = [[row["prompt_id"] for row in source.collect.round_prompts(index)] for index in range(source.count)]
    assert sorted(map(len, taken)) == parts
    assert sorted(name for part in taken for name in part) == sorted(row["prompt_id"] for row in prompts)


def test_the_best_round_is_put_back_whole() -> None:
    """Policy, separate value model and the method's state of one round, not of two."""
    policy, value_model = tiny_policy(), tiny_policy(seed=1)
    rewards = iter([0.5, 0.1])

    class Told(FunctionReward):
        def score(self, groups: Groups) -> Scores:
            value = next(rewards)
            return Scores([[value] for _ in groups], [[None] for _ in groups])

    source = rollouts(policy, Imitates(rounds=5), heldout=PROMPTS, patience=1, value_model=value_model)
    assert isinstance(source.early_stop, EarlyStop)
    source.early_stop.reward = Told(letters)
    parameters = [next(model.parameters()) for model in (policy, value_model)]
    best = []
    for index in range(2):
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(1.0)
        source.state = {"round": index}
        assert source.early_stop.over(index, source.state) == bool(index)
        best = best or [parameter.clone() for parameter in parameters]
    assert source.restore_best() == 0
    assert all(torch.equal(now, then) for now, then in zip(parameters, best, strict=True))
    assert source.state == {"round": 0}
