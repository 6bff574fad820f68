"""Losses of reward models: Llama 2's ranking loss with a margin by rating, plain pairwise ranking, the safety term.

Touvron et al. 2023 (Llama 2: Open Foundation and Fine-Tuned Chat Models, arXiv 2307.09288), section 3.2.2 and
appendix A.3.
Each loss returns [pairs], one unreduced value per comparison, on raw scores (the log-odds of a Bradley-Terry model).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from alignkit import hookimpl
from alignkit.errors import ConfigError, DataError
from alignkit.functional import check_shapes, logistic_ranking
from alignkit.plugins.hookspecs import Register

MARGINS = {
    "small": (1.0, 2 / 3, 1 / 3, 0.0),
    "large": (3.0, 2.0, 1.0, 0.0),
    "none": (0.0, 0.0, 0.0, 0.0),
}
"""Table 27: the margin m(r) of "significantly better", "better", "slightly better", "negligibly better or unsure"."""


def rating_margins(rating: Tensor, table: str = "small", dtype: torch.dtype = torch.float32) -> Tensor:
    """The margin of each comparison, m(r) in Llama 2's equation 2.

    Args:
        rating: [pairs] int64, a level of `alignkit.types.RATINGS` (0 "significantly better"), -1 where there is none.
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
            remedy="use the levels 0 to 3 of alignkit.types.RATINGS, or -1 where there is none",
        )
    return levels[rating.long() + 1]


def pairwise_ranking(chosen_rewards: Tensor, rejected_rewards: Tensor, margin: Tensor) -> Tensor:
    """-log sigmoid(r_c - r_r - m): Bradley-Terry (Ouyang et al. 2022, eq. 1), with the data's own margins, if any.

    Args:
        chosen_rewards: [pairs], raw scores.
        rejected_rewards: [pairs], raw scores.
        margin: [pairs], how far apart the scores should be; 0 where the data gives none.
    """
    check_shapes(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards, margin=margin)
    return logistic_ranking(chosen_rewards - rejected_rewards, margin)


def margin_ranking(chosen_rewards: Tensor, rejected_rewards: Tensor, rating: Tensor, *, table: str = "small") -> Tensor:
    """-log sigmoid(r_c - r_r - m(rating)): Llama 2's ranking loss (Touvron et al. 2023, eq. 2).

    Args:
        chosen_rewards: [pairs], raw scores.
        rejected_rewards: [pairs], raw scores.
        rating: [pairs] int64, 0 "significantly better" to 3 "negligibly better or unsure", -1 (margin 0) unknown.
        table: "small" 1, 2/3, 1/3, 0; "large" 3, 2, 1, 0; "none" is plain Bradley-Terry.
    """
    margin = rating_margins(rating, table, chosen_rewards.dtype)
    return pairwise_ranking(chosen_rewards, rejected_rewards, margin)


def margin_ranking_with_safety(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    rating: Tensor,
    chosen_safe: Tensor,
    rejected_safe: Tensor,
    *,
    table: str = "small",
    safety_weight: float = 1.0,
) -> Tensor:
    """`margin_ranking` plus Llama 2's auxiliary safety term (appendix A.3.4, table 29), for the safety reward model.

    The term is binary: sigmoid(score) should be the probability that the response is safe, so that a threshold of the
    piecewise reward (0.15) means what it says. Llama 2 gives neither its weight nor its reduction: here the two
    responses are averaged, a response without a label adds nothing, and the weight is 1.

    Args:
        chosen_rewards: [pairs], raw scores.
        rejected_rewards: [pairs], raw scores.
        rating: [pairs] int64, see `margin_ranking`.
        chosen_safe: [pairs], 1 safe, 0 unsafe, -1 unknown.
        rejected_safe: [pairs], likewise.
        table: see `margin_ranking`.
        safety_weight: factor of the term; 0 is `margin_ranking`.
    """
    ranking = margin_ranking(chosen_rewards, rejected_rewards, rating, table=table)
    safety = 0.5 * (_safety(chosen_rewards, chosen_safe) + _safety(rejected_rewards, rejected_safe))
    return ranking + safety_weight * safety


def _safety(scores: Tensor, safe: Tensor) -> Tensor:
    """Cross-entropy of "safe" [pairs] with the score as its logit; 0 where nobody said."""
    check_shapes(scores=scores, safe=safe)
    loss = binary_cross_entropy_with_logits(scores, safe.to(scores.dtype).clamp(min=0), reduction="none")
    return loss.where(safe >= 0, 0)


@hookimpl
def register_losses(register: Register) -> None:
    register("margin_ranking", margin_ranking)
    register("pairwise_ranking", pairwise_ranking)
    register("margin_ranking_with_safety", margin_ranking_with_safety)
