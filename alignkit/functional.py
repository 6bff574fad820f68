"""Pure functions that methods share: masked statistics, KL estimators, GAE, clipping. The only copy of each.

Shapes: N elements; R responses; T tokens of the longest response (padded on the right). A mask is bool (or 0/1) and has
the shape of what it masks; what it hides may be anything, NaN included, and changes neither value nor gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from alignkit.errors import ConfigError, DataError

ScoreAt = Literal["last", "after_eos"]


def check_shapes(**tensors: Tensor) -> None:
    """Refuse tensors of different shapes, which PyTorch would broadcast into a wrong number.

    Raises:
        ConfigError: naming each tensor with its shape.
    """
    if len({t.shape for t in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in tensors.items())
        raise ConfigError(f"shapes differ: {shapes}", remedy="align them; nothing is broadcast here")


# -- masked statistics -------------------------------------------------------------------------------------------------


def masked_sum(x: Tensor, mask: Tensor | None, dim: int | None = None) -> Tensor:
    """Sum of the elements that the mask shows.

    Args:
        x: any shape.
        mask: the same shape; None shows all.
        dim: the axis to sum over; None sums over all.
    """
    if mask is not None:
        check_shapes(x=x, mask=mask)
        x = x.where(mask.bool(), 0)  # not x * mask: NaN * 0 is NaN
    return x.sum() if dim is None else x.sum(dim)


def masked_mean(x: Tensor, mask: Tensor | None, dim: int | None = None) -> Tensor:
    """Mean of the elements that the mask shows; 0 where it shows none (an empty response), so that no NaN arises.

    Args:
        x: any shape.
        mask: the same shape; None shows all.
        dim: the axis to average over; None averages over all.
    """
    shown = torch.ones_like(x) if mask is None else mask.to(x.dtype)
    count = shown.sum() if dim is None else shown.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_var(x: Tensor, mask: Tensor | None) -> Tensor:
    """Biased variance (divided by n, not n - 1) of the elements that the mask shows.

    Args:
        x: any shape.
        mask: the same shape; None shows all.
    """
    centred = x - masked_mean(x, mask)
    # Hidden first, squared then: the gradient of NaN^2 would be NaN even where it is hidden afterwards.
    return masked_mean((centred if mask is None else centred.where(mask.bool(), 0)) ** 2, mask)


ROUNDING = 16
"""Spacings of a number's dtype that equal numbers may lie apart after some arithmetic."""


