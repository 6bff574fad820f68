"""Reading a run folder into a plain view: files in, dataclasses out, whatever state the run is in.

A run that is still being written, or that failed, has torn or missing files. What cannot be read is kept as a problem
that the page shows; only a `run.json` that is no run of ours is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.errors import DataError
from alignkit.evaluation import score_names, summarise_evaluation
from alignkit.evaluation.statistics import per_prompt_scores
from alignkit.evaluation.summary import paired_by_prompt
from alignkit.metrics.specs import ANSWERS, MetricSpec

FORMAT = 1
Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One verb call: what `stage.json` says, and its rows of metrics."""

    folder: str
    info: Row
    steps: list[Row] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.folder)

    @property
    def verb(self) -> str:
        return str(self.info.get("verb") or "")

    @property
    def status(self) -> str:
        return str(self.info.get("status") or "unknown")

    @property
    def result(self) -> Row:
        return mapping(self.info.get("result"))

    @property
    def config(self) -> Row:
        return mapping(self.info.get("config"))

    @property
    def inputs(self) -> Row:
        return mapping(self.info.get("inputs"))

    @property
    def specs(self) -> dict[str, MetricSpec]:
        """What the numbers are that it logged or measured beyond the core's own."""
        return {name: MetricSpec.from_json(data) for name, data in mapping(self.result.get("specs")).items()}


@dataclass(frozen=True)
class Version:
    """One evaluated version: its summary, its answers, and the difference to the first version."""

    label: str
    stage: Stage
    rows: list[Row]
    metrics: Row
    scores: list[str]
    paired: Row

    @property
    def best_of_n(self) -> Row:
        return mapping(self.stage.result.get("best_of_n"))

    @property
    def kl_per_token(self) -> float | None:
        """Total KL over total length, where the rows have both."""
        both = [(r["kl"], r["length"]) for r in self.rows if r.get("kl") is not None and r.get("length")]
        return sum(kl for kl, _ in both) / sum(length for _, length in both) if both else None


@dataclass(frozen=True)
class RunView:
    """Everything the page shows, in the order it ran."""

    folder: Path
    info: Row
    stages: list[Stage]
    versions: list[Version]
    problems: list[str]

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.folder.name)

    @property
    def status(self) -> str:
        return str(self.info.get("status") or "unknown")

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
    problems: list[str] = []
    info = _run_info(run_folder)
    stages = _stages(run_folder, info.get("stages"), problems)
    versions = _versions(run_folder, [stage for stage in stages if stage.verb == "evaluate"], problems)
    return RunView(run_folder, info, stages, versions, problems)


def _run_info(folder: Path) -> Row:
    if not folder.is_dir():
        raise DataError(
            "no such folder", where=str(folder), remedy="give the folder of a run (`alignkit runs` lists them)"
        )
    path = folder / "run.json"
    if not path.exists():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), remedy="run the script again") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise DataError(f"is not a run of format {FORMAT}", where=str(path), remedy="use the alignkit that wrote it")
    return info


def _stages(folder: Path, names: Any, problems: list[str]) -> list[Stage]:
    stages = []
    for name in names if isinstance(names, list) else []:
        if not _is_folder_name(name):
            problems.append(f"{name!r} is not the name of a stage folder; left out")
            continue
        path = folder / "stages" / name
        try:
            info = json.loads((path / "stage.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            info = {"name": name, "status": "not finished"}
        except (ValueError, OSError) as error:
            problems.append(f"stages/{name}/stage.json cannot be read: {error}")
            info = {"name": name, "status": "unreadable"}
        stages.append(Stage(name, mapping(info), _json_lines(path / "metrics.jsonl", problems)))
    return stages


def _versions(folder: Path, stages: list[Stage], problems: list[str]) -> list[Version]:
    """Evaluated stages by `order`; the first one is what the others are compared with."""
    finished = [stage for stage in stages if stage.result or stage.status == "complete"]
    ordered = sorted(finished, key=lambda stage: _order(stage))
    labels = [str(stage.result.get("label") or stage.name) for stage in ordered]
    versions: list[Version] = []
    for stage, label in zip(ordered, labels, strict=True):
        rows = _evaluation_rows(folder / "stages" / stage.folder / "evaluation.jsonl", problems)
        shown = label if labels.count(label) == 1 else f"{label} ({stage.name})"
        versions.append(_version(shown, stage, rows, versions[0] if versions else None))
    return versions


def _version(label: str, stage: Stage, rows: list[Row], first: Version | None) -> Version:
    given = mapping(stage.result.get("metrics")) or summarise_evaluation(rows)["metrics"]
    metrics = {name: {"mean": value} if is_number(value) else mapping(value) for name, value in given.items()}
    scores = _score_order(metrics, rows, {*ANSWERS, *stage.specs})
    paired = mapping(stage.result.get("paired_to_first"))
    if first is not None and not paired:
        sides = {name: (per_prompt_scores(rows, name), per_prompt_scores(first.rows, name)) for name in scores}
        pairs = {name: paired_by_prompt(*both) for name, both in sides.items()}
        paired = {name: pair for name, pair in pairs.items() if pair}
    return Version(label, stage, rows, metrics, scores, paired if first is not None else {})


def _score_order(metrics: Row, rows: list[Row], besides: set[str]) -> list[str]:
    """The true score first where there is one, then as written."""
    names = [*metrics, *score_names(rows)]
    scores = [name for name in dict.fromkeys(names) if name not in besides]
    return sorted(scores, key=lambda name: name != "gold")


def _evaluation_rows(path: Path, problems: list[str]) -> list[Row]:
    rows = [row for row in _json_lines(path, problems) if isinstance(row.get("prompt_id"), str)]
    bad = 0
    for row in rows:
        scores = mapping(row.get("scores"))
        row["scores"] = {name: value if is_number(value) else None for name, value in scores.items()}
        bad += sum(value is not None and not is_number(value) for value in scores.values())
        row |= {name: None for name in ANSWERS if not isinstance(row.get(name), bool) and not is_number(row.get(name))}
    if bad:
        problems.append(f"{path.parent.name}/{path.name}: {bad} score(s) are not finite numbers and are left out")
    return rows


def _json_lines(path: Path, problems: list[str]) -> list[Row]:
    """The rows of a JSONL file; what cannot be read is counted (the last line of a running stage may be torn)."""
    if not path.exists():
        return []
    rows, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    if bad:
        problems.append(f"{path.parent.name}/{path.name}: {bad} line(s) cannot be read and are left out")
    return rows


def _is_folder_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0:")


def _order(stage: Stage) -> float:
    order = stage.result.get("order")
    return float(order) if isinstance(order, (int, float)) else float("inf")


def mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def numeric_names(rows: Iterable[Row]) -> list[str]:
    """Names of the numbers in rows of metrics, in the order they first appear, bookkeeping left out."""
    names = (name for row in rows for name, value in row.items() if is_number(value))
    return [name for name in dict.fromkeys(names) if name not in ("step", "round", "round_end", "epoch", "time")]


def is_number(value: Any) -> bool:
    """A finite number, and not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
