"""Whose a file of code is: the user's own, the core's, Python's, or a distribution's; and what identifies a
distribution."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from alignkit._version import __version__
from alignkit.identity.values import digest

Owners = tuple[str, ...] | None
"""The distributions that code belongs to; none for Python and the core, whose versions count anyway; None: the user."""

CORE = Path(__file__).resolve().parent.parent
PACKAGES = ("site-packages", "dist-packages")


def module_owners(module: ModuleType | None, name: str) -> Owners:
    """Whose a module is.

    Args:
        module: the module; None where nothing of that name is imported.
        name: its name.
    """
    return owners(name.partition(".")[0], str(getattr(module, "__file__", None) or ""))


@cache
def owners(top: str, file: str) -> Owners:
    """Whose the code of a file is.

    Args:
        top: the top-level name that it is imported under.
        file: its path; empty for modules without one.
    """
    if not file or file.startswith("<frozen"):
        known = top in sys.stdlib_module_names or top in sys.builtin_module_names
        return () if known else tuple(sorted(set(_distributions(top)))) or None
    folder = _real(os.path.dirname(file))
    if folder.is_relative_to(CORE):
        return ()
    inside = any(part in PACKAGES for part in folder.parts)
    if not inside and any(folder.is_relative_to(standard) for standard in _standard_folders()):
        return ()
    found = {name for name in _distributions(top, inside) if _brings(name, folder, inside)}
    return tuple(sorted(found)) or None


@cache
def _real(folder: str) -> Path:
    return Path(folder).resolve()


@cache
def _standard_folders() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))


@cache
def _brings(name: str, folder: Path, inside: bool) -> bool:
    """Whether a distribution brought what lies in a folder. One that is installed editable did not, but for a plugin:
    its source is the user's own, and counts function by function."""
    found = importlib.metadata.distribution(name)
    edited = _editable_folder(found)
    if edited is not None:
        return _is_plugin(name) and folder.is_relative_to(edited)
    there = folder.is_relative_to(Path(str(found.locate_file(""))).resolve())
    return there and (inside or found.read_text("RECORD") is not None)


def _distributions(top: str, installed: bool = False) -> list[str]:
    """The distributions of a top-level name; looked up again for one that was installed since the first look."""
    if installed and top not in _names():
        _names.cache_clear()
    return _names().get(top, [])


@cache
def _names() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@cache
def version_of(name: str) -> str:
    """What counts of a distribution that the user's code calls: a plugin by its content and that of the plugins it
    requires, any other by its version, whatever build of it this machine has."""
    if _is_plugin(name):
        return digest({each: distribution_key(each) for each in (name, *required_plugins(name))})
    version = importlib.metadata.version(name)
    try:
        return Version(version).public
    except InvalidVersion:
        return version


@cache
def required_plugins(name: str) -> tuple[str, ...]:
    """The plugin distributions that one requires, directly or not, from metadata alone; itself and the core left out.

    Args:
        name: the distribution; one that is not installed requires nothing.
    """
    found: list[str] = []
    waiting = [name]
    while waiting:
        for other in _requirements(waiting.pop()):
            if other not in (name, "alignkit", *found) and _is_plugin(other):
                found.append(other)
                waiting.append(other)
    return tuple(sorted(found))


def _requirements(name: str) -> list[str]:
    try:
        texts = importlib.metadata.distribution(name).requires or []
    except (importlib.metadata.PackageNotFoundError, ValueError):  # ValueError: no name at all
        return []
    wanted = [Requirement(text) for text in texts]
    return [canonicalize_name(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]


def _is_plugin(name: str) -> bool:
    try:
        points = importlib.metadata.distribution(name).entry_points
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(point.group == "alignkit" for point in points)


@cache
def distribution_key(name: str) -> dict[str, str]:
    """What identifies a plugin's code: the files of an installed wheel as they are now, or the source tree of an
    editable install. What was edited in place is another plugin.

    Args:
        name: the distribution. Of one that was registered by hand nothing is known here: see `component_code`.
    """
    if not name or name == "alignkit":
        return {"alignkit": __version__}
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return {name: "registered by hand"}
    folder = _editable_folder(found)
    if folder is not None:
        return {name: found.version, "source": _tree_digest(folder / "src" if (folder / "src").is_dir() else folder)}
    return {name: found.version, "files": _content(found)}


def _content(found: importlib.metadata.Distribution) -> str:
    """Digest of the files that RECORD lists, by name and content, and of the code that was put beside them since.

    What pip writes about the installation, and what Python compiles, is another on every machine.
    """
    root = Path(str(found.locate_file("")))
    listed = {str(name) for name in found.files or () if _counts(str(name))}
    packages = {os.path.dirname(name) for name in listed if name.endswith(f"{os.sep}__init__.py")}
    tops = {name for name in packages if os.path.dirname(name) not in packages}
    beside = {str(path.relative_to(root)) for top in tops for path in _sources(root / top)}
    state = hashlib.sha256()
    for name in sorted(listed | beside):
        file = root / name
        content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "gone"
        state.update(f"{name}\n{content}\n".encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def _counts(name: str) -> bool:
    by_pip = (".dist-info" in name or ".egg-info" in name) and not name.endswith(("entry_points.txt", "METADATA"))
    inside = not os.path.isabs(name) and ".." not in Path(name).parts
    return inside and not by_pip and not name.endswith(".pyc")


def _editable_folder(found: importlib.metadata.Distribution) -> Path | None:
    direct = json.loads(found.read_text("direct_url.json") or "{}")
    folder = Path(direct.get("url", "").removeprefix("file://"))
    return folder.resolve() if direct.get("dir_info", {}).get("editable") and folder.is_dir() else None


def _tree_digest(folder: Path) -> str:
    state = hashlib.sha256()
    for file in sorted(_sources(folder)):
        state.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return state.hexdigest()


def _sources(folder: Path) -> Iterator[Path]:
    """The Python files of a source tree; hidden folders and virtual environments in it are not its source."""
    for root, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".") and not (Path(root) / f / "pyvenv.cfg").is_file()]
        yield from (Path(root) / file for file in files if file.endswith(".py"))
