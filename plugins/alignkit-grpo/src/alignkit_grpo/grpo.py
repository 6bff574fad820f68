"""GRPO: a response's advantage is its reward, normalised over the responses to the same prompt.

Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), section 4.1. Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) is the same
with `scale=False, reduction="constant", kl_coef=0.0`; DAPO has a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignkit.plugin import Batch, ConfigError, Groups, MetricSpec, PolicyOptimizer, Reduction, Term, k3, take_present
from alignkit_grpo.surrogate import DIAGNOSTICS, LOGS, centred, group_metrics


def group_advantages(scores: Tensor, sizes: Sequence[int], scale: bool = True, eps: float = 1e-4) -> Tensor:
    """A_i = (r_i - mean r) / (std r + eps) within each group (section 4.1.2); 0 where they are equal up to rounding.

    Args:
        scores: [responses], group after group.
        sizes: how many responses each group has.
        scale: False leaves the deviation out (Dr. GRPO): it gives prompts that are nearly always or nearly never solved
            a larger weight than the others.
        eps: beside the deviation, which is the unbiased one (n - 1); both as in TRL and verl, the paper says neither.

    Returns:
        [responses].
    """
    parts = []
    for part in scores.split(list(sizes)):
        apart = centred(part)
        parts.append(apart / (part.std() + eps) if scale and len(part) > 1 else apart)
    return torch.cat(parts)


@dataclass(frozen=True)
class GRPO(PolicyOptimizer):
    """Group relative policy optimization. Defaults of DeepSeekMath (section 4.2) where it gives them.

    Args:
        loss: "clipped_policy"; its ranges are its own parameters.
        samples_per_prompt: G.
        prompts_per_round: 16 prompts of 64 responses make the paper's batch of 1024.
        batch_size: 0: one step per round ("a single update following each exploration stage").
        kl_coef: beta of the k3 estimator in the loss; 0 needs no reference.
        scale: divide by the group's standard deviation.
        reduction: "sequence": mean over the tokens of a response, then over responses (GRPO). "token": mean over all
            tokens of the step (DAPO). "constant": sum over tokens / `constant`, mean over responses (Dr. GRPO).
        constant: of that reduction, tokens: the longest response there may be.
    """

    loss: Any = "clipped_policy"
    samples_per_prompt: int = 64
    prompts_per_round: int = 16
    rounds: int = 100
    batch_size: int = 0
    learning_rate: float = 1e-6
    kl_coef: float = 0.04
    scale: bool = True
    reduction: Reduction = "sequence"
    constant: float = 1024.0

    search: ClassVar[Mapping[str, Any]] = {**PolicyOptimizer.search, "epochs": (1, 4)}
    logs: ClassVar[Mapping[str, MetricSpec]] = LOGS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_prompt < 2 or self.kl_coef < 0:
            raise ConfigError("needs 2 or more samples of a prompt, and no negative kl_coef", where=type(self).__name__)

    @property
    def on_policy(self) -> bool:
        return True

    def terms(self) -> Mapping[str, Term]:
        kl = {"kl": Term(self.kl_coef, self.reduction, self.constant)} if self.kl_coef else {}
        return {"policy_loss": Term(1.0, self.reduction, self.constant), **kl, **DIAGNOSTICS}

    def extra_losses(self) -> Mapping[str, Callable[..., Tensor]]:
        return {"kl": k3} if self.kl_coef else {}

    def prepare(  # the engine passes what is named here
        self, groups: Groups, state: Mapping[str, Any], *, rewards: Tensor, present: Tensor, response_mask: Tensor
    ) -> Batch:
        """Advantages [responses, tokens], the same on every token; a response without a reward is left out.

        Raises:
            DataError: no response has a reward.
        """
        groups, scores = take_present(groups, present), rewards[present]
        sizes = groups.sizes()
        advantages = group_advantages(scores, sizes, self.scale).unsqueeze(1) * response_mask[present]
        return Batch(groups, {"advantages": advantages}, group_metrics(scores, sizes))
