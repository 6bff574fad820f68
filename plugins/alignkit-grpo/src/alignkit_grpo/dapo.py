"""DAPO: GRPO with a wider range above 1, the loss averaged over tokens, and prompts that can be told apart.

Yu et al. 2025 (arXiv 2503.14476), section 3: clip-higher, dynamic sampling, token-level loss, overlong reward shaping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from alignkit.plugin import Batch, ConfigError, Groups, Reduction, as_scored, is_constant
from alignkit_grpo.grpo import GRPO


def overlong_penalty(lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """0 up to limit - buffer tokens, falling to -1 at the limit (eq. 13).

    Args:
        lengths: [responses], tokens.
        limit: the longest response there may be.
        buffer: tokens below it over which the penalty grows.
    """
    return -((lengths - (limit - buffer)) / buffer).clamp(0, 1)


@dataclass(frozen=True)
class DAPO(GRPO):
    """Decoupled clip and dynamic sampling policy optimization. Defaults of section 4.1.

    Args:
        loss: the range is 1 - 0.2 to 1 + 0.28.
        batch_size: prompts per step: 16 steps for each round of 512.
        kl_coef: none.
        reduction: every token of the step weighs the same.
        dynamic_sampling: sample anew for prompts whose rewards are all equal, and leave those out that stay so. The
            paper draws other prompts in their place.
        overlong_buffer: tokens before the length limit over which up to 1 is taken off the reward (the paper: 4096 of
            20480, beside a reward of 1 or -1); 0: none.
    """

    loss: Any = "clipped_policy(clip_high=0.28)"
    samples_per_prompt: int = 16
    prompts_per_round: int = 512
    batch_size: int = 32
    kl_coef: float = 0.0
    reduction: Reduction = "token"
    dynamic_sampling: bool = True
    overlong_buffer: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlong_buffer < 0:
            raise ConfigError(f"overlong_buffer={self.overlong_buffer} must not be negative", where="dapo")

    def check_use(self, *, max_new_tokens: int, losses: Sequence[Any]) -> None:
        if self.overlong_buffer > max_new_tokens:
            raise ConfigError(
                f"overlong_buffer={self.overlong_buffer} with max_new_tokens={max_new_tokens}",
                where="dapo",
                effect="Every response would lose most of a point for its length, the shortest as well.",
                remedy="give a buffer within the limit (the paper: 4096 of 20480), or raise max_new_tokens",
            )

    def keep(self, groups: Groups, reward_name: str) -> list[bool] | None:
        values, present = groups.rewards(reward_name)
        seen = [[v for v, there in zip(*row, strict=True) if there] for row in zip(values, present, strict=True)]
        return [not is_constant(as_scored(row)) for row in seen] if self.dynamic_sampling else None

    def prepare(  # type: ignore[override]  # the engine passes what is named here
        self,
        groups: Groups,
        state: Mapping[str, Any],
        *,
        rewards: Tensor,
        present: Tensor,
        response_mask: Tensor,
        max_new_tokens: int,
    ) -> Batch:
        """As GRPO's, on rewards from which overlong responses have lost their penalty."""
        if self.overlong_buffer:
            rewards = rewards + overlong_penalty(response_mask.sum(1), max_new_tokens, self.overlong_buffer)
        return super().prepare(groups, state, rewards=rewards, present=present, response_mask=response_mask)
