"""Losses with one fault each. Above each stands the check that must find it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LOSSES: dict[str, tuple[str, Callable[..., Any]]] = {}
"""Name -> (check, loss)."""


def caught_by(check: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Plant the loss below for this check."""

    def plant(loss: Callable[..., Any]) -> Callable[..., Any]:
        LOSSES[loss.__name__] = (check, loss)
        return loss

    return plant


def gap(w: Tensor, l: Tensor, ref_w: Tensor, ref_l: Tensor) -> Tensor:  # noqa: E741
    return (w - ref_w) - (l - ref_l)


@caught_by("unreduced")
def takes_its_own_mean(chosen_rewards, rejected_rewards):
    return -logsigmoid(chosen_rewards - rejected_rewards).mean()


@caught_by("unreduced")
def one_axis_too_many(logprobs):
    return -logprobs.unsqueeze(-1)


@caught_by("unreduced")
def one_token_short(logprobs):
    return -logprobs[:, 1:]


@caught_by("no-coupling-across-the-batch")
def whitens_over_the_batch(logprobs, advantages):
    return -(advantages - advantages.mean()) * logprobs


@caught_by("no-coupling-across-the-batch")
def sorts_over_the_batch(chosen_logprobs, rejected_logprobs):
    """TRL's AOT."""
    return -logsigmoid(0.1 * (chosen_logprobs.sort().values - rejected_logprobs.sort().values))


@caught_by("no-coupling-across-the-batch")
def drops_the_zeros_of_its_batch(chosen_logprobs, rejected_logprobs):
    """CPL's reference: a mean over those that are not 0, here as a factor."""
    loss = torch.relu(5 - (chosen_logprobs - rejected_logprobs))
    return loss * len(loss) / (loss != 0).sum()


@caught_by("gradient-stays-in-its-element")
def value_cancels_and_gradient_does_not(chosen_rewards, rejected_rewards):
    shared = chosen_rewards.mean()
    return -logsigmoid(chosen_rewards - rejected_rewards) + shared - shared.detach()


@caught_by("micro-batch-invariance")
def divides_by_the_tokens_of_its_micro_batch(logprobs, response_mask):
    return -logprobs * response_mask.numel() / response_mask.sum()


@caught_by("batch-order")
def weighs_by_place(chosen_rewards, rejected_rewards):
    return -logsigmoid(chosen_rewards - rejected_rewards) * torch.arange(1, len(chosen_rewards) + 1)


@caught_by("hidden-positions")
def forgets_the_mask(logprobs, ref_logprobs, response_mask, labels):
    margin = (logprobs - ref_logprobs).sum(-1)
    return -logsigmoid(0.1 * torch.where(labels == 1, margin, -margin)) + 0 * response_mask[:, 0]


@caught_by("hidden-positions")
def counts_padding_in_a_mean(logprobs, labels):
    """HIR's reference: `.mean(-1)` over ignored positions too."""
    return -logprobs.mean(-1) * (2.0 * labels - 1)


@caught_by("hidden-positions")
def padded_scores_take_part(rewards, ranks, group_mask):
    best = ranks.masked_fill(~group_mask, 99).argmin(-1, keepdim=True)
    return -rewards.log_softmax(-1).gather(-1, best).squeeze(-1)


@caught_by("padding-side")
def takes_the_first_tokens(logprobs, response_mask):
    lengths = response_mask.sum(-1, keepdim=True)
    early = torch.arange(logprobs.shape[1]) < (lengths + 1) // 2
    return -logprobs * early


@caught_by("batch-composition")
def divides_by_the_width(logprobs, response_mask):
    return -(logprobs * response_mask).sum(-1) / logprobs.shape[1]


@caught_by("denominators")
def divides_by_no_token(logprobs, response_mask, labels):
    mean = torch.where(response_mask, logprobs, 0).sum(-1) / response_mask.sum(-1)
    return -mean * (2.0 * labels - 1)


@caught_by("denominators")
def ranks_a_response_that_is_alone(rewards, ranks, group_mask):
    ordered = rewards.gather(1, ranks.masked_fill(~group_mask, 99).argsort(1))
    there = group_mask.sort(1, descending=True).values
    pairs = torch.where(there[:, 1:], -logsigmoid(ordered[:, :-1] - ordered[:, 1:]), 0).sum(1)
    return pairs / (group_mask.sum(1) - 1)


@caught_by("inputs-unchanged")
def writes_into_its_input(logprobs, advantages):
    advantages.clamp_(-1, 1)
    return -advantages * logprobs


