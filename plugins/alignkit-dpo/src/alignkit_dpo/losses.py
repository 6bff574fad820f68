"""Losses of comparisons: each a function of the log-probs of two responses, [pairs] in, [pairs] out.

Log-probs are sums over the tokens of a response, in nats, unless a loss says "per token". Throughout,

    h = (log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l))

is by how much more than the reference the policy prefers the chosen response y_w to the rejected one y_l, and beta h is
the difference of their implied rewards (Rafailov et al. 2023, arXiv 2305.18290, eq. 5). Every loss is finite for every
finite h, and none drops a pair that it has already won.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignkit.plugin import ConfigError, check_range, check_shapes, logistic_ranking, preference_cross_entropy


def positive(where: str, **values: float) -> None:
    """Refuse a hyper-parameter that must be positive and finite and is not.

    Args:
        where: the loss.
        values: by name.

    Raises:
        ConfigError: naming the first.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name}={value} must be positive and finite", where=where)


def noise(where: str, label_smoothing: float, least: float = 0.0) -> None:
    """Refuse a share of wrong labels outside [least, 1/2).

    Raises:
        ConfigError: with the bounds.
    """
    if not least <= label_smoothing < 0.5:
        raise ConfigError(
            f"label_smoothing={label_smoothing} must be in [{least}, 0.5)",
            where=where,
            effect="At 1/2 a comparison says nothing, beyond it the other response would be the better one.",
        )


