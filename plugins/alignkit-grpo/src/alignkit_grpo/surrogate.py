"""What the three methods share: the loss on tokens, and what is said of the groups of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignkit.plugin import RATIOS, MetricSpec, Term, clipped_surrogate, is_constant

DIAGNOSTICS = {"ratio": Term(0.0, "token"), "clip_fraction": Term(0.0, "token")}
"""The terms of `clipped_policy` that are for the eye."""

LOGS: Mapping[str, MetricSpec] = {
    "policy_loss": MetricSpec("the policy term", "as `loss`: it says nothing of progress"),
    **RATIOS,
    "kl": MetricSpec("the KL to the reference in the loss (k3), reduced as the loss", unit="nats", better="down"),
    "group_reward_std": MetricSpec(
        "mean over prompts of the spread among a prompt's responses", "near 0: groups teach nothing", better="up"
    ),
    "degenerate_groups": MetricSpec(
        "share of prompts whose responses all score alike: no advantage, no gradient",
        "above a half: prompts are too easy or too hard, or the reward has too few values",
        unit="share",
        better="down",
    ),
    "responses": MetricSpec("responses learned from in the round"),
}
"""What the methods log beyond what every method logs."""


def clipped_policy(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> dict[str, Tensor]:
    """max(-A rho, -A clip(rho, 1 - low, 1 + high)), rho = pi / pi_old (Schulman et al. 2017, eq. 7), with what it did.

    Args:
        logprobs: [responses, tokens], nats, at the sampler's temperature.
        old_logprobs: the same before the round's first step.
        advantages: [responses, tokens].
        clip_low: epsilon below 1.
        clip_high: epsilon above 1; DAPO's "clip-higher" is 0.28 (Yu et al. 2025, eq. 10).

    Returns:
        policy_loss, and for the eye ratio and clip_fraction (where clipping decided), each [responses, tokens].
    """
    ratio = torch.exp(logprobs - old_logprobs)
    loss = clipped_surrogate(ratio, advantages, clip_low, clip_high)
    return {"policy_loss": loss, "ratio": ratio.detach(), "clip_fraction": (loss > -advantages * ratio).to(ratio.dtype)}


def reinforce(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> dict[str, Tensor]:
    """-A log pi (Williams 1992), and for the eye the ratio pi / pi_old. Arguments as `clipped_policy`."""
    return {"policy_loss": -advantages * logprobs, "ratio": torch.exp(logprobs - old_logprobs).detach()}


def centred(scores: Tensor) -> Tensor:
    """r - mean r of one group [K]; exactly 0 where they are equal up to rounding, which is no reason to prefer one."""
    return (scores - scores.mean()).where(~is_constant(scores), 0)


def group_metrics(scores: Tensor, sizes: Sequence[int]) -> dict[str, float]:
    """What a round has to teach: the groups' mean standard deviation, and the share of those that have none.

    Args:
        scores: [responses], group after group.
        sizes: how many responses each group has.
    """
    spreads = torch.stack([part.std(correction=0) for part in scores.split(list(sizes))])
    flat = torch.stack([is_constant(part) for part in scores.split(list(sizes))])
    return {
        "group_reward_std": float(spreads.mean()),
        "degenerate_groups": float(flat.float().mean()),
        "responses": float(len(scores)),
    }
