"""The run folder: stages that exist whole or not at all, and the run's own record. The one place that writes them."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError
from alignkit.files import write_json
from alignkit.run_folder import (
    FORMAT,
    MANIFEST,
    RUN,
    STAGE,
    STAGES,
    StageRecord,
    finished_stages,
    read_manifest,
    read_stage,
)

SMALL = 50_000_000
"""Bytes up to which a file's digest is checked whenever its stage is found again."""


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def slug(name: str) -> str:
    """A stage's name as part of a folder's: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:48] or "stage"


class Store:
    """The stages of a run folder, and the run's own record.

    Args:
        folder: the run folder; made when the first stage begins.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages_folder = folder / STAGES
        self._index: dict[str, StageRecord] | None = None
        self._lock: Any = None

    def lock(self) -> None:
        """Become the one writer of the folder, until `unlock` or the end of the process.

        Raises:
            AlignkitError: another process is at work in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._index = None  # others may have been at work since it was read
        self._lock = (self.folder / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self.unlock()
            raise AlignkitError(
                f"{holder} is at work in this run",
                where=str(self.folder),
                remedy="wait for it, end it, or use another folder",
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()}, started {now()}")
        self._lock.flush()

    def unlock(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _by_key(self) -> dict[str, StageRecord]:
        if self._index is None:
            self._index = {stage.key: stage for stage in finished_stages(self.folder)}
        return self._index

    def find(self, key: str) -> StageRecord | None:
        """The finished stage of that key, its files checked against its manifest.

        Raises:
            AlignkitError: the stage is there but its files are not what was written, or a record is torn.
        """
        stage = self._by_key().get(key)
        if stage is not None:
            self._verify(stage.folder)
        return stage

    def latest_of(self, name: str, verb: str) -> StageRecord | None:
        """The newest finished stage of a name, whatever its key."""
        same = [stage for stage in self._by_key().values() if (stage.name, stage.verb) == (name, verb)]
        return max(same, key=lambda stage: stage.folder.name, default=None)

    def latest(self) -> StageRecord | None:
        """The newest finished stage."""
        return max(self._by_key().values(), key=lambda stage: stage.folder.name, default=None)

    def _verify(self, folder: Path) -> None:
        """Sizes always, digests of all but large weights (whose base digest the adapters on them check)."""
        for name, entry in read_manifest(folder).items():
            file = folder / name
            whole = file.is_file() and file.stat().st_size == entry["size"]
            if not whole or (entry["size"] < SMALL and _sha256(file) != entry["sha256"]):
                raise AlignkitError(
                    f"{name} is missing or is not what was written",
                    where=str(folder),
                    effect="The stage cannot be used.",
                    remedy=f"delete the folder {folder.name} to make the stage anew",
                )

    def begin(self, name: str) -> Path:
        """An empty folder to work in; what an interrupted run left behind is cleared."""
        self.stages_folder.mkdir(parents=True, exist_ok=True)
        for left in self.stages_folder.glob(".work-*"):
            shutil.rmtree(left)
        work = self.stages_folder / f".work-{os.getpid()}-{slug(name)}"
        work.mkdir()
        return work

    def commit(self, work: Path, record: Mapping[str, Any]) -> StageRecord:
        """Make the stage exist: manifest, record, then one rename.

        Args:
            work: the folder from `begin`, with the stage's files.
            record: what `stage.json` says, but for its format; see `StageRecord`.
        """
        numbers = [int(p.name[:4]) for p in self.stages_folder.glob("[0-9][0-9][0-9][0-9]-*")]
        folder = self.stages_folder / f"{max(numbers, default=0) + 1:04d}-{slug(record['name'])}-{record['key'][:8]}"
        files = sorted(p for p in work.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(work)): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files}
        write_json(work / MANIFEST, manifest)
        write_json(work / STAGE, {"format": FORMAT, **record})
        os.replace(work, folder)
        stage = read_stage(folder)
        self._by_key()[stage.key] = stage
        return stage

    def write_run(self, record: Mapping[str, Any]) -> None:
        """Say how the run stands.

        Args:
            record: what `run.json` says, but for its format; see `RunRecord`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / RUN, {"format": FORMAT, **record})


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
