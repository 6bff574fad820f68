"""What a reward model achieves on comparisons: accuracy overall and by rating, with ties told apart."""

from __future__ import annotations

from typing import Any

import torch

from alignkit.engine.pairs import pairs_of
from alignkit.evaluation import accuracy_by_level, score_histogram
from alignkit.groups import RATINGS, Groups
from alignkit.metrics import CalibrationError, alone, values_of
from alignkit.rewards import Scores


def comparison_report(groups: Groups, scores: Scores) -> dict[str, Any]:
    """Accuracy with intervals, ties, and the histogram of scores.

    Args:
        groups: comparisons or rankings.
        scores: of their responses.

    Returns:
        {"accuracy": {"overall" | rating: {mean, low, high, n, ties}}, "ties", "calibration_error", "histogram",
        "eval_pairs"}; the last alone where no pair is scored.
    """
    flat = [value for row in scores.values for value in row]
    pairs = pairs_of(groups)
    levels = [RATINGS[int(level)] if level >= 0 else None for level in pairs.tensors["rating"].tolist()]
    chosen, rejected, ratings, prompts = [], [], [], []
    names = groups.column("prompt_id")
    for c, r, level, group in zip(
        pairs.chosen.tolist(), pairs.rejected.tolist(), levels, pairs.group.tolist(), strict=True
    ):
        if flat[c] is not None and flat[r] is not None:
            chosen.append(flat[c])
            rejected.append(flat[r])
            ratings.append(level)
            prompts.append(names[group])
    if not chosen:
        return {"eval_pairs": 0}
    report = accuracy_by_level(chosen, rejected, ratings, prompts)
    calibration = alone(CalibrationError())
    calibration.update(torch.tensor(chosen), torch.tensor(rejected))
    report |= values_of("calibration_error", calibration)
    return {**report, "histogram": score_histogram(chosen, rejected), "eval_pairs": len(chosen)}
