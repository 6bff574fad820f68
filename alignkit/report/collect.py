"""From a run folder to a plain view of what it holds, whatever state the run is in.

What cannot be read is kept as a problem that the page shows; only a `run.json` that is no run of ours is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.evaluation import score_names, summarise_evaluation
from alignkit.evaluation.statistics import per_prompt_scores
from alignkit.evaluation.summary import paired_by_prompt
from alignkit.metrics.specs import ANSWERS, MetricSpec
from alignkit.run_folder import (
    EVALUATION,
    Row,
    RunRecord,
    StageRecord,
    mapping,
    read_evaluation,
    read_metrics,
    read_run,
)


@dataclass(frozen=True)
class Stage(StageRecord):
    """A stage and its rows of metrics."""

    steps: list[Row] = field(default_factory=list)

    @property
    def specs(self) -> dict[str, MetricSpec]:
        """What the numbers are that it logged or measured beyond the core's own."""
        return {name: MetricSpec.from_json(data) for name, data in mapping(self.result.get("specs")).items()}


@dataclass(frozen=True)
class Version:
    """One evaluated version: its summary, its answers, and what differs from the first version and the one before."""

    label: str
    stage: Stage
    rows: list[Row]
    metrics: Row
    scores: list[str]
    paired: Row
    paired_to_previous: Row

    @property
    def best_of_n(self) -> Row:
        return mapping(self.stage.result.get("best_of_n"))

    @property
    def kl_per_token(self) -> float | None:
        """Total KL over total length, where the rows have both."""
        both = [
            (r["kl"], r["response_length"]) for r in self.rows if r.get("kl") is not None and r.get("response_length")
        ]
        return sum(kl for kl, _ in both) / sum(length for _, length in both) if both else None


@dataclass(frozen=True)
class RunView:
    """Everything the page shows, in the order it ran."""

    record: RunRecord
    stages: list[Stage]
    versions: list[Version]
    problems: list[str]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def status(self) -> str:
        return self.record.status

    @property
    def scores(self) -> list[str]:
        """Every score of any version, the first one first."""
        return list(dict.fromkeys(name for version in self.versions for name in version.scores))

    @property
    def besides(self) -> dict[str, MetricSpec]:
        """What evaluations measure besides scores: what they always do, then what any version was asked for."""
        return ANSWERS | {name: spec for version in self.versions for name, spec in version.stage.specs.items()}


def collect(run_folder: Path) -> RunView:
    """Read a run folder.

    Raises:
        DataError: the folder does not exist, or its `run.json` is unreadable or of another format.
    """
    run = read_run(run_folder)
    problems = list(run.problems)
    stages = [Stage(**vars(stage), steps=read_metrics(stage.folder, problems)) for stage in run.stages]
    versions = _versions([stage for stage in stages if "evaluation" in stage.made], problems)
    return RunView(run, stages, versions, problems)


def _versions(stages: list[Stage], problems: list[str]) -> list[Version]:
    """Evaluated stages in the order of the run; the first one is what the others are compared with."""
    finished = [stage for stage in stages if stage.result or stage.status == "complete"]
    labels = [str(stage.result.get("label") or stage.name) for stage in finished]
    versions: list[Version] = []
    for stage, label in zip(finished, labels, strict=True):
        rows = _evaluation_rows(stage.folder, problems)
        shown = label if labels.count(label) == 1 else f"{label} ({stage.name})"
        versions.append(_version(shown, stage, rows, versions))
    return versions


def _version(label: str, stage: Stage, rows: list[Row], earlier: list[Version]) -> Version:
    given = mapping(stage.result.get("metrics")) or summarise_evaluation(rows)["metrics"]
    metrics = {name: {"mean": value} if is_number(value) else mapping(value) for name, value in given.items()}
    scores = _score_order(metrics, rows, {*ANSWERS, *stage.specs})
    if not earlier:
        return Version(label, stage, rows, metrics, scores, {}, {})
    paired = mapping(stage.result.get("paired_to_first")) or _paired(rows, earlier[0].rows, scores)
    previous = paired if len(earlier) == 1 else _paired(rows, earlier[-1].rows, scores)
    return Version(label, stage, rows, metrics, scores, paired, previous)


def _paired(rows: list[Row], others: list[Row], scores: list[str]) -> Row:
    """The paired difference of rows to others on each score that both have."""
    sides = {name: (per_prompt_scores(rows, name), per_prompt_scores(others, name)) for name in scores}
    pairs = {name: paired_by_prompt(*both) for name, both in sides.items()}
    return {name: pair for name, pair in pairs.items() if pair}


def _score_order(metrics: Row, rows: list[Row], besides: set[str]) -> list[str]:
    """The true score first where there is one, then as written."""
    names = [*metrics, *score_names(rows)]
    scores = [name for name in dict.fromkeys(names) if name not in besides]
    return sorted(scores, key=lambda name: name != "gold")


def _evaluation_rows(folder: Path, problems: list[str]) -> list[Row]:
    rows = [row for row in read_evaluation(folder, problems) if isinstance(row.get("prompt_id"), str)]
    bad = 0
    for row in rows:
        scores = mapping(row.get("scores"))
        row["scores"] = {name: value if is_number(value) else None for name, value in scores.items()}
        bad += sum(value is not None and not is_number(value) for value in scores.values())
        row |= {name: None for name in ANSWERS if not isinstance(row.get(name), bool) and not is_number(row.get(name))}
    if bad:
        problems.append(f"{folder.name}/{EVALUATION}: {bad} score(s) are not finite numbers and are left out")
    return rows


def numeric_names(rows: Iterable[Row]) -> list[str]:
    """Names of the numbers in rows of metrics, in the order they first appear, bookkeeping left out."""
    names = (name for row in rows for name, value in row.items() if is_number(value))
    return [name for name in dict.fromkeys(names) if name not in ("step", "round", "round_end", "epoch", "time")]


def is_number(value: Any) -> bool:
    """A finite number, and not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
