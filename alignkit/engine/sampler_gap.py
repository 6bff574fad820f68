"""How far the sampler's record of its tokens is from the training path: measured each round, and weighed where that is
asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.engine.training_data import TrainingData
from alignkit.functional import truncated_importance
from alignkit.metrics.base import Metric, alone
from alignkit.metrics.specs import ROUNDS

SAMPLER = "sampler"
"""What the numbers' names begin with."""

COMPARED = frozenset(f"{SAMPLER}_{name}" for name in ("mismatch", "mismatch_max", "kl"))
"""Their names."""


class SamplerGap(Metric):
    """log π as sampled minus log π on the training path, of each sampled token: the mean of its size, the largest, and
    its mean (the estimator k1 of their KL); nats."""

    spec = ROUNDS["sampler_mismatch"]
    apart: Tensor
    largest: Tensor
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("apart", "total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("largest", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    def update(self, sampled: Tensor, logprobs: Tensor, known: Tensor) -> None:
        """Count the tokens whose record is known.

        Args:
            sampled: [R, T], as recorded.
            logprobs: [R, T], on the training path, from before the first step.
            known: [R, T] bool.
        """
        gaps = (sampled - logprobs.detach())[known].double()
        if len(gaps):
            self.apart += gaps.abs().sum()
            self.total += gaps.sum()
            self.count += len(gaps)
            self.largest = torch.maximum(self.largest, gaps.abs().max())

    def compute(self) -> dict[str, Tensor]:
        if not self.count:
            return {}
        return {"mismatch": self.apart / self.count, "mismatch_max": self.largest, "kl": self.total / self.count}


def mismatch(data: TrainingData, logprobs: Tensor) -> dict[str, float]:
    """See `SamplerGap`; empty where the sampler left no record.

    Args:
        data: the round's samples.
        logprobs: [R, T] on the training path, at the sampler's temperature, from before the first step.
    """
    gap = alone(SamplerGap())
    sampled, known = data.sampled_logprobs()
    gap.update(sampled, logprobs, known)
    return {f"{SAMPLER}_{name}": float(value) for name, value in gap.compute().items()}


def weighed(advantages: Tensor, data: TrainingData, logprobs: Tensor, cap: float) -> Tensor:
    """Advantages [R, T] times min(pi / mu, C) of their tokens; as they are where mu is unknown.

    Args:
        advantages: [R, T], or [R, 1] that stand for all tokens.
        data: what is learned from.
        logprobs: see `mismatch`.
        cap: C.
    """
    sampled, known = data.sampled_logprobs()
    return advantages * truncated_importance(logprobs, sampled.where(known, logprobs), cap)


__all__ = ["COMPARED", "SAMPLER", "SamplerGap", "mismatch", "weighed"]
