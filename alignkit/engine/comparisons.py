"""What a reward model achieves on comparisons: accuracy overall and by rating, with ties told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alignkit.engine.pairs import pairs_of
from alignkit.evaluation import accuracy_by_level, score_histogram
from alignkit.groups import RATINGS, Groups
from alignkit.rewards import Scores


def comparison_report(groups: Groups, scores: Scores) -> dict[str, Any]:
    """Accuracy with intervals, ties, and the histogram of scores.

    Args:
        groups: comparisons or rankings.
        scores: of their responses.

    Returns:
        {"accuracy": {"overall" | rating: {mean, low, high, n, ties}}, "ties", "histogram", "eval_pairs"}; empty where
        no pair is scored.
    """
    flat = [value for row in scores.values for value in row]
    pairs = pairs_of(groups)
    levels = [RATINGS[int(level)] if level >= 0 else None for level in pairs.tensors["rating"].tolist()]
    chosen, rejected, ratings = [], [], []
    for c, r, level in zip(pairs.chosen.tolist(), pairs.rejected.tolist(), levels, strict=True):
        if flat[c] is not None and flat[r] is not None:
            chosen.append(flat[c])
            rejected.append(flat[r])
            ratings.append(level)
    if not chosen:
        return {"eval_pairs": 0}
    report = accuracy_by_level(chosen, rejected, ratings)
    return {**report, "histogram": score_histogram(chosen, rejected), "eval_pairs": len(chosen)}


PAIR_COUNTS = tuple(f"_{what}_{level}" for level in ("overall", *RATINGS) for what in ("right", "pairs"))
"""Sums behind a reward model's accuracy, overall and by rating."""


def pair_counts(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """How many pairs of a micro-batch there are and are ranked rightly (a tie is not), overall and by rating."""
    right = tensors["chosen_rewards"].detach() > tensors["rejected_rewards"].detach()
    counts = {"_right_overall": float(right.sum()), "_pairs_overall": float(len(right))}
    for number, level in enumerate(RATINGS):
        rated = tensors["rating"] == number
        counts |= {f"_right_{level}": float((right & rated).sum()), f"_pairs_{level}": float(rated.sum())}
    return counts


def accuracies(shares: Mapping[str, float]) -> dict[str, float]:
    """`accuracy` and `accuracy_<rating>` of a step, for the levels that it has pairs of."""
    levels = [level for level in ("overall", *RATINGS) if shares[f"_pairs_{level}"]]
    named = {"overall": "accuracy"} | {level: f"accuracy_{level}" for level in RATINGS}
    return {named[level]: shares[f"_right_{level}"] / shares[f"_pairs_{level}"] for level in levels}
