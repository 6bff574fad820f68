"""The advantages by hand, and that what scored better becomes likelier."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from example_plugin import ExampleComponent, example_component

from alignkit import ConfigError, DataError, Groups, Policy, Run, use
from alignkit.testing import PROMPTS, letters, tensors_of

GROUPS = Groups.from_rows([{"prompt": "p", "responses": ["a", "b", "c"]}, {"prompt": "q", "responses": ["d", "e"]}])


def advantages(kl_coef: float, **changes: Any) -> torch.Tensor:
    """[5, 2]: rewards 1, 0, 2 and 5, 3; a log-ratio of 1 on the single token of the first response."""
    mask = torch.tensor([[True, False], [True, True], [True, True], [True, True], [True, True]])
    tensors = {
        "rewards": torch.tensor([1.0, 0.0, 2.0, 5.0, 3.0]),
        "present": torch.ones(5, dtype=torch.bool),
        "response_mask": mask,
        "logprobs": torch.tensor([[-1.0, math.nan], *[[-1.0, -1.0]] * 4]),
        "ref_logprobs": torch.tensor([[-2.0, math.nan], *[[-1.0, -1.0]] * 4]),
    }
    return ExampleComponent(kl_coef=kl_coef).prepare(GROUPS, {}, **{**tensors, **changes}).tensors["advantages"]


def test_an_advantage_is_the_score_less_the_mean_of_the_others() -> None:
    expected = torch.tensor([[0.0, 0.0], [-1.5, -1.5], [1.5, 1.5], [2.0, 2.0], [-2.0, -2.0]])
    torch.testing.assert_close(advantages(0.0), expected)


def test_a_nat_of_kl_costs_its_price_and_hidden_places_cost_nothing() -> None:
    expected = torch.tensor([[-0.5, 0.0], [-1.25, -1.25], [1.75, 1.75], [2.0, 2.0], [-2.0, -2.0]])
    torch.testing.assert_close(advantages(0.5), expected)


def test_a_response_without_a_reward_is_left_out() -> None:
    present = torch.tensor([True, False, True, False, True])
    expected = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(advantages(0.0, present=present), expected)
    with pytest.raises(DataError, match="no response has a reward"):
        advantages(0.0, present=torch.zeros(5, dtype=torch.bool))


def test_the_loss_is_minus_the_advantage_times_the_log_prob() -> None:
    torch.testing.assert_close(example_component(torch.tensor([[-2.0]]), torch.tensor([[3.0]])), torch.tensor([[6.0]]))


@pytest.mark.parametrize("wrong", [{"kl_coef": -1.0}, {"kl_coef": math.nan}, {"samples_per_prompt": 1}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ExampleComponent(**wrong)


def test_one_step_makes_the_better_of_its_own_samples_likelier(tmp_path) -> None:
    method = use("example_component", rounds=1, kl_coef=0.0, learning_rate=1e-4)
    with Run(tmp_path / "run", quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        v1 = run.improve(v0, PROMPTS, optimizer=method, reward=letters, max_new_tokens=8)
        groups = v1.rollouts.groups
    rewards = torch.tensor(groups.rewards("letters")[0])  # [prompts, samples]
    before, after = (total_logprobs(policy.load(), groups).view_as(rewards) for policy in (v0, v1.policy))
    gained = (rewards - rewards.mean(1, keepdim=True)) * (after - before)
    assert gained.sum() > 1e-4


def total_logprobs(policy: Policy, groups: Groups) -> torch.Tensor:
    """[responses] log-probabilities of whole responses, nats."""
    found = tensors_of(policy, groups, "logprobs", "response_mask")
    return found["logprobs"].detach().masked_fill(~found["response_mask"], 0.0).sum(1)
