"""How far the sampler is from the policy that is trained: measured each round, and weighed where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignkit import AlignkitError, ConfigError, Groups, Policy, Run, use
from alignkit.engine.sampler_gap import mismatch, weighed
from alignkit.engine.step_metrics import StepMetrics
from alignkit.engine.training_data import TrainingData
from alignkit.functional import truncated_importance
from alignkit.sampling import Sampled, Sampler

PROMPTS = Groups.from_prompts([f"say {i}" for i in range(6)])
GAP = 0.25
"""Nats by which the planted sampler records each token as likelier than it is."""


@dataclass(frozen=True)
class Off(Sampler):
    """Records log-probs of a sampler that is off by `GAP`."""

    def generate(self, *args: Any) -> Iterator[tuple[int, list[Sampled]]]:
        for place, answers in super().generate(*args):
            yield place, [replace(each, logprobs=[value + GAP for value in each.logprobs]) for each in answers]


def letters(response: str) -> float:
    return float(sum(c.islower() for c in response))


def rows_of(folder, sampler: Sampler, method: str = "grpo", **fields: Any) -> list[dict[str, float]]:
    shape = {"rounds": 2, "prompts_per_round": 6, "samples_per_prompt": 3, "learning_rate": 1e-3}
    with Run(folder, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        optimizer = use(method, **shape, **fields)
        made = run.improve(v0, PROMPTS, optimizer=optimizer, reward=letters, reference=v0, sampler=sampler)
        return [json.loads(line) for line in (made.policy.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "reinforce_pp"])
def test_each_round_says_how_far_its_sampler_is_from_the_training_path(method, tmp_path):
    rows = rows_of(tmp_path, Sampler(max_new_tokens=8), method)
    assert {row["round"] for row in rows} == {0, 1}
    for row in rows:
        assert 0 <= row["sampler_mismatch"] <= row["sampler_mismatch_max"] < 2e-5
        assert abs(row["sampler_kl"]) < 1e-5


def test_a_planted_mismatch_is_measured(tmp_path):
    for row in rows_of(tmp_path, Off(max_new_tokens=8)):
        assert row["sampler_mismatch"] == pytest.approx(GAP, abs=1e-4)
        assert row["sampler_mismatch_max"] == pytest.approx(GAP, abs=1e-4)
        assert row["sampler_kl"] == pytest.approx(GAP, abs=1e-4)


def test_methods_that_take_no_ratios_say_nothing_and_refuse_a_cap(tmp_path):
    assert "sampler_mismatch" not in rows_of(tmp_path / "a", Sampler(max_new_tokens=8), "online_dpo")[0]
    with pytest.raises(ConfigError, match=r"importance_cap=2\.0 with a method that takes no ratios"):
        rows_of(tmp_path / "b", Sampler(max_new_tokens=8), "online_dpo", importance_cap=2.0)
    with pytest.raises(AlignkitError, match=r"importance_cap=0\.0 must be positive"):
        rows_of(tmp_path / "c", Sampler(max_new_tokens=8), importance_cap=0.0)


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "reinforce_pp"])
def test_a_cap_weighs_the_policy_gradient_of_every_method_that_takes_ratios(method, tmp_path):
    """All weights are exp(-GAP), or the cap where that is below: the norm of the gradient is so much smaller."""
    alone = {"vf_coef": 0.0} if method == "ppo" else {}
    plain, weighed_, capped = (
        rows_of(tmp_path / name, Off(max_new_tokens=8), method, max_grad_norm=0.0, **alone, **fields)[0]
        for name, fields in (("a", {}), ("b", {"importance_cap": 2.0}), ("c", {"importance_cap": 0.5}))
    )
    factor = torch.exp(torch.tensor(-GAP)).item()
    assert weighed_["grad_norm"] == pytest.approx(factor * plain["grad_norm"], rel=1e-3)
    assert capped["grad_norm"] == pytest.approx(0.5 * plain["grad_norm"], rel=1e-3)
    assert plain["grad_norm"] > 1e-4


def test_weighed_samples_of_another_distribution_have_the_policys_own_gradient():
    """Over all tokens, by how often mu draws each: the mean of min(pi / mu, C) A grad log pi is that under pi where no
    weight is cut, and is off where it is, or where nothing is weighed."""
    torch.manual_seed(0)
    logits, other = torch.randn(9, dtype=torch.double, requires_grad=True), torch.randn(9, dtype=torch.double)
    advantages = torch.randn(9, dtype=torch.double)

    def gradient(by: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        loss = (by * weights * advantages * torch.log_softmax(logits, -1)).sum()
        return torch.autograd.grad(loss, logits)[0]

    pi, mu = torch.log_softmax(logits, -1).detach(), torch.log_softmax(logits.detach() + other, -1)
    wanted = gradient(pi.exp(), torch.ones(9))
    torch.testing.assert_close(gradient(mu.exp(), truncated_importance(pi, mu, 1e9)), wanted)
    assert (gradient(mu.exp(), torch.ones(9)) - wanted).abs().max() > 1e-2
    assert truncated_importance(pi, mu, 1.5).max() == 1.5


def test_a_step_counts_its_own_responses_micro_batch_by_micro_batch():
    """Each has its numbers in the round, and a width of its own; those of an idle process are another's."""
    sampled = torch.tensor([[-1.0, -2.0, 0.0], [-3.0, -4.0, -5.0], [-6.0, 0.0, 0.0]])
    known = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    metrics = StepMetrics({})
    metrics.compare(
        (sampled, known), SimpleNamespace(responses=torch.tensor([2, 0])), torch.tensor([[9.0, 9], [-2, 0]])
    )
    metrics.compare((sampled, known), SimpleNamespace(responses=torch.tensor([1])), sampled[1:2] - 0.25)
    metrics.idle = True
    metrics.compare((sampled, known), SimpleNamespace(responses=torch.tensor([1])), sampled[1:2] - 9)
    found = metrics.read()
    assert found == pytest.approx({"sampler_mismatch": 3.75 / 5, "sampler_mismatch_max": 2.0, "sampler_kl": -0.25 / 5})
    assert metrics.read() == {}


def test_edited_responses_are_not_taken_for_what_was_sampled():
    policy = Policy.load("tiny")
    groups = Off(max_new_tokens=6).sample(policy, PROMPTS.select([0, 1]), 2, seed=(0,))
    edited = Groups.from_rows([{**groups[0], "responses": ["other", groups[0]["responses"][1]]}, groups[1]])
    data = TrainingData.whole(policy, edited, max_prompt_tokens=99, max_response_tokens=99)
    sampled, known = data.sampled_logprobs()
    assert known.any(1).tolist() == [False, True, True, True]
    own = torch.where(known, sampled - GAP, -1.0)
    assert mismatch(data, own)["sampler_kl"] == pytest.approx(GAP, abs=1e-6)
    weights = weighed(torch.ones(4, 1), data, own, 2.0)
    torch.testing.assert_close(weights[known], torch.full_like(weights[known], -GAP).exp())
    assert (weights[~known] == 1).all()
    written = Groups.from_rows([{"prompt": "a", "responses": ["b"]}])
    bare = TrainingData.whole(policy, written, max_prompt_tokens=99, max_response_tokens=99)
    assert mismatch(bare, torch.zeros(bare.response_mask.shape)) == {}
