"""The run folder: stages that exist whole or not at all, and the run's own record. The one place that writes them."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError
from alignkit.files import read_json, write_json

STAGE = "stage.json"
MANIFEST = "manifest.json"
SMALL = 50_000_000
"""Bytes up to which a file's digest is checked whenever its stage is found again."""


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def slug(name: str) -> str:
    """A stage's name as part of a folder's: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:48] or "stage"


@dataclass(frozen=True)
class Stage:
    """A finished stage on disk.

    Args:
        folder: its folder.
        record: its stage.json.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def key(self) -> str:
        return self.record["key"]

    @property
    def result(self) -> dict[str, Any]:
        return self.record.get("result", {})


class Store:
    """The stages of a run folder.

    Args:
        folder: the run folder; made when the first stage begins.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages_folder = folder / "stages"
        self._index: dict[str, Path] | None = None
        self._lock: Any = None

    def lock(self) -> None:
        """Become the one writer of the folder, until `unlock` or the end of the process.

        Raises:
            AlignkitError: another process is at work in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
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

    def _by_key(self) -> dict[str, Path]:
        if self._index is None:
            self._index = {}
            for path in sorted(self.stages_folder.glob("*/" + STAGE)):
                self._index[read_json(path)["key"]] = path.parent
        return self._index

    def find(self, key: str) -> Stage | None:
        """The finished stage of that key, its files checked against its manifest.

        Raises:
            AlignkitError: the stage is there but its files are not what was written.
        """
        folder = self._by_key().get(key)
        if folder is None:
            return None
        self._verify(folder)
        return Stage(folder, read_json(folder / STAGE))

    def latest_of(self, name: str, verb: str) -> Stage | None:
        """The newest finished stage of a name, whatever its key."""
        found = [Stage(f, read_json(f / STAGE)) for f in self._by_key().values()]
        same = [s for s in found if s.record["name"] == name and s.record["verb"] == verb]
        return max(same, key=lambda s: s.folder.name, default=None)

    def _verify(self, folder: Path) -> None:
        """Sizes always, digests of all but large weights (whose base digest the adapters on them check)."""
        for name, entry in read_json(folder / MANIFEST).items():
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

    def commit(self, work: Path, record: Mapping[str, Any]) -> Stage:
        """Make the stage exist: manifest, record, then one rename."""
        numbers = [int(p.name[:4]) for p in self.stages_folder.glob("[0-9][0-9][0-9][0-9]-*")]
        folder = self.stages_folder / f"{max(numbers, default=0) + 1:04d}-{slug(record['name'])}-{record['key'][:8]}"
        files = sorted(p for p in work.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(work)): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files}
        write_json(work / MANIFEST, manifest)
        write_json(work / STAGE, record)
        os.replace(work, folder)
        self._by_key()[record["key"]] = folder
        return Stage(folder, dict(record))


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
