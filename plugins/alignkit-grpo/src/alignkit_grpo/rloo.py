"""RLOO: REINFORCE on whole responses, each with the mean reward of its siblings as its baseline.

Ahmadian et al. 2024 (arXiv 2402.14740, "Back to Basics"), section 3; Kool et al. 2019 for the baseline. The KL to the
reference is taken off the reward of the whole response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from alignkit.plugin import Batch, ConfigError, Groups, MetricSpec, PolicyOptimizer, Term, k1, masked_sum, take_present
from alignkit_grpo.grpo import group_advantages
from alignkit_grpo.surrogate import LOGS, group_metrics


def leave_one_out(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """A_i = r_i - mean of the group's other rewards (eq. 8); 0 for a response that is alone.

    Args:
        scores: [responses], group after group.
        sizes: how many responses each group has.

    Returns:
        [responses], as (r_i - mean r) k / (k - 1), which is the same.
    """
    factors = scores.new_tensor([k / max(k - 1, 1) for k in sizes for _ in range(k)])
    return group_advantages(scores, sizes, scale=False) * factors


@dataclass(frozen=True)
class RLOO(PolicyOptimizer):
    """REINFORCE leave-one-out.

    Args:
        loss: "reinforce", which is on-policy for the first step of a round only; with several steps a round
            "clipped_policy" corrects for the rest.
        samples_per_prompt: k; the paper compares 2 and 4.
        prompts_per_round: with `batch_size` 0 one step per round on all of them.
        kl_coef: beta of the KL (k1, summed over the response) in the reward.
    """

    loss: Any = "reinforce"
    samples_per_prompt: int = 4
    prompts_per_round: int = 128
    rounds: int = 100
    batch_size: int = 0
    learning_rate: float = 1e-6
    warmup_ratio: float = 0.03
    kl_coef: float = 0.03

    logs: ClassVar[Mapping[str, MetricSpec]] = LOGS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_prompt < 2 or self.kl_coef < 0:
            raise ConfigError("needs 2 samples of a prompt or more, and no negative kl_coef", where="rloo")

    def terms(self) -> Mapping[str, Term]:
        return {"policy_loss": Term(reduction="constant"), "ratio": Term(0.0, "token")}

    def prepare_arguments(self) -> tuple[str, ...]:
        return tuple(name for name in super().prepare_arguments() if self.kl_coef or name != "ref_logprobs")

    def prepare(  # the engine passes what is named here
        self,
        groups: Groups,
        state: Mapping[str, Any],
        *,
        rewards: Tensor,
        present: Tensor,
        logprobs: Tensor,
        response_mask: Tensor,
        ref_logprobs: Tensor | None = None,
    ) -> Batch:
        """Advantages [responses, tokens], the same on every token; a response without a reward is left out.

        Raises:
            DataError: no response has a reward.
        """
        groups, mask = take_present(groups, present), response_mask[present]
        sizes, scores = groups.sizes(), rewards[present]
        if ref_logprobs is not None:
            scores = scores - self.kl_coef * masked_sum(k1(logprobs, ref_logprobs)[present], mask, 1)
        advantages = leave_one_out(scores, sizes)
        return Batch(groups, {"advantages": advantages.unsqueeze(1) * mask}, group_metrics(rewards[present], sizes))
