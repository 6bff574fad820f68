"""From cells on disk to what may be said of the methods."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.budget import NAMES
from alignkit.comparison.cell import CELL, FORMAT
from alignkit.comparison.declared import START
from alignkit.errors import DataError
from alignkit.evaluation import few_runs
from alignkit.evaluation.statistics import Interval, per_prompt_scores
from alignkit.files import read_json
from alignkit.meter import short
from alignkit.metrics.specs import ANSWERS
from alignkit.report.collect import is_number
from alignkit.run_folder import STAGES, Row, mapping, read_evaluation, read_stage

TABLE = "comparison.txt"
THRESHOLDS = 21
"""Points of a performance profile."""
LEVEL = 0.05
"""A difference is told from none below this corrected p-value."""


@dataclass(frozen=True)
class Done:
    """A cell on disk.

    Args:
        folder: of its run.
        method: its label.
        seed: of its run.
        record: what `cell.json` says.
        rows: the evaluated answers of its last version; none where it failed.
    """

    folder: Path
    method: str
    seed: int
    record: Row
    rows: list[Row] = field(default_factory=list, repr=False)

    @property
    def failed(self) -> str:
        """Why, or nothing."""
        return "" if self.record.get("status") == "complete" else str(self.record.get("reason") or "not finished")

    @property
    def path(self) -> list[Row]:
        """Its versions."""
        return self.record.get("path") or []

    def place(self, root: Path) -> str:
        """Its folder, from that of a comparison."""
        return Path(os.path.relpath(self.folder, root)).as_posix()

    def score(self, name: str) -> dict[str, float]:
        """One score by prompt."""
        return per_prompt_scores(self.rows, name)

    @property
    def metrics(self) -> dict[str, float]:
        """The means of all that was measured of its last version."""
        found = mapping(read_stage(self.folder / STAGES / self.path[-1]["evaluation"]).result.get("metrics"))
        means: Row = {name: value.get("mean") if isinstance(value, dict) else value for name, value in found.items()}
        return {name: float(mean) for name, mean in means.items() if is_number(mean)}

    def answers(self, version: Mapping[str, Any]) -> list[Row]:
        """The evaluated answers of one of its versions."""
        return read_evaluation(self.folder / STAGES / version["evaluation"])


@dataclass(frozen=True)
class Standing:
    """One method over its seeds.

    Args:
        method: its label.
        seeds: that came to their end.
        failed: seed -> why it did not.
        mean, iqm: of the leading score over prompts and seeds.
        gap: how far scores fall short of 1; None where scores go beyond it. Of a whole problem, the scores are each
            seed's mean over its prompts.
        better_than_start: the chance that a run is better than the start on a prompt.
        rank: (place, best it can be, worst it can be) among the methods.
        besides: the means of everything else that was measured.
        spent: of each budget, the mean over seeds.
        profile: the share of scores above each of `Comparison.thresholds`.
        trials: of tuning.
        settings: that it ran with.
        notes: such as a last round that was cut.
    """

    method: str
    seeds: tuple[int, ...]
    failed: Mapping[int, str]
    mean: Interval | None = None
    iqm: Interval | None = None
    gap: Interval | None = None
    better_than_start: Interval | None = None
    rank: tuple[int, int, int] | None = None
    besides: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    profile: tuple[float, ...] = ()
    trials: int = 0
    settings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """One method against another.

    Args:
        a, b: labels.
        difference: of the leading score, a − b, each seed and prompt compared with itself.
        improvement: the chance that a run of `a` is better than one of `b` on a prompt.
        p: two-sided, corrected for the number of differences (Holm).
        seeds: that both have.
    """

    a: str
    b: str
    difference: Interval
    improvement: Interval
    p: float
    seeds: int

    @property
    def sure(self) -> bool:
        """Whether the two can be told apart."""
        return self.p < LEVEL


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        folder: where it is.
        conditions: the same for all methods.
        score: the leading score.
        whole: whether the prompts are the whole problem, and stand for no others.
        standings: of the methods, best first; the start among them.
        differences: of every two.
        thresholds: of the profiles.
        cells: on disk.
        suite: the suite's digest.
        policy: the digest of what all start from.
        versions: of libraries and plugins.
        trials: of tuning by method: settings, score, why it failed, what it spent.
    """

    folder: Path
    conditions: Row
    score: str
    whole: bool
    standings: tuple[Standing, ...]
    differences: tuple[Difference, ...]
    thresholds: tuple[float, ...]
    cells: tuple[Done, ...] = field(repr=False)
    suite: str = ""
    policy: str = ""
    versions: Row = field(default_factory=dict)
    trials: Mapping[str, list[Row]] = field(default_factory=dict)

    @property
    def only_of_the_whole(self) -> list[str]:
        """What was measured of a version as a whole and of no single answer, such as a distance to an optimum."""
        rows = next((cell.rows for cell in self.cells if cell.rows), [])
        single = {*(mapping(rows[0].get("scores")) if rows else ()), *ANSWERS}
        return list(dict.fromkeys(name for each in self.standings for name in each.besides if name not in single))

    @property
    def nothing(self) -> bool:
        """Whether no method came to its end under any seed."""
        return not any(each.seeds for each in self.standings if each.method != START)

    @property
    def left_out(self) -> int:
        """Prompts that have no score in some cell, and are left out of all."""
        each = [set(cell.score(self.score)) for cell in self.cells if not cell.failed]
        return len(set.union(*each)) - len(set.intersection(*each)) if each else 0

    def table(self) -> str:
        """The leaderboard as text, as it was written beside the rest."""
        return (self.folder / TABLE).read_text(encoding="utf-8").rstrip("\n")

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "comparison.html"

    def to_json(self) -> Row:
        """As plain JSON: everything but the answers."""
        return {
            "format": FORMAT,
            "conditions": self.conditions,
            "score": self.score,
            "prompts_are_all": self.whole,
            "prompts_left_out": self.left_out,
            "suite": self.suite,
            "policy": self.policy,
            "versions": self.versions,
            "thresholds": list(self.thresholds),
            "methods": [
                {**asdict(each), "failed": {str(k): v for k, v in each.failed.items()}} for each in self.standings
            ],
            "differences": [asdict(each) for each in self.differences],
            "tuning": dict(self.trials),
            "cells": [
                {"method": cell.method, "seed": cell.seed, "folder": cell.place(self.folder), "reason": cell.failed}
                | {name: cell.record.get(name) for name in ("status", "path", "spent")}
                for cell in self.cells
            ],
        }


