"""A run on disk: the names of its files, and what the run and its stages say of themselves. The one reader of them.

```text
RUN/
  run.json              seed, versions, the order of the stages, status
  config.yaml           the arguments of a recipe that the command line ran
  report.html
  answers/              what endpoints answered, so that a run that stopped pays no answer twice
  logs/                 of loggers that write files
  stages/NUMBER-NAME-KEY/
    stage.json          what the stage is, what made it, what it made
    manifest.json       its files, with sizes and digests
    metrics.jsonl       one row per optimizer step, for stages that train
    evaluation.jsonl    one row per prompt and answer, for stages that evaluate
```

Who writes (`run/store.py`) needs every record whole, and a record that is not is an error. Who shows takes what there
is: a run that is still at work, or that failed, has torn and missing files, and these are told as problems.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError, DataError
from alignkit.files import is_folder_name, read_json, read_json_lines
from alignkit.meter import PHASES

FORMAT = 2
"""Of `run.json` and `stage.json`. A run of another format is made anew by running its script again."""

RUN = "run.json"
STAGES = "stages"
STAGE = "stage.json"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.jsonl"
PAGE = "report.html"
CONFIG = "config.yaml"
ANSWERS = "answers"
LOGS = "logs"

Row = dict[str, Any]


@dataclass(frozen=True)
class StageRecord:
    """A stage on disk.

    Args:
        folder: its folder.
        name: unique in the run.
        verb: that made it.
        key: the digest of all that can change its result.
        status: "complete"; "not finished" and "unreadable" where there is no record.
        made: what can be used of it: "policy", "groups", "reward", "evaluation".
        config: its arguments.
        inputs: what went into it, each by the key of its stage or a digest.
        identity: what its key is the digest of.
        result: small results.
        seconds: that it took; None where that is not known.
        meter: what it cost: counts, operations, seconds by phase and peak memory, see `alignkit.meter`.
        started: when, in UTC.
        format: of the record; 0 where there is none.
    """

    folder: Path
    name: str
    verb: str = ""
    key: str = ""
    status: str = "unknown"
    made: tuple[str, ...] = ()
    config: Row = field(default_factory=dict)
    inputs: Row = field(default_factory=dict)
    identity: Row = field(default_factory=dict)
    result: Row = field(default_factory=dict)
    seconds: float | None = None
    meter: Row = field(default_factory=dict)
    started: str = ""
    format: int = 0

    @property
    def model(self) -> Path:
        """The folder of the model that it made, or that it refers to."""
        return Path(self.result.get("model") or self.folder / "model")

    def spent(self, name: str) -> int:
        """How much of a count of the meter, or of "flops" in both directions; 0 where the record does not say."""
        if name == "flops":
            return sum(_whole(amount) or 0 for amount in mapping(self.meter.get("flops")).values())
        return _whole(mapping(self.meter.get("counts")).get(name)) or 0

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase, as far as the record says."""
        found = mapping(self.meter.get("seconds"))
        return {name: found[name] for name in PHASES if _is_time(found.get(name))}

    @property
    def work(self) -> dict[str, dict[str, int]]:
        """By phase what was counted in it, and its operations under "flops", as far as the record says."""
        found = mapping(self.meter.get("work"))
        return {
            phase: {str(name): whole for name, n in mapping(found[phase]).items() if (whole := _whole(n)) is not None}
            for phase in PHASES
            if phase in found
        }

    @property
    def ceiling(self) -> tuple[int, str]:
        """Operations a second that matrix products reached on the machine, and their type; (0, "") where not said."""
        found = mapping(self.meter.get("ceiling"))
        return _whole(found.get("flops")) or 0, str(found.get("dtype") or "")

    @property
    def peak_memory(self) -> int:
        """Bytes, of the process or of its GPU, whichever were more; 0 where the record does not say."""
        return max((_whole(most) or 0 for most in mapping(self.meter.get("peak_memory")).values()), default=0)


@dataclass(frozen=True)
class RunRecord:
    """A run on disk.

    Args:
        folder: its folder.
        name: the folder's name when it ran.
        status: "running", "complete", "interrupted" or "failed"; "unknown" where it does not say.
        stages: those of its latest execution, in the order they ran.
        problems: what could not be read, a sentence each.
        seed, precision, trainer, versions, command, created: how it was started, and when.
        format: of the record; 0 where there is none.
    """

    folder: Path
    name: str
    status: str = "unknown"
    stages: tuple[StageRecord, ...] = ()
    problems: tuple[str, ...] = ()
    seed: int | None = None
    precision: str = ""
    trainer: Row = field(default_factory=dict)
    versions: Row = field(default_factory=dict)
    command: str = ""
    created: str = ""
    format: int = 0


def is_run(folder: Path) -> bool:
    """Whether a run was ever started there."""
    return (folder / RUN).is_file()


