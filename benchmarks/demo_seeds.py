"""Pool the demo over seeds: `python benchmarks/demo_seeds.py runs/demo runs/demo-seed1 runs/demo-seed2`.

Reads the evaluations of finished runs (make them with `make demo`, `make demo SEED=1`, …), prints one row per seed and
the pooled intervals of V0 and of the last version, and writes results/demo.json. The criterion: the paired 95% interval
of Vn - V0 lies above zero in each seed, and the pooled intervals of V0 and Vn do not overlap.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from alignkit.evaluation import bootstrap_mean, paired_difference, per_prompt_scores, pooled
from alignkit.run_folder import is_run, read_evaluation, read_run

SCORE = "gold"
RESULTS = Path(__file__).parent / "results" / "demo.json"


def versions(folder: Path) -> list[tuple[str, dict[str, float], dict[str, float]]]:
    """(label, score by prompt, KL by prompt) of each evaluated version, in order."""
    found = []
    for stage in read_run(folder).stages:
        if "evaluation" in stage.made:
            rows = read_evaluation(stage.folder)
            found.append((stage.result["label"], per_prompt_scores(rows, SCORE), per_prompt_scores(rows, "kl")))
    return found


def seconds(folder: Path) -> float:
    """What the stages of a run took."""
    return sum(stage.seconds or 0 for stage in read_run(folder).stages)


def one_seed(folder: Path) -> dict[str, Any]:
    """The row of one run."""
    found = versions(folder)
    first, last = found[0], found[-1]
    return {
        "seed": read_run(folder).seed,
        "seconds": round(seconds(folder)),
        "prompts": len(first[1]),
        "versions": {label: bootstrap_mean(scores).to_dict() for label, scores, _ in found},
        "kl": {label: sum(kl.values()) / len(kl) for label, _, kl in found},
        "difference": paired_difference(last[1], first[1]).to_dict(),
    }


def _text(interval: dict[str, Any]) -> str:
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def main(folders: list[str]) -> int:
    """Print and record; 1 when the criterion does not hold."""
    paths = [Path(folder) for folder in folders]
    rows = [one_seed(path) for path in paths]
    every = [versions(path) for path in paths]
    first, last = pooled([v[0][1] for v in every]), pooled([v[-1][1] for v in every])
    for row in rows:
        cells = "  ".join(f"{label} {_text(value)}" for label, value in row["versions"].items())
        print(f"seed {row['seed']} ({row['seconds']} s): {cells}  Vn - V0 {_text(row['difference'])}")
    print(f"pooled: V0 {_text(first.to_dict())}  Vn {_text(last.to_dict())}")
    holds = all(row["difference"]["low"] > 0 for row in rows) and last.low > first.high
    print("the criterion holds" if holds else "the criterion does not hold")
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"seeds": rows, "pooled": {"V0": first.to_dict(), "Vn": last.to_dict()}, "holds": holds}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    folders = sys.argv[1:] or [str(p) for p in sorted(Path("runs").glob("demo*")) if is_run(p)]
    if not folders:
        print("not run: there is no finished demo; run make demo, make demo SEED=1, make demo SEED=2 first")
        sys.exit(0)
    sys.exit(main(folders))