def log_ratio_gap(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """h of the module's docstring: each argument and the result [pairs], nats."""
    check_shapes(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def per_token(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Mean log-prob of a response's tokens, from the sum [pairs] and the number of tokens [pairs]."""
    check_shapes(logprobs=logprobs, lengths=lengths)
    return logprobs / lengths.clamp(min=1)


# -- with a reference --------------------------------------------------------------------------------------------------


def dpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    preference_prob: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-p log sigmoid(beta h) - (1 - p) log sigmoid(-beta h) (Rafailov et al. 2023, eq. 7, where p = 1).

    p is the soft label, moved towards 1/2 by the smoothing eps: p (1 - eps) + (1 - p) eps. With p = 1 that is cDPO
    (Mitchell 2023, "A note on DPO with noisy preferences").

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        preference_prob: [pairs], probability that the chosen one is better; 1 where the data gives none.
        beta: strength of the KL to the reference that the optimum trades against reward.
        label_smoothing: share of labels held to be wrong, in [0, 1/2).
    """
    positive("dpo", beta=beta)
    noise("dpo", label_smoothing)
    gap = log_ratio_gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    return preference_cross_entropy(beta * gap, preference_prob * (1 - 2 * label_smoothing) + label_smoothing)


def dpo_norm(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    preference_prob: Tensor,
    *,
    beta: float = 5.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`dpo` on log-ratios per token, so that length earns nothing (Lambert et al. 2024, Tulu 3, 2411.15124).

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        chosen_lengths: [pairs], tokens.
        rejected_lengths: [pairs], tokens.
        preference_prob: [pairs], see `dpo`.
        beta: of a mean, so larger than `dpo`'s by about the length of a response; Tulu 3 uses 5.
        label_smoothing: see `dpo`.
    """
    chosen, ref_chosen = (per_token(x, chosen_lengths) for x in (chosen_logprobs, ref_chosen_logprobs))
    rejected, ref_rejected = (per_token(x, rejected_lengths) for x in (rejected_logprobs, ref_rejected_logprobs))
    return dpo(chosen, rejected, ref_chosen, ref_rejected, preference_prob, beta=beta, label_smoothing=label_smoothing)


def robust(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Tensor:
    """((1 - eps) l(h) - eps l(-h)) / (1 - 2 eps), l(h) = -log sigmoid(beta h): rDPO (Ray Chowdhury et al. 2024).

    Its expectation over labels of which a share eps is flipped is `dpo` on the true ones (arXiv 2403.00409,
    section 3.1). Unlike cDPO it has no bound from below: a pair that is already won is pushed on.

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        beta: see `dpo`.
        label_smoothing: eps, the share of flipped labels, in [0, 1/2); 0 is `dpo`.
    """
    positive("robust", beta=beta)
    noise("robust", label_smoothing)
    gap = log_ratio_gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    # The cross-entropy with a "probability" above 1: its second weight, 1 - p, is the -eps / (1 - 2 eps) above.
    return preference_cross_entropy(beta * gap, (1 - label_smoothing) / (1 - 2 * label_smoothing))


def ipo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    preference_prob: Tensor,
    *,
    beta: float = 0.1,
    mean: bool = False,
) -> Tensor:
    """(h - 1/(2 beta))^2: the gap has a target, so nothing is gained beyond it (Azar et al. 2023, eq. 17).

    With a soft label, p (h - t)^2 + (1 - p)(h + t)^2, whose minimum is at (2p - 1) t (arXiv 2310.12036, section 5).

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        chosen_lengths: [pairs], tokens.
        rejected_lengths: [pairs], tokens.
        preference_prob: [pairs], see `dpo`.
        beta: the paper's tau.
        mean: log-ratios per token instead of their sums, as TRL has it on the word of IPO's authors.
    """
    positive("ipo", beta=beta)
    chosen, rejected = chosen_logprobs - ref_chosen_logprobs, rejected_logprobs - ref_rejected_logprobs
    if mean:
        chosen, rejected = per_token(chosen, chosen_lengths), per_token(rejected, rejected_lengths)
    check_shapes(chosen=chosen, rejected=rejected, preference_prob=preference_prob)
    gap, target = chosen - rejected, 1 / (2 * beta)
    return preference_prob * (gap - target) ** 2 + (1 - preference_prob) * (gap + target) ** 2


def hinge(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.05,
) -> Tensor:
    """max(0, 1 - beta h): SLiC's hinge on normalised log-probs (Liu et al. 2023, RSO, arXiv 2309.06657).

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        beta: RSO's gamma; a pair with h > 1/beta is won and has no gradient.
    """
    positive("hinge", beta=beta)
    gap = log_ratio_gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    return torch.relu(1 - beta * gap)


def exo_pair(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
) -> Tensor:
    """KL(q || p), q = sigmoid(+- beta h), p = (1 - eps, eps): the reverse of DPO's (Ji et al. 2024, EXO, eq. 16).

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        beta: see `dpo`.
        label_smoothing: eps, in (0, 1/2); the paper's 1e-3 (arXiv 2402.00856). At 0 the KL is infinite.
    """
    positive("exo_pair", beta=beta, label_smoothing=label_smoothing)
    noise("exo_pair", label_smoothing)
    logit = beta * log_ratio_gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    eps = torch.as_tensor(label_smoothing, dtype=logit.dtype, device=logit.device)
    won = logit.sigmoid() * (logsigmoid(logit) - torch.log1p(-eps))
    return won + (-logit).sigmoid() * (logsigmoid(-logit) - torch.log(eps))


def nca_pair(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.01,
) -> Tensor:
    """-log s(r_w) - (log s(-r_w) + log s(-r_l)) / 2, s the sigmoid, r = beta log(pi / ref) (Chen et al. 2024, NCA).

    Each response against the reference's own, so that the chosen log-prob does not fall (2402.05369, section 4.1).

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        beta: the paper's alpha.
    """
    positive("nca_pair", beta=beta)
    chosen, rejected = rewards(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta)
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.01,
) -> Tensor:
    """-log s(r_w) - log s(-r_l): each response classified on its own (Jung et al. 2024, BCO, arXiv 2404.04656).

    Without the paper's reward shift delta, as in TRL 1.16.

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        beta: see `dpo`.
    """
    positive("bco_pair", beta=beta)
    chosen, rejected = rewards(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta)
    return -logsigmoid(chosen) - logsigmoid(-rejected)


def sppo_hard(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 1e-3,
) -> Tensor:
    """(a_w - 1/(2 beta))^2 + (a_l + 1/(2 beta))^2, a = log(pi / ref): SPPO, win rates 1 and 0 (Wu et al. 2024).

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        beta: 1/eta of arXiv 2405.00675, equation 4.7; eta is 1000 there.
    """
    positive("sppo_hard", beta=beta)
    chosen, rejected = rewards(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, 1.0)
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """1 - s(r_w) + s(r_l): for chosen responses better than the model's own (D'Oosterlinck et al. 2024, eq. 7).

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        beta: see `dpo` (arXiv 2408.06266).
    """
    positive("apo_zero", beta=beta)
    chosen, rejected = rewards(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta)
    return (-chosen).sigmoid() + rejected.sigmoid()


def apo_down(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """s(r_w) + 1 - s(r_w - r_l): for chosen responses worse than the model's own (D'Oosterlinck et al. 2024, eq. 8).

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        beta: see `dpo` (arXiv 2408.06266).
    """
    positive("apo_down", beta=beta)
    chosen, rejected = rewards(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta)
    return chosen.sigmoid() + (rejected - chosen).sigmoid()


def discopop(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.05,
    tau: float = 0.05,
) -> Tensor:
    """(1 - w) (-log s(d)) + w exp(-d), w = s(d / tau), d = beta h: found by a language model (Lu et al. 2024, eq. 5).

    Not convex: with this tau its slope at d = 0 is positive, so that fresh pairs are first pushed the wrong way.

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        ref_chosen_logprobs: [pairs].
        ref_rejected_logprobs: [pairs].
        beta: 0.05 in arXiv 2406.08414.
        tau: how fast the exponential takes over; 0.05 there. At most 1, or a badly lost pair would be infinite.
    """
    positive("discopop", beta=beta, tau=tau)
    if tau > 1:
        raise ConfigError(f"tau={tau} must not exceed 1", where="discopop")
    logit = beta * log_ratio_gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    exponential = torch.exp(logsigmoid(logit / tau) - logit)  # as one exponent: 0 * inf is NaN
    return -(-logit / tau).sigmoid() * logsigmoid(logit) + exponential


# -- without a reference -----------------------------------------------------------------------------------------------


def cpl(chosen_logprobs: Tensor, rejected_logprobs: Tensor, *, alpha: float = 0.1, bias: float = 0.5) -> Tensor:
    """-log(e^{alpha log pi_w} / (e^{alpha log pi_w} + e^{bias alpha log pi_l})) (Hejna et al. 2023, CPL).

    alpha log pi is the advantage of a maximum-entropy optimal policy, so comparisons by regret train the policy itself
    (arXiv 2310.13639). A bias below 1 makes it conservative: of two policies that tell the pair apart alike, the one
    that gives the data more probability loses less.

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        alpha: temperature of the maximum-entropy objective.
        bias: the paper's lambda, in (0, 1]; 1 is `dpo` with a uniform reference and beta = alpha.
    """
    positive("cpl", alpha=alpha, bias=bias)
    if bias > 1:
        raise ConfigError(f"bias={bias} must not exceed 1", where="cpl", effect="It would favour unlikely responses.")
    check_shapes(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
    return logistic_ranking(alpha * chosen_logprobs - bias * alpha * rejected_logprobs)


def slic(chosen_logprobs: Tensor, rejected_logprobs: Tensor, *, delta: float = 1.0) -> Tensor:
    """max(0, delta - log pi_w + log pi_l): SLiC-HF's rank calibration (Zhao et al. 2023, arXiv 2305.10425, section 2).

    The paper adds a cross-entropy on a target to it: `nll_coef` of the optimizer.

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        delta: margin, nats.
    """
    positive("slic", delta=delta)
    check_shapes(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
    return torch.relu(delta - (chosen_logprobs - rejected_logprobs))


def simpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    preference_prob: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Tensor:
    """-log s(beta (log pi_w / |y_w| - log pi_l / |y_l|) - gamma) (Meng et al. 2024, SimPO, arXiv 2405.14734, eq. 6).

    A soft label p is the mean of the two hard ones, so the margin is asked of whichever response won: p of the above
    plus 1 - p of the same with the two exchanged. (The paper has hard labels alone. Its authors' `label_smoothing` does
    not move the margin: -(1 - e) log s(d) - e log s(-d), d the argument above.)

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        chosen_lengths: [pairs], tokens.
        rejected_lengths: [pairs], tokens.
        preference_prob: [pairs], see `dpo`.
        beta: 2 to 2.5 in the paper, its authors later advise up to 10.
        gamma: target margin in units of the reward, 0.3 to 1.6 in the paper; gamma/beta of about 0.5.
    """
    positive("simpo", beta=beta)
    check_range("simpo", gamma=gamma)
    gap = per_token(chosen_logprobs, chosen_lengths) - per_token(rejected_logprobs, rejected_lengths)
    check_shapes(gap=gap, preference_prob=preference_prob)
    won, lost = logsigmoid(beta * gap - gamma), logsigmoid(-beta * gap - gamma)
    return -preference_prob * won - (1 - preference_prob) * lost


def orpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """-log p_w - beta log s(log odds(p_w) - log odds(p_l)), p per token (Hong et al. 2024, ORPO, eq. 6).

    arXiv 2403.07691. p = exp(log pi / |y|), odds(p) = p / (1 - p). Both halves are of the response alone; TRL's
    cross-entropy counts the prompt in as well.

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        chosen_lengths: [pairs], tokens.
        rejected_lengths: [pairs], tokens.
        beta: the paper's lambda.
    """
    positive("orpo", beta=beta)
    chosen, rejected = per_token(chosen_logprobs, chosen_lengths), per_token(rejected_logprobs, rejected_lengths)
    return -chosen + beta * logistic_ranking(log_odds(chosen) - log_odds(rejected))


def log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p <= 0, any shape; a p of 1 counts as the one below it, or two would make inf - inf."""
    below = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return below - torch.log(-torch.expm1(below))


# -- further terms and diagnostics of a pair ---------------------------------------------------------------------------


def chosen_nll(chosen_logprobs: Tensor, chosen_lengths: Tensor) -> Tensor:
    """-log pi_w / |y_w|, nats per token: what keeps the chosen log-prob up (Pang et al. 2024, arXiv 2404.19733).

    Args:
        chosen_logprobs: [pairs].
        chosen_lengths: [pairs], tokens.
    """
    return -per_token(chosen_logprobs, chosen_lengths)


def rewards(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """The implied rewards beta log(pi / ref) of the chosen and the rejected responses, [pairs] each."""
    check_shapes(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    positive("implied rewards", beta=beta)
    return beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)


def preference_statistics(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    ref_chosen_logprobs: Tensor | None = None,
    ref_rejected_logprobs: Tensor | None = None,
    *,
    beta: float = 1.0,
    per_token: bool = False,
    referenced: bool = True,
) -> dict[str, Tensor]:
    """What is logged of every pair: log-probs, implied rewards, their margin, which is ahead.

    `ties` are told apart from `accuracy`: before the first step the policy is the reference, every margin is exactly 0,
    and that is not "wrong". The share of pairs ranked wrongly is 1 - accuracy - ties.

    Args:
        chosen_logprobs: [pairs].
        rejected_logprobs: [pairs].
        chosen_lengths: [pairs], tokens.
        rejected_lengths: [pairs], tokens.
        ref_chosen_logprobs: [pairs]; None (no reference was given): the rewards are beta log pi.
        ref_rejected_logprobs: [pairs], likewise.
        beta: of the loss; 1 where it has none, and rewards are in nats.
        per_token: the loss compares means over tokens: so do the rewards.
        referenced: the loss looks at the reference; otherwise the rewards do not either.
    """
    ref_chosen, ref_rejected = ref_chosen_logprobs, ref_rejected_logprobs
    if ref_chosen is None or ref_rejected is None or not referenced:
        ref_chosen, ref_rejected = torch.zeros_like(chosen_logprobs), torch.zeros_like(rejected_logprobs)
    chosen, rejected = rewards(chosen_logprobs, rejected_logprobs, ref_chosen, ref_rejected, beta)
    if per_token:
        chosen, rejected = chosen / chosen_lengths.clamp(min=1), rejected / rejected_lengths.clamp(min=1)
    return {
        "chosen_logprobs": chosen_logprobs,
        "rejected_logprobs": rejected_logprobs,
        "chosen_rewards": chosen,
        "rejected_rewards": rejected,
        "margins": chosen - rejected,
        "accuracy": (chosen > rejected).to(chosen.dtype),
        "ties": (chosen == rejected).to(chosen.dtype),
    }


PAIR_LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        dpo, dpo_norm, robust, ipo, hinge, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, discopop,
        cpl, slic, simpo, orpo,
    )
}  # fmt: skip
"""The losses of comparisons by the name that they are registered under."""
