"""The threshold of a piecewise reward, picked from labelled examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alignkit.errors import ConfigError


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold for `Piecewise` and what it achieves on labelled examples.

    Args:
        threshold: on the probability scale.
        precision: share of responses under it that are unsafe.
        recall: share of unsafe responses that are under it.
        table: rows (threshold, precision, recall) of every candidate.
    """

    threshold: float
    precision: float
    recall: float
    table: list[tuple[float, float, float]]


def pick_threshold(scores: Sequence[float], safe: Sequence[bool], *, min_precision: float = 0.89) -> ThresholdChoice:
    """Pick the safety threshold for one's own reward model from labelled examples.

    Llama 2 chose 0.15, "corresponding with a precision of 0.89 and a recall of 0.55" on its test set (section 3.2.3).
    Among thresholds that reach `min_precision` the one with the highest recall wins; if none does, the most precise.

    Args:
        scores: raw safety scores, one per response.
        safe: whether people call the response safe.
        min_precision: wanted precision of "unsafe", in (0, 1].

    Raises:
        ConfigError: no unsafe example, or lengths that differ.
    """
    if len(scores) != len(safe) or not any(not s for s in safe):
        raise ConfigError("needs as many labels as scores, with an unsafe one among them", where="pick_threshold")
    table = []
    ordered = sorted(set(scores))
    for low, high in zip(ordered, [*ordered[1:], ordered[-1] + 1.0], strict=True):
        cut = (low + high) / 2
        under = [s for score, s in zip(scores, safe, strict=True) if score < cut]
        hit = sum(not s for s in under)
        table.append((1 / (1 + math.exp(-cut)), hit / len(under), hit / sum(not s for s in safe)))
    good = [row for row in table if row[1] >= min_precision]
    best = max(good, key=lambda r: (r[2], r[1])) if good else max(table, key=lambda r: (r[1], r[2]))
    return ThresholdChoice(*best, table)
