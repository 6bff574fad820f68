"""From the probabilities of verdict tokens to a preference: pure arithmetic, no model.

RLAIF (Lee et al. 2023, arXiv 2309.00267), "Addressing Position Bias": softmax over the log-probs of verdicts "1" and
"2", two passes with the order of the responses reversed, averaged. Constitutional AI (Bai et al. 2022, arXiv
2212.08073), section 4.1: soft labels; those that come after a chain of thought are clamped to 40-60 per cent.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.plugin import RATINGS

LEVELS = (0.9, 0.75, 0.6)
"""Probability of the better response from which a preference is significant, clear, slight. Ours: no paper maps a
judge's probability to Llama 2's four levels."""


def two_way(probs: Sequence[float]) -> float:
    """P(first) among two verdicts: the softmax of their log-probs, p1 / (p1 + p2).

    Args:
        probs: of the verdicts "1" and "2", not normalised; their sum is the mass, > 0.
    """
    return probs[0] / (probs[0] + probs[1])


def both_orders(first_when_ab: float, first_when_ba: float) -> float:
    """P(A is better) from two passes: the mean of P(first | A, B) and 1 - P(first | B, A).

    Written as 1/2 + (difference)/2, so that a judge who looks at the place alone gives 1/2 exactly, and exchanging A
    and B exactly changes the sign.

    Args:
        first_when_ab: probability of the verdict "1" where A stands first.
        first_when_ba: the same where B stands first.
    """
    return 0.5 + (first_when_ab - first_when_ba) / 2


def consistent(first_when_ab: float, first_when_ba: float) -> bool:
    """Whether both passes name the same response; a pass at exactly 1/2 names none."""
    return (first_when_ab - 0.5) * (0.5 - first_when_ba) > 0


def clamp(prob: float, low: float, high: float) -> float:
    """`prob` moved into [low, high]."""
    return min(max(prob, low), high)


def rating_of(prob: float, levels: Sequence[float] = LEVELS) -> str:
    """The level of `alignkit.groups.RATINGS` of a preference.

    Args:
        prob: that one of the two is better; 0.1 and 0.9 are the same strength.
        levels: smallest probability of the better one for the first three levels, falling.
    """
    strength = max(prob, 1 - prob)
    return next((rating for rating, level in zip(RATINGS, levels, strict=False) if strength >= level), RATINGS[-1])


def expected_score(probs: Sequence[float]) -> float:
    """Sum over i of i P(i), with the probabilities normalised (d-RLAIF).

    Args:
        probs: of the scores 1, 2, …, n, not normalised.
    """
    return sum(i * p for i, p in enumerate(probs, start=1)) / sum(probs)


def unit_score(score: float, scale: int) -> float:
    """A score from 1 to `scale` on [-1, 1], as d-RLAIF normalises it."""
    return 2 * (score - 1) / (scale - 1) - 1


def ranks_of(values: Sequence[float]) -> list[int]:
    """1 for the highest value, equal values tie (1, 1, 3), as `alignkit.rewards.rank_by_reward` ranks."""
    return [1 + sum(other > value for other in values) for value in values]
