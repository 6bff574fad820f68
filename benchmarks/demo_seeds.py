"""The demo over seeds: `python benchmarks/demo_seeds.py runs/demo runs/demo-seed1 runs/demo-seed2`.

Reads the evaluations of finished runs (make them with `make demo`, `make demo SEED=1`, …), prints a table of each score
with a row per seed and one over all seeds, says which claims hold, and writes results/demo.json. The claims, with
paired 95% intervals over held-out prompts: helpfulness and safety rise from V0 to the last version in each seed; over
the seeds the last step gains on gold, and over-refusal does not rise.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.evaluation import bootstrap_mean, paired_difference, per_prompt_scores, pooled
from alignkit.run_folder import is_run, read_evaluation, read_run

SCORES = ("gold", "helpfulness", "safety", "over_refusal")
RESULTS = Path(__file__).parent / "results" / "demo.json"
Scores = Mapping[str, float]


def versions(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Label of each evaluated version, in order -> name of a score -> prompt -> value; the KL among the scores."""
    found = {}
    for stage in read_run(folder).stages:
        if "evaluation" in stage.made:
            rows = read_evaluation(stage.folder)
            found[stage.result["label"]] = {name: per_prompt_scores(rows, name) for name in (*SCORES, "kl")}
    return found


def seconds(folder: Path) -> float:
    """What the stages of a run took."""
    return sum(stage.seconds or 0 for stage in read_run(folder).stages)


def row(every: Sequence[Mapping[str, Scores]]) -> dict[str, Any]:
    """One score of the versions of one run, or of several with the prompts of all seeds drawn together."""
    labels = list(every[0])
    first, before, last = labels[0], labels[-2], labels[-1]

    def change(older: str) -> dict[str, Any]:
        if len(every) == 1:
            return paired_difference(every[0][last], every[0][older]).to_dict()
        return pooled([{key: run[last][key] - run[older][key] for key in run[last]} for run in every]).to_dict()

    mean = pooled if every[1:] else lambda one: bootstrap_mean(*one)
    means = {label: mean([run[label] for run in every]) for label in labels}
    return {
        "prompts": len(every[0][first]),
        "versions": {label: value.to_dict() for label, value in means.items()},
        "last - first": change(first),
        "last - previous": change(before),
    }


def claims(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Each claim and whether it holds."""

    def in_each(name: str) -> bool:
        return all(seed["last - first"]["low"] > 0 for seed in scores[name]["seeds"].values())

    return {
        "helpfulness rises in each seed": in_each("helpfulness"),
        "safety rises in each seed": in_each("safety"),
        "the last step gains on gold, over the seeds": scores["gold"]["all"]["last - previous"]["low"] > 0,
        "over-refusal does not rise, over the seeds": scores["over_refusal"]["all"]["last - first"]["low"] <= 0,
    }


def _interval(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _line(title: str, found: Mapping[str, Any]) -> str:
    means = " ".join(f"{value['mean']:7.3f}" for value in found["versions"].values())
    return f"{title:24} {means}  {_interval(found['last - first'])}  {_interval(found['last - previous'])}"


def main(folders: list[str]) -> int:
    """Print and record; 1 when a claim does not hold."""
    paths = [Path(folder) for folder in folders]
    runs = {str(read_run(path).seed): versions(path) for path in paths}
    scores: dict[str, Any] = {}
    for name in SCORES:
        by_seed = {seed: {label: found[name] for label, found in run.items()} for seed, run in runs.items()}
        scores[name] = {"seeds": {seed: row([one]) for seed, one in by_seed.items()}, "all": row([*by_seed.values()])}
        labels = " ".join(f"{label:>7}" for label in scores[name]["all"]["versions"])
        title = f"{name}, {scores[name]['all']['prompts']} prompts"
        print(f"\n{title:24} {labels}  last - first             last - previous")
        for seed, found in scores[name]["seeds"].items():
            print(_line(f"  seed {seed}", found))
        print(_line("  all", scores[name]["all"]))
    took = {seed: round(seconds(path)) for seed, path in zip(runs, paths, strict=True)}
    kl = {seed: {label: bootstrap_mean(found["kl"]).mean for label, found in run.items()} for seed, run in runs.items()}
    last = ", ".join(f"{list(values.values())[-1]:.2f}" for values in kl.values())
    print(f"\nKL of the last version: {last} nats a response")
    print("seconds of the stages:", ", ".join(map(str, took.values())))
    held = claims(scores)
    for claim, holds in held.items():
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"scores": scores, "kl": kl, "seconds": took, "claims": held}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    folders = sys.argv[1:] or [str(p) for p in sorted(Path("runs").glob("demo*")) if is_run(p)]
    if not folders:
        print("not run: there is no finished demo; run make demo, make demo SEED=1, make demo SEED=2 first")
        sys.exit(0)
    sys.exit(main(folders))
