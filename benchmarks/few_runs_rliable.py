"""`alignkit.evaluation.few_runs` against rliable 1.2.0 (archived since October 2025), on random scores.

    pip install --no-deps --target /tmp/rliable rliable==1.2.0
    python benchmarks/few_runs_rliable.py /tmp/rliable

Prints the largest difference of each statistic over 200 pairs of matrices: rounding only.
"""

from __future__ import annotations

import importlib
import sys

import numpy as np

from alignkit.evaluation import few_runs


def main(folder: str) -> None:
    """Compare.

    Args:
        folder: where rliable lies; of it only `rliable/metrics.py` is used, whose needs are numpy and scipy.
    """
    sys.path.insert(0, folder)
    theirs = importlib.import_module("rliable.metrics")
    rng = np.random.default_rng(0)
    worst: dict[str, float] = {}
    for _ in range(200):
        prompts = int(rng.integers(1, 30))
        a, b = (rng.integers(0, 8, (int(rng.integers(2, 11)), prompts)) / 5 for _ in range(2))
        pairs = {
            "mean": (few_runs.mean(a), theirs.aggregate_mean(a)),
            "interquartile mean": (few_runs.interquartile_mean(a), theirs.aggregate_iqm(a)),
            "optimality gap": (few_runs.optimality_gap(a), theirs.aggregate_optimality_gap(a)),
            "probability of improvement": (
                few_runs.probability_of_improvement(a, b),
                theirs.probability_of_improvement(a, b),
            ),
        }
        for name, (ours, other) in pairs.items():
            worst[name] = max(worst.get(name, 0.0), abs(float(ours) - float(other)))
    for name, difference in worst.items():
        print(f"{name:<28}{difference:.1e}")


if __name__ == "__main__":
    main(sys.argv[1])
