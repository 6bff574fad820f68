"""`improve` of what a method is given: references kept or on line, streams by name, what its losses are made of."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from alignkit import Batch, ConfigError, LoRA, PolicyOptimizer, Run, Term
from alignkit.models import Policy
from alignkit.plugin import Stream
from alignkit.testing import PAIRS, TEXTS, ranking


def referenced(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs):
    return ranking(chosen_logprobs - ref_chosen_logprobs, rejected_logprobs - ref_rejected_logprobs)


@dataclass(frozen=True)
class Given(PolicyOptimizer):
    """Learns from the comparisons that it is given."""

    loss: object = referenced
    samples_per_prompt: int = 0
    batch_size: int = 2
    learning_rate: float = 1e-2
    mix: float = 0.0

    def prepare(self, groups, state):
        return Batch(groups)

    def streams(self):
        return {"mix": Stream(weight=self.mix, batch_size=2)} if self.mix else {}


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_reference_kept_and_online_give_the_same_bits(tmp_path, lora):
    """In the first epoch the micro-batches are the same ones; another reference than the policy's start."""
    digests = []
    for how in ("kept", "online"):
        with Run(tmp_path / how, quiet=True) as run:
            policy = run.policy("tiny", lora=lora)
            other = run.improve(policy, PAIRS, optimizer=Given(loss=ranking), name="other").policy
            made = run.improve(policy, PAIRS, optimizer=Given(), reference=other, reference_logprobs=how, name="made")
            model = Policy.load(made.policy.model_folder)
            digests.append([p.clone() for p in model.parameters()])
            start = Policy.load(policy.model_folder)
    assert all(torch.equal(a, b) for a, b in zip(*digests, strict=True))
    assert len(digests[0]) != len(list(start.parameters())) or not all(
        torch.equal(a, b) for a, b in zip(digests[0], start.parameters(), strict=True)
    )


def test_streams_are_brought_by_name_or_refused(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        policy = run.policy("tiny", lora=None)
        mixed = Given(loss=ranking, mix=0.5)
        with pytest.raises(ConfigError, match="streams"):
            run.improve(policy, PAIRS, optimizer=mixed, name="none")
        with pytest.raises(ConfigError, match="streams"):
            run.improve(policy, PAIRS, optimizer=Given(loss=ranking), streams={"mix": TEXTS}, name="surplus")
        made = run.improve(policy, PAIRS, optimizer=mixed, streams={"mix": TEXTS}, name="mixed")
        assert "mix" in (made.policy.path / "metrics.jsonl").read_text()


def test_what_an_extra_loss_is_made_of_counts_in_the_key(tmp_path):
    """The same name, another function: the stage is made anew."""

    def built(factor):
        @dataclass(frozen=True)
        class Further(Given):
            loss: object = ranking

            def terms(self):
                return {"loss": Term(), "more": Term()}

            def extra_losses(self):
                return {"more": lambda chosen_logprobs: factor * chosen_logprobs}

        return Further()

    digests = []
    for factor in (0.0, 50.0):
        with Run(tmp_path, quiet=True) as run:
            policy = run.policy("tiny", lora=None)
            made = run.improve(policy, PAIRS, optimizer=built(factor), name="made")
            digests.append(made.policy.key)
    assert digests[0] != digests[1]
