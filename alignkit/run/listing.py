"""Runs on disk: shown, compared, freed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.files import read_json
from alignkit.identity import difference
from alignkit.run.store import STAGE


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def list_runs(folder: str | Path) -> list[dict[str, Any]]:
    """The runs below a folder: name, status, stages, seconds, bytes, created; newest first."""
    rows = []
    for path in Path(folder).glob("*/run.json"):
        run = read_json(path)
        stages = [path.parent / "stages" / name / STAGE for name in run["stages"]]
        seconds = sum(read_json(stage)["seconds"] for stage in stages if stage.is_file())
        listed = {k: run[k] for k in ("name", "status", "created", "seed")}
        rows.append(
            {
                **listed,
                "stages": len(stages),
                "seconds": round(seconds, 1),
                "bytes": _size(path.parent),
                "path": str(path.parent),
            }
        )
    return sorted(rows, key=lambda row: row["created"], reverse=True)


def _identities(folder: Path) -> dict[str, dict[str, Any]]:
    if not (folder / "run.json").is_file():
        raise ConfigError("not a run folder", where=str(folder), remedy="alignkit runs lists them")
    records = [read_json(folder / "stages" / name / STAGE) for name in read_json(folder / "run.json")["stages"]]
    return {f"{r['verb']} {r['name']}": {"config": r["config"], "seed": r["identity"]["seed"]} for r in records}


def compare_runs(a: str | Path, b: str | Path) -> str:
    """What differs between the stages of two runs, one line each."""
    lines = difference(_identities(Path(a)), _identities(Path(b)))
    return "\n".join(lines) if lines else "no difference in stages, configurations or seeds"


def free_run(folder: str | Path) -> int:
    """Delete the stages of a run that its latest execution did not use; returns the bytes freed.

    Raises:
        ConfigError: not a run folder, or its latest execution did not come to its end (what it would still have
            used is not known).
    """
    path = Path(folder)
    if not (path / "run.json").is_file():
        raise ConfigError("not a run folder", where=str(folder))
    run = read_json(path / "run.json")
    if run["status"] != "complete":
        raise ConfigError(
            f"the latest execution is {run['status']}", where=str(folder), remedy="run its script to the end first"
        )
    used = set(run["stages"])
    freed = 0
    for stage in (path / "stages").iterdir():
        if stage.name not in used:
            freed += _size(stage)
            shutil.rmtree(stage)
    return freed


def open_policy(spec: str | Path) -> Any:
    """The live policy of a run (its newest one) or of a model specification."""
    from alignkit.models import Policy

    path = Path(spec)
    if (path / "run.json").is_file():
        stages = [path / "stages" / name for name in read_json(path / "run.json")["stages"]]
        made = [s for s in stages if read_json(s / STAGE)["verb"] in ("policy", "sft", "improve")]
        if not made:
            raise ConfigError("the run has no policy yet", where=str(spec))
        record = read_json(made[-1] / STAGE)
        return Policy.load(record["result"].get("model") or made[-1] / "model")
    return Policy.load(str(spec))
