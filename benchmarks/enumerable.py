"""Every method against its own optimum on the suite `enumerable`, where it is exact.

    python benchmarks/enumerable.py --methods rloo dpo --seeds 5 --out benchmarks/results/enumerable.json

A row that is there already is not made again. Without --methods: all that have settings, and variants of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignkit import PolicyOptimizer, Run
from alignkit.plugin import Component, build, parse

VARIANTS = {
    "dr_grpo": "grpo(scale=False, reduction='constant', constant=2.0)",
    "ipo": "dpo(loss=ipo(beta=0.5))",
    "simpo": "dpo(loss=simpo)",
    "orpo": "dpo(loss=orpo)",
}
"""Methods that are settings of another one."""
METHODS = (
    *("ppo", "rloo", "reinforce_pp", "online_dpo", "dpo", "ipo", "simpo", "orpo", "kto", "rejection_sampling"),
    *("rest", "grpo", "dr_grpo", "dapo"),
)
BAR = 0.05
"""Largest gap to the own optimum."""
SHOWN = ("gap", "share", "kl", "frontier_share")


def configured(name: str, settings: Any) -> Component:
    """A method with the suite's settings, and its own before them."""
    spec = parse(VARIANTS.get(name, name))
    return Component(spec.name, {**settings.get(spec.name, {}), **spec.params})


def cell(folder: Path, suite: Any, name: str, seed: int) -> dict[str, Any]:
    """One method with one seed: its exact results, and the CPU seconds that learning took."""
    method = configured(name, suite.settings)
    built: PolicyOptimizer = build("optimizer", method)
    ranked = "annotated" in built.prepare_arguments()
    judge = {"annotator": suite.annotator} if ranked else {"reward": next(iter(suite.scores.values()))}
    with Run(folder, seed, quiet=True, max_tokens=1 << 16, trainer={"accelerator": "cpu"}) as run:
        v0 = suite.start(run)
        data = suite.data(run, v0, method, f"{name}/data")
        judge = judge if built.samples_per_prompt else {}
        before = time.process_time()
        improved = run.improve(
            v0,
            data,
            optimizer=method,
            reference=v0,
            sampler="default(batch_size=4096)",
            max_new_tokens=suite.max_new_tokens,
            name=f"{name}/v1",
            **judge,
        )
        seconds = time.process_time() - before
        found = suite.measure(run, improved.policy, name=f"{name}/measured", label=name)
    return {
        "method": name,
        "spec": str(method),
        "seed": seed,
        "cpu_seconds": round(seconds, 1),
        **found.result["metrics"],
        "own": found.result.get("own"),
        "spent": improved.result["budget"],
    }


HEAD = "method seeds gap ±sd least…most share KL frontier_share own:_share/KL CPU_s"


def table(rows: list[dict[str, Any]]) -> str:
    """A line a method: means over seeds, and the spread of the gap; bold where the mean is within the bar."""
    lines = [_line(HEAD.split()).replace("_", " "), "|" + "---|" * len(HEAD.split())]
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        mean = {key: statistics.fmean(row[key] for row in mine) for key in (*SHOWN, "cpu_seconds")}
        gaps, own = [row["gap"] for row in mine], mine[0]["own"] or {}
        bold = "**" if mean["gap"] <= BAR else ""
        lines.append(
            _line(
                [
                    name,
                    len(mine),
                    f"{bold}{mean['gap']:.3f}{bold}",
                    f"{statistics.stdev(gaps) if len(gaps) > 1 else 0:.3f}",
                    f"{min(gaps):.3f} … {max(gaps):.3f}",
                    *(f"{mean[key]:.3f}" for key in SHOWN[1:]),
                    f"{own['share']:.3f} / {own['kl']:.3f}" if "share" in own else "–",
                    f"{mean['cpu_seconds']:.0f}",
                ]
            )
        )
    return "\n".join(lines)


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--suite", default="enumerable")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/enumerable"))
    parser.add_argument("--out", type=Path, help="a JSON file of rows, added to")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    suite = build("suite", given.suite)()
    rows: list[dict[str, Any]] = []
    if given.out and given.out.exists():
        rows = json.loads(given.out.read_text())
    for seed in range(given.seeds):
        for name in given.methods:
            if not any(row["method"] == name and row["seed"] == seed for row in rows):
                rows.append(cell(given.run_dir / f"seed{seed}", suite, name, seed))
                row = rows[-1]
                print(name, seed, " ".join(f"{k} {row[k]:.3f}" for k in SHOWN), row["cpu_seconds"], "s", flush=True)
                if given.out:
                    given.out.write_text(json.dumps(rows, indent=1) + "\n")
    rows = [row for row in rows if row["method"] in given.methods]
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
