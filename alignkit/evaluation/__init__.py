"""Evaluation: what held-out scores say, and how sure it is (`statistics`), and the summary of a version (`summary`)."""

from __future__ import annotations

from alignkit.evaluation.statistics import (
    Interval,
    accuracy_by_level,
    best_of_n_curve,
    bootstrap_mean,
    paired_difference,
    per_prompt_scores,
    pooled,
    score_histogram,
    wilson,
)
from alignkit.evaluation.summary import score_names, summarise_evaluation

__all__ = [
    "Interval",
    "accuracy_by_level",
    "best_of_n_curve",
    "bootstrap_mean",
    "paired_difference",
    "per_prompt_scores",
    "pooled",
    "score_histogram",
    "score_names",
    "summarise_evaluation",
    "wilson",
]