def read_run(folder: Path, *, any_format: bool = False) -> RunRecord:
    """A run in whatever state it is; one that has not begun has no stages.

    Args:
        folder: of the run.
        any_format: take a run of another format too, for what a listing shows.

    Raises:
        DataError: there is no such folder, or `run.json` cannot be read, or is of another format.
    """
    if not folder.is_dir():
        remedy = "give the folder of a run (`alignkit runs` lists them)"
        raise DataError("no such folder", where=str(folder), remedy=remedy)
    if not is_run(folder):
        return RunRecord(folder, folder.name)
    info = _object(folder / RUN, remedy="run the script again")
    if info.get("format") != FORMAT and not any_format:
        raise DataError(
            f"it is of format {info.get('format')}, and this alignkit reads format {FORMAT}",
            where=str(folder / RUN),
            remedy="run the script again, or use the alignkit that wrote it",
        )
    problems: list[str] = []
    return _run_record(folder, info, tuple(_stages(folder, info.get("stages"), problems)), problems)


def open_run(folder: Path) -> RunRecord:
    """A run that somebody named, to work with.

    Raises:
        ConfigError: it is no run folder.
        DataError: as `read_run`.
    """
    if not is_run(folder):
        raise ConfigError("not a run folder", where=str(folder), remedy="alignkit runs lists them")
    return read_run(folder)


def read_stage(folder: Path) -> StageRecord:
    """The record of a finished stage.

    Raises:
        DataError: it is missing or torn.
    """
    info = _object(folder / STAGE, remedy=f"delete the folder {folder.name} to make the stage anew")
    return StageRecord(
        folder=folder,
        name=_text(info, "name") or folder.name,
        verb=_text(info, "verb"),
        key=_text(info, "key"),
        status=_text(info, "status") or "unknown",
        made=_words(info.get("made")),
        config=mapping(info.get("config")),
        inputs=mapping(info.get("inputs")),
        identity=mapping(info.get("identity")),
        result=mapping(info.get("result")),
        seconds=_number(info.get("seconds")),
        meter=mapping(info.get("meter")),
        started=_text(info, "started"),
        format=_whole(info.get("format")) or 0,
    )


def finished_stages(folder: Path) -> list[StageRecord]:
    """Every finished stage of this format in a run's folder, whichever execution made it, oldest first.

    Raises:
        DataError: a record is torn.
    """
    found = (read_stage(path.parent) for path in sorted((folder / STAGES).glob(f"[0-9]*/{STAGE}")))
    return [stage for stage in found if stage.format == FORMAT]


def read_manifest(folder: Path) -> dict[str, Row]:
    """The files of a stage: by their path inside it, `{"size": bytes, "sha256": hex}`.

    Raises:
        DataError: it is missing or torn.
    """
    return _object(folder / MANIFEST, remedy=f"delete the folder {folder.name} to make the stage anew")


def read_metrics(folder: Path, problems: list[str] | None = None) -> list[Row]:
    """A stage's rows of metrics, none where it logs none; `problems` as in `read_json_lines`."""
    return _rows(folder / METRICS, problems)


def read_evaluation(folder: Path, problems: list[str] | None = None) -> list[Row]:
    """A stage's evaluated answers, none where it evaluates none; `problems` as in `read_json_lines`."""
    return _rows(folder / EVALUATION, problems)


def mapping(value: Any) -> Row:
    """The value where it is a JSON object, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def _rows(path: Path, problems: list[str] | None) -> list[Row]:
    return read_json_lines(path, problems) if path.exists() else []


def _run_record(folder: Path, info: Row, stages: tuple[StageRecord, ...], problems: list[str]) -> RunRecord:
    return RunRecord(
        folder=folder,
        name=_text(info, "name") or folder.name,
        status=_text(info, "status") or "unknown",
        stages=stages,
        problems=tuple(problems),
        seed=_whole(info.get("seed")),
        precision=_text(info, "precision"),
        trainer=mapping(info.get("trainer")),
        versions=mapping(info.get("versions")),
        command=_text(info, "command"),
        created=_text(info, "created"),
        format=_whole(info.get("format")) or 0,
    )


def _stages(folder: Path, names: Any, problems: list[str]) -> list[StageRecord]:
    """The stages that a run names; what is wrong with one is told, and the others are shown."""
    stages = []
    for name in names if isinstance(names, list) else []:
        if not is_folder_name(name):
            problems.append(f"{name!r} is not the name of a stage folder; left out")
            continue
        path = folder / STAGES / name
        if not (path / STAGE).exists():
            stages.append(StageRecord(path, name, status="not finished"))
            continue
        try:
            stages.append(read_stage(path))
        except DataError as error:
            problems.append(f"{STAGES}/{name}/{STAGE} {error.what}")
            stages.append(StageRecord(path, name, status="unreadable"))
    return stages


def _object(path: Path, remedy: str) -> Row:
    """A file that holds one JSON object.

    Raises:
        DataError: it does not.
    """
    try:
        value = read_json(path)
    except (ValueError, OSError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), remedy=remedy) from error
    if not isinstance(value, dict):
        raise DataError("cannot be read: it holds no JSON object", where=str(path), remedy=remedy)
    return value


def _text(info: Mapping[str, Any], name: str) -> str:
    value = info.get(name)
    return "" if value is None else str(value)


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _words(value: Any) -> tuple[str, ...]:
    return tuple(word for word in value if isinstance(word, str)) if isinstance(value, list) else ()