def read_cell(folder: Path) -> Done:
    """A cell from its folder.

    Raises:
        DataError: its record is missing or torn, or of another format.
    """
    try:
        record = mapping(read_json(folder / CELL))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(folder / CELL), remedy="compare again") from error
    if record.get("format") != FORMAT:
        raise DataError(f"of format {record.get('format')}", where=str(folder / CELL), remedy="compare again")
    done = Done(folder, record["method"]["label"], int(record["seed"]), record)
    return Done(folder, done.method, done.seed, record, [] if done.failed else done.answers(done.path[-1]))


def conclude(folder: Path, cells: Sequence[Done], trials: Mapping[str, list[Row]] | None = None) -> Comparison:
    """Everything that may be said of the cells.

    Args:
        folder: of the comparison.
        cells: all under the same conditions.
        trials: of tuning, by method.
    """
    tried = dict(trials or {})
    score = _leading([cell for cell in cells if not cell.failed])
    cells = [_without_score(cell, score) for cell in cells]
    done = [cell for cell in cells if not cell.failed]
    first = done[0].record if done else cells[0].record
    whole = bool(first.get("whole"))
    scores = {label: _matrix(label, done, score) for label in dict.fromkeys(c.method for c in cells)}
    differences = _differences(scores, whole)
    high, low = _range(scores)
    thresholds = tuple(float(t) for t in np.linspace(low, high, THRESHOLDS))
    means = {label: float(table.values.mean()) for label, table in scores.items() if table.values.size}
    better = {(d.a, d.b): d.sure and d.difference.mean > 0 for d in differences}
    better |= {(d.b, d.a): d.sure and d.difference.mean < 0 for d in differences}
    placed = few_runs.ranks(means, better)
    standings = [
        _standing(label, [c for c in cells if c.method == label], scores, thresholds, whole, score) for label in scores
    ]
    standings = [
        replace(each, rank=placed.get(each.method), trials=len(tried.get(each.method, ()))) for each in standings
    ]
    standings.sort(key=lambda each: (each.mean is None, -(each.mean.mean if each.mean else 0.0), each.method))
    return Comparison(
        folder=folder,
        conditions=dict(first["conditions"]),
        score=score,
        whole=whole,
        standings=tuple(standings),
        differences=tuple(differences),
        thresholds=thresholds,
        cells=tuple(cells),
        suite=str(first.get("suite", "")),
        policy=str(first.get("policy", "")),
        versions=mapping(first.get("versions")),
        trials=tried,
    )


@dataclass(frozen=True)
class Table:
    """Scores of a method: [seeds, prompts], with the seeds that they are of."""

    seeds: tuple[int, ...]
    values: Any

    def of(self, seeds: Iterable[int]) -> Any:
        """The rows of these seeds."""
        return self.values[[self.seeds.index(seed) for seed in seeds]]


def _without_score(cell: Done, score: str) -> Done:
    """The cell; one of which no answer has the score counts as failed, and takes no prompt from the others."""
    if cell.failed or cell.score(score):
        return cell
    reason = f"none of its answers has the score {score}"
    return Done(cell.folder, cell.method, cell.seed, {**cell.record, "status": "failed", "reason": reason})


def _leading(done: Sequence[Done]) -> str:
    """The first score of the first row: the truth."""
    rows = next((cell.rows for cell in done if cell.rows), [])
    return next(iter(mapping(rows[0].get("scores"))), "score") if rows else "score"


