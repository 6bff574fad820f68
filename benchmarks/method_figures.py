"""Collect what runs measured: `python benchmarks/method_figures.py runs/dpo runs/grpo …`.

Each folder is a finished run of a recipe. Prints one row per run (first and last version on the score that leads, the
paired difference with its 95% interval, the KL, seconds of all stages) and writes results/methods.json with every
version's metrics and the command that made them, so that each figure of a README can be traced.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from alignkit.report.collect import collect

RESULTS = Path(__file__).parent / "results" / "methods.json"


def one_run(folder: Path) -> dict[str, Any]:
    """What `results/methods.json` keeps of a run."""
    view = collect(folder)
    run = view.record
    last = view.versions[-1]
    return {
        "name": folder.name,
        "command": re.sub(r"(?:/[\w.\-]+)+/([\w.\-]+)", r"\1", run.command),  # folders are nobody's business
        "seed": run.seed,
        "seconds": round(sum(stage.seconds or 0 for stage in run.stages)),
        "score": last.scores[0],
        "versions": {version.label: version.metrics for version in view.versions},
        "difference": last.paired.get(last.scores[0]),
    }


def _text(interval: dict[str, Any] | None, sign: str = "") -> str:
    if not interval:
        return "-"
    return f"{interval['mean']:{sign}.3f} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"


def main(folders: list[str]) -> int:
    """Print and record; with no folder say how it is used."""
    if not folders:
        print(__doc__)
        return 0
    runs = [one_run(Path(folder)) for folder in folders]
    print("| run | score | first | last | last - first, paired | KL | seconds |\n|---|---|---|---|---|---|---|")
    for run in runs:
        versions = list(run["versions"].values())
        first, last = (version.get(run["score"]) for version in (versions[0], versions[-1]))
        kl = (versions[-1].get("kl") or {}).get("mean")
        shown = f"{kl:.1f}" if kl is not None else "-"
        print(
            f"| {run['name']} | {run['score']} | {_text(first)} | {_text(last)} | {_text(run['difference'], '+')} "
            f"| {shown} | {run['seconds']} |"
        )
    kept = {run["name"]: run for run in runs}
    if RESULTS.is_file():  # runs measured earlier stay
        kept = {**json.loads(RESULTS.read_text()), **kept}
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
