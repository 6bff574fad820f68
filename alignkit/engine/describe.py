"""What is said of a round: lengths, ends, rewards, and the KL to the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.engine.known import Known
from alignkit.engine.reference import kl_means
from alignkit.engine.training_data import TrainingData
from alignkit.groups import Groups


@dataclass(frozen=True)
class Describe:
    """The metrics of a round, before `prepare` adds its own.

    Args:
        sampling: of the policy that samples and of the reference, at the temperature of sampling.
        reward: name of the reward being optimised, or None.
        samples: whether the method draws from the policy's own distribution; a KL is of such samples.
        probes: responses that the KL is measured on, where `prepare` did not need it for all.
    """

    sampling: Known
    reward: str | None
    samples: bool
    probes: int = 32

    def __call__(
        self, groups: Groups, data: TrainingData, known: Mapping[str, Tensor], *, fresh: bool = True
    ) -> dict[str, float]:
        """Numbers by name, see docs/metrics.md.

        Args:
            groups: the round's.
            data: the same, as the policy reads them.
            known: tensors worked out before, by name.
            fresh: whether the policy of this moment sampled them; no KL is measured on what it has learned since.
        """
        lengths = [len(r) for g in data.encoded for r in g.responses]
        ends = data.ended(self.sampling.models.policy.chat.end_ids)
        out = {"response_length": sum(lengths) / len(lengths), "eos_rate": float(ends.float().mean())}
        for name in groups.reward_names():
            values, present = groups.rewards(name)
            flat = [v for vs, ps in zip(values, present, strict=True) for v, p in zip(vs, ps, strict=True) if p]
            kept = torch.tensor(flat, dtype=torch.float64)  # of 1e8 and 1e8 + 1, float32 makes one number
            label = "reward" if name == self.reward else f"reward_{name}"
            if len(kept):
                out |= {f"{label}_mean": float(kept.mean()), f"{label}_std": float(kept.std(unbiased=False))}
        return out | (self._kl(data, known) if fresh and self.samples else {})

    def _kl(self, data: TrainingData, known: Mapping[str, Tensor]) -> dict[str, float]:
        """Of all responses where their log-probs are known, else of a few."""
        if "logprobs" in known and "ref_logprobs" in known:
            return kl_means(known["logprobs"], known["ref_logprobs"], data.response_mask)
        if self.sampling.models.reference is None:
            return {}
        few = data.first(self.probes)
        found = self.sampling.work_out(
            few, few.all_micro_batches(self.sampling.max_tokens), ("logprobs", "ref_logprobs")
        )
        return kl_means(found["logprobs"], found["ref_logprobs"], few.response_mask)


SAID = ("reward_mean", "kl_per_sequence", "eos_rate")
"""What of a round's metrics is said in its one line."""


def said(metrics: Mapping[str, float]) -> str:
    """The metrics worth a line."""
    return ", ".join(f"{name} {value:.3g}" for name, value in metrics.items() if name in SAID)