def _matrix(label: str, done: Sequence[Done], score: str) -> Table:
    """A method's scores, over the prompts that have one in every cell of every method."""
    prompts = sorted(set.intersection(*(set(cell.score(score)) for cell in done))) if done else []
    own = sorted((cell for cell in done if cell.method == label), key=lambda cell: cell.seed)
    rows = [[found[p] for p in prompts] for found in (cell.score(score) for cell in own)]
    return Table(tuple(cell.seed for cell in own), np.array(rows, dtype=np.float64).reshape(len(rows), len(prompts)))


def _range(scores: Mapping[str, Table]) -> tuple[float, float]:
    values = [table.values for table in scores.values() if table.values.size]
    return (max(v.max() for v in values), min(v.min() for v in values)) if values else (1.0, 0.0)


def _differences(scores: Mapping[str, Table], whole: bool) -> list[Difference]:
    found = []
    for a, b in itertools.combinations([label for label, table in scores.items() if table.values.size], 2):
        common = [seed for seed in scores[a].seeds if seed in scores[b].seeds]
        if not common:
            continue
        left, right = scores[a].of(common), scores[b].of(common)
        gain = few_runs.paired(left, right, draw_prompts=not whole)
        chance = few_runs.estimate(few_runs.probability_of_improvement, left, right, draw_prompts=not whole)
        found.append((a, b, gain, chance, len(common)))
    corrected = few_runs.holm([gain.p_value for _, _, gain, _, _ in found])
    return [
        Difference(a, b, gain.interval(), chance.interval(low=0.0, high=1.0), p, count)
        for (a, b, gain, chance, count), p in zip(found, corrected, strict=True)
    ]


def _standing(
    label: str,
    cells: Sequence[Done],
    scores: Mapping[str, Table],
    thresholds: Sequence[float],
    whole: bool,
    score: str,
) -> Standing:
    failed = {cell.seed: cell.failed for cell in cells if cell.failed}
    done, table = [cell for cell in cells if not cell.failed], scores[label]
    method = cells[0].record["method"]
    common: dict[str, Any] = {
        "settings": tuple(method["steps"]),
        "notes": _notes(done),
    }
    if not table.values.size:
        return Standing(label, (), failed, **common)
    short = {name: each.values.mean(axis=1, keepdims=True) if whole else each.values for name, each in scores.items()}
    bounded = all(values.max() <= 1.0 for values in short.values() if values.size)
    start = scores.get(START)
    versus = start if start is not None and start.values.size and label != START else None
    return Standing(
        label,
        table.seeds,
        failed,
        mean=_interval(few_runs.mean, table.values, whole=whole),
        iqm=_interval(few_runs.interquartile_mean, table.values, whole=whole),
        gap=_interval(few_runs.optimality_gap, short[label], whole=whole) if bounded else None,
        better_than_start=None
        if versus is None
        else _interval(few_runs.probability_of_improvement, table.values, versus.values, whole=whole, share=True),
        besides=_besides(done, score),
        spent={name: float(np.mean([mapping(c.record.get("spent")).get(name, 0) for c in done])) for name in NAMES},
        profile=tuple(float(v) for v in few_runs.performance_profile(table.values, thresholds)),
        **common,
    )


def _interval(statistic: Any, *values: Any, whole: bool, share: bool = False) -> Interval:
    found = few_runs.estimate(statistic, *values, draw_prompts=not whole)
    return found.interval(low=0.0, high=1.0) if share else found.interval()


def _besides(done: Sequence[Done], score: str) -> dict[str, float]:
    """The mean over seeds of whatever was measured beside the leading score."""
    measured = [cell.metrics for cell in done]
    names = dict.fromkeys(name for each in measured for name in each if name != score)
    return {name: float(np.mean([each[name] for each in measured if name in each])) for name in names}


def _notes(done: Sequence[Done]) -> tuple[str, ...]:
    """What happened under any seed, once each."""
    found: list[str] = []
    for cell in done:
        before = 0.0
        for row in cell.path:
            steps = float(mapping(row.get("spent")).get("optimizer_steps", 0))
            if row.get("stopped") == "budget":
                cut = steps > before
                found.append("the last round was cut at the budget" if cut else "the budget left no optimizer step")
            if row.get("note"):
                found.append(str(row["note"]))
            before = steps
    return tuple(dict.fromkeys([*found, *_exceeded(done)]))


def _exceeded(done: Sequence[Done]) -> list[str]:
    """What was spent beyond a budget under any seed: what is sampled, or scored, before the first step is not cut."""
    found = []
    for name, limit in mapping(done[0].record["conditions"].get("budget") if done else None).items():
        most = max(float(mapping(cell.record.get("spent")).get(name, 0)) for cell in done)
        if most > limit:
            found.append(f"{short(most)} {name} spent, of {short(limit)}")
    return found


def seconds_of(cell: Done) -> dict[str, float]:
    """Seconds of a cell by phase, over all its stages."""
    total: dict[str, float] = {}
    for name in cell.record.get("stages") or []:
        for phase, seconds in mapping(read_stage(cell.folder / STAGES / name).meter.get("seconds")).items():
            total[phase] = total.get(phase, 0.0) + float(seconds)
    return total
