"""The reference of a KL: a named state of the policy, or a model of its own; and the KL to it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignkit.engine.training_data import TrainingData
from alignkit.functional import k1, masked_mean
from alignkit.groups import Groups
from alignkit.meter import Meter
from alignkit.models import Policy
from alignkit.models.arithmetic import Reading
from alignkit.models.batch import MicroBatch


@dataclass(frozen=True)
class Reference:
    """What a policy is compared with.

    Args:
        model: whose log-probs they are.
        state: the named state of its weights; None takes the model as it is.
        meter: counts its forward passes, see `count`, and times them.
    """

    model: Policy
    state: str | None = None
    meter: Meter = field(default_factory=Meter, compare=False)

    def logprobs(self, batch: MicroBatch, temperature: float) -> Tensor:
        """`ref_logprobs` [R, T] of a micro-batch, without gradient, on the batch's device."""
        state = contextlib.nullcontext() if self.state is None else self.model.state(self.state)
        with torch.no_grad(), state, self.meter.phase("reference"):
            found = self.model.tensors(batch.to(self.model.device), temperature=temperature)["logprobs"]
        return found.to(batch.targets.device)

    def flops(self, reading: Reading) -> int:
        """Floating-point operations of `logprobs`."""
        return self.model.flops(reading, state=self.state).forward

    def count(self, reading: Reading) -> None:
        """Count a pass."""
        with self.meter.phase("reference"):
            self.meter.add("scored_tokens", reading.tokens)
            self.meter.compute(self.flops(reading))


def kl_means(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """KL to the reference in nats (k1: the mean of log pi - log ref over samples), from [R, T] each."""
    difference = k1(logprobs, ref_logprobs) * mask
    return {
        "kl_per_token": float(masked_mean(difference, mask)),
        "kl_per_sequence": float(difference.sum(-1).mean()),
    }


@torch.no_grad()
def kl_per_response(
    policy: Policy,
    groups: Groups,
    reference: Reference | None,
    *,
    temperature: float,
    max_tokens: int,
    max_prompt_tokens: int,
) -> list[list[float]]:
    """Sum over the response of log pi - log ref (estimator k1), in nats; its mean over samples estimates the KL.

    Args:
        policy: the sampler.
        groups: its samples, with the log-probs that they were drawn with.
        reference: None: the policy is its own reference, and the KL is 0.
        temperature: of sampling; both distributions are tempered alike.
        max_tokens: cells of a micro-batch.
        max_prompt_tokens: at which the sampler cut prompts.

    Returns:
        [groups][K].
    """
    out = [[0.0] * size for size in groups.sizes()]
    if reference is None:
        return out
    longest = max(len(ids) for row in groups.column("response_ids") for ids in row)
    drawn = groups.column("logprobs")
    data, _ = TrainingData.of(
        policy,
        groups,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=longest,
        train="response",  # as `drawn`: what the policy wrote
    )
    for numbers in data.all_micro_batches(max_tokens):
        batch = data.collate(numbers).to(policy.device)
        reference.count(data.reading(numbers))
        theirs = (reference.logprobs(batch, temperature) * batch.response_mask).sum(-1).tolist()
        for value, number, group in zip(theirs, batch.responses.tolist(), batch.groups.tolist(), strict=True):
            row, k = data.encoded[group].index, number - data.first_response[group]
            out[row][k] = sum(drawn[row][k]) - value
    return out