@caught_by("no-gradient-into-constants")
def learns_the_reference(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs):
    ref_chosen_logprobs.requires_grad_()
    return -logsigmoid(gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs))


@caught_by("no-gradient-into-constants")
def advantage_with_a_gradient(logprobs, old_logprobs, values, returns):
    advantages = returns - values  # .detach() is missing
    return {
        "policy_loss": -torch.exp(logprobs - old_logprobs) * advantages,
        "value_loss": 0.5 * (values - returns) ** 2,
    }


@caught_by("deterministic")
def draws_noise(chosen_rewards, rejected_rewards):
    return -logsigmoid(chosen_rewards - rejected_rewards + 0.01 * torch.randn(len(chosen_rewards)))


@caught_by("deterministic")
def moves_the_global_seed(chosen_rewards, rejected_rewards):
    torch.manual_seed(0)
    return -logsigmoid(chosen_rewards - rejected_rewards)


@caught_by("has-a-gradient")
def detached(chosen_rewards, rejected_rewards):
    return -logsigmoid(chosen_rewards - rejected_rewards).detach()


@caught_by("every-logprob-counts")
def forgets_half_of_the_reference(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs):
    return -logsigmoid(0.1 * gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, 0 * ref_rejected_logprobs))


@caught_by("finite-and-exact-in-float32")
def exponentiates_and_takes_the_log(logprobs):
    return -torch.log(torch.exp(logprobs - 100)) - 100


@caught_by("finite-and-exact-in-float32")
def cancels_large_numbers(chosen_rewards, rejected_rewards):
    return -logsigmoid((1e6 + chosen_rewards) - (1e6 + rejected_rewards))


@caught_by("finite-in-bf16")
def divides_by_what_bf16_rounds_to_nothing(chosen_rewards, rejected_rewards):
    odd = 1.001 + 0 * chosen_rewards
    return -logsigmoid(chosen_rewards - rejected_rewards) * (1e-3 / (odd - 1))


@caught_by("finite-far-away")
def log_of_a_sigmoid(chosen_logprobs, rejected_logprobs):
    return -torch.log(torch.sigmoid(0.1 * (chosen_logprobs - rejected_logprobs)))


@caught_by("gradcheck")
def straight_through(chosen_rewards, rejected_rewards):
    margin = chosen_rewards - rejected_rewards
    return -logsigmoid(margin) + (margin - margin.detach())


@caught_by("starts-at-the-reference")
def reference_of_the_other_response(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs):
    return -logsigmoid(0.1 * gap(chosen_logprobs, rejected_logprobs, ref_rejected_logprobs, ref_chosen_logprobs))


@caught_by("starts-at-the-reference")
def reference_added(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs):
    return -logsigmoid(0.1 * gap(chosen_logprobs, rejected_logprobs, -ref_chosen_logprobs, -ref_rejected_logprobs))


@caught_by("direction")
def prefers_the_rejected(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs):
    return -logsigmoid(-0.1 * gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs))


@caught_by("direction")
def climbs_down(logprobs, old_logprobs, advantages):
    return advantages * torch.exp(logprobs - old_logprobs)


@caught_by("direction")
def ranks_the_wrong_way(rewards, ranks, group_mask):
    best = ranks.masked_fill(~group_mask, -1).argmax(-1, keepdim=True)
    masked = rewards.masked_fill(~group_mask, -torch.inf)
    return -masked.log_softmax(-1).gather(-1, best).squeeze(-1)


@caught_by("direction")
def labels_turned_round(logprobs, ref_logprobs, response_mask, labels):
    margin = torch.where(response_mask, logprobs - ref_logprobs, 0).sum(-1)
    return -logsigmoid(0.1 * torch.where(labels == 0, margin, -margin))


@caught_by("direction")
def unlearns_text(logprobs):
    return logprobs


@caught_by("values-learn-their-target")
def flees_the_return(values, returns, logprobs):
    return {"policy_loss": -logprobs, "value_loss": -0.5 * (values - returns) ** 2}


@caught_by("soft-labels-are-the-mean")
def soft_label_scales_the_margin(chosen_rewards, rejected_rewards, preference_prob):
    return -logsigmoid((2 * preference_prob - 1) * (chosen_rewards - rejected_rewards))


@caught_by("soft-labels-are-the-mean")
def soft_label_weighs_the_loss(chosen_rewards, rejected_rewards, preference_prob):
    return -preference_prob * logsigmoid(chosen_rewards - rejected_rewards)
