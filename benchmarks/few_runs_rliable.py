"""`alignkit.evaluation.few_runs` against rliable 1.2.0 (archived since October 2025), on random scores.

    pip install --no-deps --target /tmp/rliable rliable==1.2.0
    python benchmarks/few_runs_rliable.py /tmp/rliable

Prints the largest difference of each statistic over 200 pairs of matrices, rounding only, and writes
`benchmarks/results/few_runs_rliable.md`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

from alignkit.evaluation import few_runs

RESULT = Path(__file__).parent / "results/few_runs_rliable.md"


def main(folders: list[str]) -> int:
    """Compare.

    Args:
        folders: where rliable lies, if not where Python looks; of it only `rliable/metrics.py` is used, whose needs are
            numpy and scipy.
    """
    sys.path[:0] = folders
    try:
        theirs = importlib.import_module("rliable.metrics")
    except ModuleNotFoundError:
        print(
            "rliable is not there, nothing to compare with: pip install --no-deps --target /tmp/rliable rliable==1.2.0"
        )
        return 0
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
    rows = [f"| {name} | {difference:.1e} |" for name, difference in worst.items()]
    head = "rliable 1.2.0 against `alignkit.evaluation.few_runs`, by `benchmarks/few_runs_rliable.py`."
    text = "\n".join([head, "", "| statistic | largest difference over 200 pairs of matrices |", "|---|---|", *rows])
    print(text)
    RESULT.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
