"""Losses of reward models, on raw scores (the log-odds of a Bradley-Terry model).

Of comparisons, [pairs]: Llama 2's ranking loss with a margin by rating, plain pairwise ranking, the safety term
(Touvron et al. 2023, arXiv 2307.09288, section 3.2.2 and appendix A.3).
Of rankings, [groups], one value per prompt with its K responses: InstructGPT's K-wise ranking (Ouyang et al. 2022,
arXiv 2203.02155, eq. 1), Plackett-Luce, the best of K. Responses of equal rank are never compared with one another.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from alignkit.plugin import (
    ConfigError,
    DataError,
    Register,
    check_range,
    check_shapes,
    hookimpl,
    logistic_ranking,
    masked_mean,
    masked_sum,
)

MARGINS = {
    "small": (1.0, 2 / 3, 1 / 3, 0.0),
    "large": (3.0, 2.0, 1.0, 0.0),
    "none": (0.0, 0.0, 0.0, 0.0),
}
"""Table 27: the margin m(r) of "significantly better", "better", "slightly better", "negligibly better or unsure"."""


def rating_margins(rating: Tensor, table: str = "small", dtype: torch.dtype = torch.float32) -> Tensor:
    """The margin of each comparison, m(r) in Llama 2's equation 2.

    Args:
        rating: [pairs] int64, a level of `alignkit.groups.RATINGS` (0 "significantly better"), -1 where there is none.
        table: "small" (the most accurate overall, table 28), "large" (better on distinct pairs, worse on alike ones) or
            "none".
        dtype: of the scores.

    Returns:
        [pairs], in units of the score; 0 where there is no rating.

    Raises:
        ConfigError: an unknown table.
        DataError: a level outside the scale.
    """
    if table not in MARGINS:
        raise ConfigError(f"table={table!r}", where="margin_ranking", remedy=f"use one of {', '.join(MARGINS)}")
    levels = torch.tensor([0.0, *MARGINS[table]], dtype=dtype, device=rating.device)  # place 0 is level -1: no rating
    outside = (rating < -1) | (rating >= len(levels) - 1)
    if bool(outside.any()):
        raise DataError(
            f"ratings {sorted(set(rating[outside].tolist()))} are outside the margin table",
            where="margin_ranking",
            remedy="use the levels 0 to 3 of alignkit.groups.RATINGS, or -1 where there is none",
        )
    return levels[rating.long() + 1]


def pairwise_ranking(
    chosen_rewards: Tensor, rejected_rewards: Tensor, margin: Tensor, *, center_rewards_coefficient: float = 0.0
) -> Tensor:
    """-log sigmoid(r_c - r_r - m): Bradley-Terry (Ouyang et al. 2022, eq. 1), with the data's own margins, if any.

    Args:
        chosen_rewards: [pairs], raw scores.
        rejected_rewards: [pairs], raw scores.
        margin: [pairs], how far apart the scores should be; 0 where the data gives none.
        center_rewards_coefficient: c of c (r_c + r_r)^2, which puts the scores' zero in the middle (Eisenstein et al.
            2023, arXiv 2312.09244, with 0.01; the name is TRL's); 0 leaves it out.
    """
    check_shapes(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards, margin=margin)
    ranking = logistic_ranking(chosen_rewards - rejected_rewards, margin)
    check_range("pairwise_ranking", center_rewards_coefficient=center_rewards_coefficient)
    return ranking + center_rewards_coefficient * (chosen_rewards + rejected_rewards) ** 2


def margin_ranking(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    rating: Tensor,
    margin: Tensor | None = None,
    *,
    table: str = "small",
    center_rewards_coefficient: float = 0.0,
) -> Tensor:
    """-log sigmoid(r_c - r_r - m(rating)): Llama 2's ranking loss (Touvron et al. 2023, eq. 2).

    A margin that the data gives takes the place of the one that the rating stands for.

    Args:
        chosen_rewards: [pairs], raw scores.
        rejected_rewards: [pairs], raw scores.
        rating: [pairs] int64, 0 "significantly better" to 3 "negligibly better or unsure", -1 (margin 0) unknown.
        margin: [pairs], of the data's own column; 0, or None, where it gives none.
        table: "small" 1, 2/3, 1/3, 0; "large" 3, 2, 1, 0; "none" is plain Bradley-Terry.
        center_rewards_coefficient: see `pairwise_ranking`.
    """
    rated = rating_margins(rating, table, chosen_rewards.dtype)
    margins = rated if margin is None else margin.to(rated.dtype).where(margin > 0, rated)
    return pairwise_ranking(
        chosen_rewards, rejected_rewards, margins, center_rewards_coefficient=center_rewards_coefficient
    )


def margin_ranking_with_safety(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    rating: Tensor,
    chosen_safe: Tensor,
    rejected_safe: Tensor,
    margin: Tensor | None = None,
    *,
    table: str = "small",
    safety_weight: float = 1.0,
) -> Tensor:
    """`margin_ranking` plus Llama 2's auxiliary safety term (appendix A.3.4, table 29), for the safety reward model.

    The term is binary: sigmoid(score) should be the probability that the response is safe, so that a threshold of the
    piecewise reward (0.15) means what it says. Llama 2 gives neither its weight nor its reduction: here the two
    responses are averaged, a response without a label adds nothing, and the weight is 1. It also says where the zero of
    the scores is, so this loss has no centring of its own.

    Args:
        chosen_rewards: [pairs], raw scores.
        rejected_rewards: [pairs], raw scores.
        rating: [pairs] int64, see `margin_ranking`.
        chosen_safe: [pairs], 1 safe, 0 unsafe, -1 unknown.
        rejected_safe: [pairs], likewise.
        margin: [pairs], see `margin_ranking`.
        table: see `margin_ranking`.
        safety_weight: factor of the term; 0 is `margin_ranking`.
    """
    ranking = margin_ranking(chosen_rewards, rejected_rewards, rating, margin, table=table)
    safety = 0.5 * (_safety(chosen_rewards, chosen_safe) + _safety(rejected_rewards, rejected_safe))
    check_range("margin_ranking_with_safety", safety_weight=safety_weight)
    return ranking + safety_weight * safety


def _safety(scores: Tensor, safe: Tensor) -> Tensor:
    """Cross-entropy of "safe" [pairs] with the score as its logit; 0 where nobody said."""
    check_shapes(scores=scores, safe=safe)
    loss = binary_cross_entropy_with_logits(scores, safe.to(scores.dtype).clamp(min=0), reduction="none")
    return loss.where(safe >= 0, 0)


# -- rankings ----------------------------------------------------------------------------------------------------------


def kwise_ranking(
    rewards: Tensor, ranks: Tensor, group_mask: Tensor, *, center_rewards_coefficient: float = 0.0
) -> Tensor:
    """-1/C(K,2) sum over pairs of log sigmoid(r_w - r_l): all comparisons of a prompt as one element (InstructGPT).

    Ouyang et al. 2022, eq. 1. Each prompt is one mean, so that a ranking of 9 weighs no more than one of 4. A tie is no
    comparison: it is left out of the sum and of the count; a prompt that is all ties gives 0, and is not counted among
    the prompts that the step averages over.

    Args:
        rewards: [groups, K], raw scores.
        ranks: [groups, K], 1 is best, equal ranks tie.
        group_mask: [groups, K] bool, True on responses that exist.
        center_rewards_coefficient: c of c (r_w + r_l)^2, see `pairwise_ranking`.

    Returns:
        [groups].
    """
    beats, rewards = _beats(rewards, ranks, group_mask)
    ranking = logistic_ranking(rewards.unsqueeze(2) - rewards.unsqueeze(1))
    return masked_mean(ranking.flatten(1), beats.flatten(1), 1) + _middle(rewards, beats, center_rewards_coefficient)


def plackett_luce(
    rewards: Tensor,
    ranks: Tensor,
    group_mask: Tensor,
    *,
    mean_of_choices: bool = False,
    center_rewards_coefficient: float = 0.0,
) -> Tensor:
    """-log P(ranking) = sum over k of log sum over j not better than k of e^{r_j} - r_k (Plackett 1975; ListMLE).

    ListMLE: Xia et al. 2008. The best is chosen from all, the next from the rest, and so on.

    Args:
        rewards, ranks, group_mask: see `kwise_ranking`.
        mean_of_choices: divide by the number of choices (K - 1 without ties), so that a longer ranking weighs no more.
        center_rewards_coefficient: see `kwise_ranking`.

    Returns:
        [groups].
    """
    beats, rewards = _beats(rewards, ranks, group_mask)
    choices, chooses = _choices(rewards, beats)
    reduce = masked_mean if mean_of_choices else masked_sum
    return reduce(choices, chooses, 1) + _middle(rewards, beats, center_rewards_coefficient)


def best_of_k(rewards: Tensor, ranks: Tensor, group_mask: Tensor, *, center_rewards_coefficient: float = 0.0) -> Tensor:
    """-log softmax(r)[best]: which of the K is best, the order of the others left alone (Ziegler et al. 2019, eq. 1).

    Several that share the first rank are averaged, each against those that are worse.

    Args:
        rewards, ranks, group_mask, center_rewards_coefficient: see `kwise_ranking`.

    Returns:
        [groups].
    """
    beats, rewards = _beats(rewards, ranks, group_mask)
    choices, chooses = _choices(rewards, beats)
    best = chooses & ~beats.any(1)  # beaten by none
    return masked_mean(choices, best, 1) + _middle(rewards, beats, center_rewards_coefficient)


def _beats(rewards: Tensor, ranks: Tensor, group_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where response i is ranked before response j [groups, K, K], and the scores with 0 where nothing is."""
    check_shapes(rewards=rewards, ranks=ranks, group_mask=group_mask)
    shown = group_mask.bool()
    both = shown.unsqueeze(2) & shown.unsqueeze(1)
    return both & (ranks.unsqueeze(2) < ranks.unsqueeze(1)), rewards.where(shown, 0)


