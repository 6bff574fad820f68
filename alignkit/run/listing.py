"""Runs on disk: shown, compared, freed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit.budget import NAMES
from alignkit.errors import ConfigError, DataError, suggestion
from alignkit.identity import difference
from alignkit.meter import PHASES
from alignkit.run.store import refuse_link, remove
from alignkit.run_folder import RUN, STAGES, RunRecord, StageRecord, is_run, open_run, read_run


def _size(folder: Path) -> int:
    """Bytes of a folder, or of a file; what links lead to is not counted."""
    if folder.is_symlink():
        return 0
    if folder.is_file():
        return folder.stat().st_size
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def list_runs(folder: str | Path) -> list[dict[str, Any]]:
    """The runs below a folder: name, status, stages, seconds, in all and by phase, all that meters count, the most
    memory, bytes, created; newest first."""
    rows = [_row(path.parent) for path in Path(folder).glob(f"*/{RUN}")]
    return sorted(rows, key=lambda row: row["created"], reverse=True)


def _row(folder: Path) -> dict[str, Any]:
    """What a list says of a run; one whose record is torn is listed too."""
    try:
        run = read_run(folder, any_format=True)
    except DataError:
        run = RunRecord(folder, folder.name, status="unreadable")
    return {
        "name": run.name,
        "status": run.status,
        "created": run.created,
        "seed": run.seed,
        "stages": len(run.stages),
        "seconds": round(sum(stage.seconds or 0 for stage in run.stages), 1),
        "phases": {name: round(sum(stage.phases.get(name, 0.0) for stage in run.stages), 3) for name in PHASES},
        **{name: sum(stage.spent(name) for stage in run.stages) for name in NAMES},
        "peak_memory": max((stage.peak_memory for stage in run.stages), default=0),
        "bytes": _size(folder),
        "path": str(folder),
    }


def compare_runs(a: str | Path, b: str | Path) -> str:
    """What differs between the stages of two runs, one line each.

    Raises:
        ConfigError: not a run folder.
        DataError: a run of another format, or one whose record is torn.
    """
    lines = difference(_identities(open_run(Path(a))), _identities(open_run(Path(b))))
    return "\n".join(lines) if lines else "no difference in stages, configurations or seeds"


def _identities(run: RunRecord) -> dict[str, dict[str, Any]]:
    return {f"{s.verb} {s.name}": {"config": s.config, "seed": s.identity.get("seed")} for s in run.stages}


def free_run(folder: str | Path) -> int:
    """Delete the stages of a run that its latest execution did not use; returns the bytes freed.

    Raises:
        ConfigError: not a run folder, or its latest execution did not come to its end (what it would still have
            used is not known).
        AlignkitError: its stages lie elsewhere, by a link.
        DataError: a run of another format, or one whose record is torn.
    """
    run = open_run(Path(folder))
    if run.status != "complete":
        raise ConfigError(
            f"the latest execution is {run.status}", where=str(folder), remedy="run its script to the end first"
        )
    refuse_link(run.folder / STAGES)
    used = {stage.folder.name for stage in run.stages}
    freed = 0
    for path in (run.folder / STAGES).glob("*"):
        if path.name not in used:
            freed += _size(path)
            remove(path)
    return freed


def open_policy(spec: str | Path, version: str | None = None) -> Any:
    """The live policy of a run, or of a model specification.

    Args:
        spec: a run's folder, or what `Policy.load` takes.
        version: the name of the run's stage that made it; default the newest.

    Raises:
        ConfigError: the run has made no policy, or none of that name; a version of what is no run.
        DataError: a run of another format, or one whose record is torn.
    """
    from alignkit.models import Policy

    path = Path(spec)
    if not is_run(path):
        if version is not None:
            what = f"version {version!r} is asked for, and this is no run's folder"
            raise ConfigError(what, where=str(spec), remedy="a run has versions")
        return Policy.load(str(spec))
    return Policy.load(_made(open_run(path), str(spec), version).model)


def version_name(spec: str | Path, version: str | None = None) -> str:
    """How the policy that `open_policy` opens is called.

    Raises:
        ConfigError, DataError: as `open_policy`.
    """
    path = Path(spec)
    return _made(open_run(path), str(spec), version).name if is_run(path) else path.name or str(spec)


def _made(run: RunRecord, where: str, version: str | None) -> StageRecord:
    made = [stage for stage in run.stages if "policy" in stage.made]
    if not made:
        raise ConfigError("the run has no policy yet", where=where)
    found = [stage for stage in made if version in (None, stage.name)]
    if not found:
        names = [stage.name for stage in made]
        raise ConfigError(f"the run has no version {version!r}", where=where, remedy=suggestion(version, names))
    return found[-1]
