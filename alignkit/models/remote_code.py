"""Code that comes with a model: it never runs, unless the user names the model and which revision of its code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError

_FILES: set[str] = set()
"""Digests of the files whose code may run in this process, wherever saving copies them to."""

_COMMITS: dict[str, str] = {}
"""Of each model of the hub whose code may run in this process the commit."""


def code_files(folder: str | Path) -> list[Path]:
    """The code in a model's folder."""
    return sorted(file for file in Path(folder).rglob("*.py") if file.is_file())


def code_digest(folder: str | Path) -> str:
    """40 hex digits over the names and bytes of the code in a model's folder: what stands for its revision."""
    state = hashlib.sha256()
    for file in code_files(folder):
        state.update(f"{file.relative_to(folder)}:{_digest(file)}\n".encode())
    return state.hexdigest()[:40]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def permit(path: str, revision: str) -> None:
    """Let the code of a model run in this process.

    Args:
        path: of a folder, or a hub name.
        revision: of a folder its `code_digest`, of a model of the hub a commit of it.

    Raises:
        ConfigError: a folder whose code is another by now; what is no commit.
    """
    if not re.fullmatch("[0-9a-f]{40}", revision):
        what = f"code_revision={revision!r} is no revision: 40 hex digits"
        raise ConfigError(what, where=path, remedy="name a commit, never a branch: a branch is other code tomorrow")
    if not Path(path).is_dir():
        _COMMITS[path] = revision
        return
    found = code_digest(path)
    if found != revision:
        raise ConfigError(
            f"its code is {found}, and not {revision}",
            where=path,
            effect="Code that nobody looked at would run.",
            remedy="read the folder's .py files, and name the revision that they are",
        )
    permit_files(path)


def permit_files(folder: str | Path) -> None:
    """Let the code that a folder holds now run, there and where saving copies it to."""
    _FILES.update(map(_digest, code_files(folder)))


def commit_of(path: str) -> str | None:
    """The commit of a model of the hub whose code may run."""
    return _COMMITS.get(path)


def is_permitted(path: str) -> bool:
    """Whether the code of a model may run: all of it was permitted, byte for byte."""
    if path in _COMMITS:
        return True
    files = code_files(path) if Path(path).is_dir() else []
    return bool(files) and all(_digest(file) in _FILES for file in files)


def refuse_code(config: Mapping[str, Any], path: str, trusted: bool) -> None:
    """Refuse a configuration that fetches code by a name in it: kernels of the hub, or classes of another model.

    Args:
        config: as the file has it.
        path: of the model.
        trusted: whether the model's own code may run; another model's may not. Else none of `auto_map` is read.

    Raises:
        ConfigError: naming the entry.
    """
    for name, value in _entries(config):
        kernel = "implementation" in name and "/" in value
        elsewhere = trusted and name.startswith("auto_map") and "--" in value and value.partition("--")[0] != path
        if kernel or elsewhere:
            raise ConfigError(
                f"its configuration fetches code: {name} is {value!r}",
                where=path,
                effect="Code that a model's folder names never runs here.",
                remedy=f"take {name.partition('.')[0]} out of its configuration",
            )


def _entries(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Every text of a configuration, with the names that lead to it."""
    if isinstance(value, str):
        return [(name, value)]
    if isinstance(value, Mapping):
        inside = [(f"{name}.{key}" if name else str(key), each) for key, each in value.items()]
    else:
        inside = [(name, each) for each in value] if isinstance(value, list) else []
    return [found for key, each in inside for found in _entries(each, key)]


def remedy_for(path: str) -> str:
    """What to do about a model that only code of its own can make."""
    named = code_digest(path) if Path(path).is_dir() else "COMMIT, the 40 digits of one"
    return (
        "convert it to a family that transformers knows, or update transformers; to run its code all the same, once "
        f"you have read it: run.policy(…, code_revision={named!r})"
    )


__all__ = ["code_digest", "commit_of", "is_permitted", "permit", "permit_files", "refuse_code", "remedy_for"]
