"""The run folder: stages that exist whole or not at all, and the run's own record. The one place that writes them."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import logging
import os
import re
import shlex
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


_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC

log = logging.getLogger("alignkit")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def slug(name: str) -> str:
    """A stage's name as part of a folder's: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:48] or "stage"


def refuse_link(folder: Path) -> None:
    """Stages lie in the run: what is deleted or written there may not be somewhere else.

    Raises:
        AlignkitError: the folder is a link.
    """
    if folder.is_symlink():
        raise AlignkitError(
            f"{folder.name} is a link to {os.readlink(folder)!r}",
            where=str(folder.parent),
            effect="What a run deletes and writes would lie there.",
            remedy="move the whole run there, and give its folder",
        )


def remove(path: Path) -> None:
    """Delete a folder with all that it holds, or a file; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


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
            AlignkitError: another process is at work in it; or it cannot be written, or leads elsewhere.
        """
        self._index = None  # others may have been at work since it was read
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.fdopen(os.open(self.folder / ".lock", _LOCK, 0o644), "r+", encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: a NUL in its name
            remedy = "give another folder; where it is somebody else's, take its files out of it"
            raise AlignkitError(
                f"no run can be kept here: {error}", where=repr(str(self.folder)), remedy=remedy
            ) from None
        refuse_link(self.stages_folder)
        if self.folder.stat().st_mode & 0o002:
            remedy = f"chmod o-w {shlex.quote(str(self.folder))}"
            log.warning(
                "anybody on this machine may write into %s, and change what the run is; %s", self.folder, remedy
            )
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
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            whole = inside and file.is_file() and file.stat().st_size == entry["size"]
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
            remove(left)
        work = self.stages_folder / f".work-{os.getpid()}-{slug(name)}"
        work.mkdir()
        return work

    def aside(self, rank: int) -> Path:
        """An empty folder for a process that is not the one which writes the run.

        Args:
            rank: of the process.
        """
        folder = self.stages_folder / f".rank{rank}"
        if os.path.lexists(folder):  # of a process that was killed
            remove(folder)
        folder.mkdir(parents=True)
        return folder

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
