"""REINFORCE++: no groups; the KL is taken off each token's reward, and advantages are normalised over the round.

Hu et al. 2025 (arXiv 2501.03262), section 3. One sample of a prompt is enough: the round is its baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignkit.plugin import (
    Batch,
    ConfigError,
    Groups,
    MetricSpec,
    PolicyOptimizer,
    Term,
    gae,
    k1,
    score_at_last,
    take_present,
    whiten,
)
from alignkit_grpo.surrogate import DIAGNOSTICS, LOGS, group_metrics


def reward_to_go(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """A_t = r - beta sum_{i >= t} KL(i) on the tokens of a response, 0 elsewhere; no discount.

    Args:
        scores: [responses].
        kl: [responses, tokens], k1 in nats.
        mask: [responses, tokens] response_mask.
        kl_coef: beta.
    """
    rewards = score_at_last(scores, mask) - kl_coef * kl.where(mask.bool(), 0)
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, gae_lambda=1.0)[0]


@dataclass(frozen=True)
class ReinforcePP(PolicyOptimizer):
    """REINFORCE++.

    Args:
        loss: "clipped_policy"; its ranges are its own parameters.
        samples_per_prompt: any number; siblings are not compared with one another.
        prompts_per_round: with `samples_per_prompt` the batch over which advantages are normalised.
        batch_size: prompts per step.
        kl_coef: beta of the KL (k1) in each token's reward.
    """

    loss: Any = "clipped_policy"
    samples_per_prompt: int = 4
    prompts_per_round: int = 64
    rounds: int = 100
    batch_size: int = 32
    learning_rate: float = 5e-7
    kl_coef: float = 0.01

    search: ClassVar[Mapping[str, Any]] = {**PolicyOptimizer.search, "kl_coef": (1e-3, 0.3, "log")}
    logs: ClassVar[Mapping[str, MetricSpec]] = LOGS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_prompt < 1 or self.kl_coef < 0:
            what = "needs 1 sample of a prompt or more, and no negative kl_coef"
            raise ConfigError(what, where="reinforce_pp")

    def terms(self) -> Mapping[str, Term]:
        return {"policy_loss": Term(reduction="token"), **DIAGNOSTICS}

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
        """Advantages [responses, tokens], whitened over the round's tokens; a response without a reward is left out.

        Raises:
            DataError: no response has a reward.
        """
        groups, scores, mask = take_present(groups, present), rewards[present], response_mask[present]
        kl = torch.zeros_like(logprobs) if ref_logprobs is None else k1(logprobs, ref_logprobs)
        raw = reward_to_go(scores, kl[present], mask, self.kl_coef)
        metrics = group_metrics(scores, groups.sizes())
        return Batch(groups, {"advantages": whiten(raw, mask)}, metrics)
