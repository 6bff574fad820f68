"""GRPO: a response's advantage is its reward, normalised over the responses to the same prompt.

Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), section 4.1. Variants by option: Dr. GRPO (Liu et al. 2025, arXiv
2503.20783) is `scale=False, reduction="constant"` without KL; DAPO (Yu et al. 2025, arXiv 2503.14476) is
`loss=clipped_policy(clip_high=0.28), reduction="token", dynamic_sampling=True` without KL, and `overlong_buffer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkit.errors import ConfigError
from alignkit.functional import k3, take_present
from alignkit.optimizers import PolicyOptimizer, Reduction, Term
from alignkit.types import Batch, Groups
from alignkit_grpo.surrogate import group_metrics


def group_advantages(scores: Tensor, sizes: Sequence[int], scale: bool = True, eps: float = 1e-4) -> Tensor:
    """A_i = (r_i - mean r) / (std r + eps) within each group (section 4.1.2); exactly 0 where a group's are all equal.

    Args:
        scores: [responses], group after group.
        sizes: how many responses each group has.
        scale: False leaves the standard deviation out (Dr. GRPO): it would weigh easy and hard prompts up.
        eps: beside the deviation, which is the unbiased one (n - 1); both as in TRL and verl, the paper says neither.

    Returns:
        [responses].
    """
    parts = []
    for part in scores.split(list(sizes)):
        centred = (part - part.mean()).where(part.max() > part.min(), 0)
        parts.append(centred / (part.std() + eps) if scale and len(part) > 1 else centred)
    return torch.cat(parts)


def overlong_penalty(lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """0 up to limit - buffer tokens, falling to -1 at the limit (DAPO, eq. 13). lengths [responses], tokens."""
    return -((lengths - (limit - buffer)) / buffer).clamp(0, 1)


@dataclass(frozen=True)
class GRPO(PolicyOptimizer):
    """Group relative policy optimization. Defaults of DeepSeekMath, section 4.2, unless said otherwise.

    Args:
        loss: "clipped_policy"; its ranges are its own parameters.
        samples_per_prompt: G.
        prompts_per_round: 16 prompts of 64 responses are the paper's batch of 1024.
        batch_size: 0: one step per round ("a single update following each exploration stage").
        kl_coef: beta of the k3 estimator in the loss; 0 needs no reference.
        scale: divide by the group's standard deviation.
        reduction: "sequence": mean over the tokens of a response, then over responses (GRPO). "token": mean over all
            tokens of the step (DAPO). "constant": sum over tokens / `constant`, mean over responses (Dr. GRPO).
        constant: of that reduction: the longest response there may be, in tokens.
        dynamic_sampling: sample anew for prompts whose rewards are all equal, and leave those out that stay so (DAPO).
        overlong_buffer: tokens before the length limit over which up to 1 is taken off the reward; 0: none (DAPO).
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
    dynamic_sampling: bool = False
    overlong_buffer: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_prompt == 1 or self.kl_coef < 0 or self.overlong_buffer < 0:
            raise ConfigError("needs 2 samples of a prompt or more, and no negative coefficient", where="grpo")

    @property
    def on_policy(self) -> bool:
        return True

    def terms(self) -> Mapping[str, Term]:
        weights = {"policy_loss": 1.0, "ratio": 0.0, "clip_fraction": 0.0} | (
            {"kl": self.kl_coef} if self.kl_coef else {}
        )
        return {
            name: Term(weight, self.reduction if weight else "token", self.constant) for name, weight in weights.items()
        }

    def extra_losses(self) -> Mapping[str, Callable[..., Tensor]]:
        return {"kl": k3} if self.kl_coef else {}

    def keep(self, groups: Groups, reward_name: str) -> list[bool] | None:
        values, present = groups.rewards(reward_name)
        seen = [{v for v, there in zip(*row, strict=True) if there} for row in zip(values, present, strict=True)]
        return [len(distinct) > 1 for distinct in seen] if self.dynamic_sampling else None

    def prepare(  # the engine passes what is named here
        self,
        groups: Groups,
        state: Mapping[str, Any],
        *,
        rewards: Tensor,
        present: Tensor,
        response_mask: Tensor,
        max_new_tokens: int,
    ) -> Batch:
        """Advantages [responses, tokens], the same on every token; a response without a reward is left out.

        Raises:
            DataError: no response has a reward.
        """
        groups, scores, mask = take_present(groups, present), rewards[present], response_mask[present]
        sizes = [len(row["responses"]) for row in groups]
        metrics = group_metrics(scores, sizes)
        if self.overlong_buffer:
            scores = scores + overlong_penalty(mask.sum(1), max_new_tokens, self.overlong_buffer)
        advantages = group_advantages(scores, sizes, self.scale)
        return Batch(groups, {"advantages": advantages.unsqueeze(1) * mask}, metrics)