def _choices(rewards: Tensor, beats: Tensor) -> tuple[Tensor, Tensor]:
    """-log of the chance to choose each response from itself and those that it beats; whether it beats any.

    Both [groups, K].
    """
    among = beats | torch.eye(beats.shape[1], dtype=torch.bool, device=beats.device)
    rivals = rewards.unsqueeze(1).expand_as(among).masked_fill(~among, -torch.inf)
    return rivals.logsumexp(2) - rewards, beats.any(2)


def _middle(rewards: Tensor, beats: Tensor, center_rewards_coefficient: float) -> Tensor:
    """c times the mean over the comparisons of a prompt of (r_w + r_l)^2 [groups]."""
    check_range("loss of rankings", center_rewards_coefficient=center_rewards_coefficient)
    return center_rewards_coefficient * masked_mean(
        ((rewards.unsqueeze(2) + rewards.unsqueeze(1)) ** 2).flatten(1), beats.flatten(1), 1
    )


@hookimpl
def register_losses(register: Register) -> None:
    register("margin_ranking", margin_ranking)
    register("pairwise_ranking", pairwise_ranking)
    register("margin_ranking_with_safety", margin_ranking_with_safety)
    register("kwise_ranking", kwise_ranking)
    register("plackett_luce", plackett_luce)
    register("best_of_k", best_of_k)