def is_constant(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Whether the elements that the mask shows are all equal, up to rounding: their spread would then be noise.

    A mean of equal numbers is off by a rounding error, and so may the numbers be that somebody worked out; what divides
    by the spread would blow it up to the size of a real difference.

    Args:
        x: any shape, floating point.
        mask: the same shape; None shows all.

    Returns:
        a bool scalar; True of fewer than 2 elements.
    """
    if mask is not None:
        check_shapes(x=x, mask=mask)
        x = x[mask.bool()]
    if x.numel() < 2:
        return torch.ones((), dtype=torch.bool, device=x.device)
    low, high = x.detach().aminmax()
    largest = torch.maximum(low.abs(), high.abs())
    return high - low <= ROUNDING * torch.finfo(x.dtype).eps * largest


def as_scored(scores: Sequence[float]) -> Tensor:
    """Scores in the type that they were computed in, as far as they show it: `is_constant` goes by its rounding.

    A model's are float32: each is such a number, and some is finer than 1/256. Others are of float64: of 1e8 and
    1e8 + 1 float32 would make one number.

    Args:
        scores: [N].

    Returns:
        [N] float32 or float64, the same numbers.
    """
    exact = torch.tensor(list(scores), dtype=torch.float64)
    rounded, steps = exact.float(), exact * 256
    by_a_model = bool((rounded.double() == exact).all()) and bool((steps != steps.round()).any())
    return rounded if by_a_model else exact


def whiten(x: Tensor, mask: Tensor | None = None, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps) with the biased variance, as in OpenAI's lm-human-preferences (`utils.core.whiten`).

    Numbers that are equal up to rounding (`is_constant`) have no spread: they come out as 0 (as their mean where that
    is kept).

    Args:
        x: [N] or [R, T].
        mask: the same shape; None shows all. What it hides comes out as 0.
        shift_mean: False keeps the mean where it was (rewards: only their scale is changed).
        eps: keeps a constant input finite.

    Returns:
        the shape of `x`.

    Raises:
        ConfigError: fewer than 2 elements shown, which have no spread.
    """
    count = x.numel() if mask is None else int(mask.sum())
    if count < 2:
        raise ConfigError(f"whitening needs 2 or more elements, not {count}", remedy="use more responses in a round")
    x = x if mask is None else x.where(mask.bool(), 0)
    mean = masked_mean(x, mask)
    white = (x - mean) * torch.rsqrt(masked_var(x, mask) + eps)
    white = white.where(~is_constant(x, mask), 0)
    white = white if shift_mean else white + mean
    return white if mask is None else white.where(mask.bool(), 0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect value model, 0 a constant one, negative worse than that.

    Args:
        values: [R, T] or [N], in units of the reward.
        returns: the same shape.
        mask: the same shape; None shows all.

    Returns:
        scalar; 0 where the returns do not vary beyond rounding.
    """
    check_shapes(values=values, returns=returns)
    total = masked_var(returns, mask)
    share = 1 - masked_var(returns - values, mask) / total.clamp(min=torch.finfo(total.dtype).tiny)
    return share.where((total > 0) & ~is_constant(returns, mask), 0)


# -- KL estimators -----------------------------------------------------------------------------------------------------


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log(pi / ref) of the sampled token: unbiased for KL(pi || ref) under pi, of either sign (Schulman 2020, k1).

    Args:
        logprobs: any shape, nats, under the policy that sampled.
        ref_logprobs: the same shape, nats.
    """
    check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log(pi / ref)^2 / 2: never negative, biased (Schulman 2020, k2). Arguments as `k1`."""
    return 0.5 * k1(logprobs, ref_logprobs) ** 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """ref / pi - 1 + log(pi / ref): never negative and unbiased (Schulman 2020, k3). Arguments as `k1`."""
    log_ratio = k1(logprobs, ref_logprobs)
    return torch.expm1(-log_ratio) + log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


# -- scores on tokens, advantages --------------------------------------------------------------------------------------


def last_token_index(mask: Tensor) -> Tensor:
    """Index of the last token that each row of the mask shows.

    Args:
        mask: [R, T].

    Returns:
        [R] int64; -1 for a row that shows none. Never index with that -1: it would be the last column.
    """
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.bool() * places).amax(1) - 1


def score_index(mask: Tensor, score_at: ScoreAt = "last", ended: Tensor | None = None) -> Tensor:
    """Where a response's score lands.

    "last" is the last token of the response, its EOS if it has one. "after_eos" reproduces N+ (Huang et al. 2024, the
    TL;DR details) and TRL, min(first padding, T - 1) with T the longest response there may be: the token after EOS.
    Where the batch is only as wide as its own longest response, that depends on a response's neighbours: give `ended`,
    and a column more than there are tokens.

    Args:
        mask: [R, T] response_mask.
        score_at: "last" or "after_eos".
        ended: [R] bool, which responses ended by themselves: they alone have a token after, and the others' score is on
            their last. None takes every response that is shorter than T for one.

    Returns:
        [R] int64.

    Raises:
        DataError: "last" for a response without a token.
        ConfigError: `ended` without a column for the token after the longest.
    """
    last = last_token_index(mask)
    if score_at == "after_eos" and ended is not None:
        after = last + ended.to(last.dtype)
        if bool((after >= mask.shape[1]).any()):
            raise ConfigError("no column for the token after EOS", where="score_index", remedy="pad the mask by one")
        return after.clamp(min=0)
    if score_at == "after_eos":
        return (last + 1).clamp(max=mask.shape[1] - 1)
    if score_at != "last":
        raise ConfigError(f"score_at={score_at!r}", remedy='use "last" or "after_eos"')
    if bool((last < 0).any()):
        raise DataError("a response without tokens cannot carry a score", effect="Its score would land on padding.")
    return last


def score_at_last(scores: Tensor, mask: Tensor, score_at: ScoreAt = "last", ended: Tensor | None = None) -> Tensor:
    """Each response's score on one token, zero elsewhere.

    Args:
        scores: [R], raw scores.
        mask: [R, T] response_mask.
        score_at: see `score_index`.
        ended: see `score_index`.

    Returns:
        [R, T], dtype of `scores`.
    """
    rewards = scores.new_zeros(mask.shape)
    return rewards.scatter(1, score_index(mask, score_at, ended).unsqueeze(1), scores.unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16): A_t = delta_t + gamma lambda A_{t+1}.

    delta_t = r_t + gamma V_{t+1} - V_t; V after the last token is 0, and t + 1 is the next token that the mask shows.
    The return is A_t + V_t with A as it is here, before any whitening.

    Args:
        rewards: [R, T].
        values: [R, T], same units, V of the state in which token t is chosen.
        mask: [R, T] response_mask.
        gamma: discount per token, in [0, 1].
        gae_lambda: 1 is Monte Carlo (no bias from V), 0 is one-step TD.

    Returns:
        (advantages [R, T], returns [R, T]), both 0 outside the mask.
    """
    check_shapes(rewards=rewards, values=values, mask=mask)
    shown = mask.bool()
    advantages = torch.zeros_like(rewards)
    advantage = next_value = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * gae_lambda * advantage).where(shown[:, t], advantage)
        next_value = values[:, t].where(shown[:, t], next_value)
        advantages[:, t] = advantage
    advantages = advantages.where(shown, 0)
    return advantages, (advantages + values).where(shown, 0)


# -- losses by element -------------------------------------------------------------------------------------------------


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """max(-A ratio, -A clip(ratio, 1 - low, 1 + high)): the pessimistic surrogate (Schulman et al. 2017, eq. 7).

    Args:
        ratio: any shape, pi / pi_old.
        advantages: the same shape.
        clip_low: how far below 1 a ratio still counts.
        clip_high: how far above 1.

    Returns:
        the same shape, to be minimised.
    """
    check_shapes(ratio=ratio, advantages=advantages)
    if not (0 <= clip_low <= 1 and 0 <= clip_high < math.inf):
        what = f"a clip range of {clip_low} below 1 and {clip_high} above"
        raise ConfigError(what, where="clipped_surrogate", remedy="use 0 to 1 below, and a finite number from 0 above")
    return torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))


def truncated_importance(logprobs: Tensor, sampled_logprobs: Tensor, cap: float) -> Tensor:
    """min(pi / mu, C) of each token: what was drawn by mu is weighed as if it had been drawn by pi.

    Truncated importance sampling (Ionides 2008), on the tokens of a policy whose sampler rounds otherwise than its
    trainer (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training").

    Args:
        logprobs: log pi on the training path, from before the round's first step; nats.
        sampled_logprobs: log mu, as the sampler recorded it; nats.
        cap: C > 0.

    Returns:
        the weights, detached.
    """
    check_shapes(logprobs=logprobs, sampled_logprobs=sampled_logprobs)
    return torch.exp(logprobs - sampled_logprobs).detach().clamp(max=cap)


def logistic_ranking(difference: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(d - m): the negative log-likelihood of a Bradley-Terry comparison with margin m, finite for every d.

    Args:
        difference: any shape, score of the preferred minus score of the other.
        margin: how far apart they should be; the same shape, or a number.
    """
    return -torch.nn.functional.logsigmoid(difference - margin)


def preference_cross_entropy(difference: Tensor, prob: Tensor | float) -> Tensor:
    """-p log sigmoid(d) - (1 - p) log sigmoid(-d): cross-entropy of a comparison with a soft label, finite for every d.

    p = 1 is `logistic_ranking`; p = 1/2 pulls the difference to 0.

    Args:
        difference: any shape, how much better the first of the two is held to be (log-odds).
        prob: probability that it is the better one; the same shape, or a number.
    """
    logsigmoid = torch.nn.functional.logsigmoid
    return -prob * logsigmoid(difference) - (1 - prob) * logsigmoid(-difference)
