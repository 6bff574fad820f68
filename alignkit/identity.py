"""What identifies a stage: everything that can change its result, as one digest."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from alignkit._version import __version__
from alignkit.errors import ConfigError


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, no spaces, no NaN. The basis of every digest.

    Raises:
        ValueError: for NaN, infinities and what JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a plain value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def plain(value: Any) -> Any:
    """A value as plain JSON: dataclasses, components, tuples and paths included.

    Raises:
        ConfigError: something that has no plain form; give it a `key()`.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if hasattr(value, "key") and callable(value.key):
        return plain(value.key())
    if hasattr(value, "to_json") and callable(value.to_json):
        return plain(value.to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **class_code(type(value)), **fields}
    if callable(value):
        return function_key(value)
    raise ConfigError(
        f"a {type(value).__name__} cannot be part of a stage's key",
        where="Run",
        remedy="pass plain values, or give its class a key() method",
    )


def function_key(function: Callable[..., Any], version: str | None = None) -> dict[str, Any]:
    """What identifies a plain function: its source and its defaults, and the values it closes over.

    Args:
        function: a function, method or callable object.
        version: stands for the source where there is none to read.

    Raises:
        ConfigError: no source and no version, or a closed-over value without a plain form.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if version is not None:
        return {"name": name, "version": version}
    if isinstance(function, functools.partial):
        return {"of": function_key(function.func), "args": plain(function.args), "kwargs": plain(function.keywords)}
    try:
        source = textwrap.dedent(inspect.getsource(function if inspect.isroutine(function) else type(function)))
    except (OSError, TypeError):
        raise ConfigError(
            f"the source of {name} cannot be read",
            where="Run",
            remedy="give it a version=, changed by hand when it changes",
        ) from None
    defaults = {
        p.name: plain(p.default) for p in inspect.signature(function).parameters.values() if p.default is not p.empty
    }
    closure = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    owner = getattr(function, "__self__", None) if inspect.ismethod(function) else function
    state = {} if inspect.isroutine(owner) or inspect.isclass(owner) else dict(vars(owner))
    return {
        "name": name,
        "source": hashlib.sha256(source.encode()).hexdigest(),
        "beside": module_code(getattr(function, "__module__", None)),
        "state": plain(state),
        "defaults": defaults,
        "closure": {k: plain(v) for k, v in closure.items()},
    }


def class_code(kind: type) -> dict[str, str]:
    """What identifies the code of a class of the user's own; the core's counts by its version."""
    if kind.__module__.split(".")[0] == "alignkit":
        return {}
    try:
        source = hashlib.sha256(textwrap.dedent(inspect.getsource(kind)).encode()).hexdigest()
    except (OSError, TypeError):
        source = ""
    return {"class source": source, "beside": module_code(kind.__module__)}


@cache
def module_code(name: str | None) -> str:
    """Digest of the distribution, package or module that code stands in: what it calls counts too.

    An installed plugin counts with the plugins that it requires. A script run as a program and a notebook give "": they
    count by the source of what is used itself.
    """
    top = sys.modules.get((name or "__main__").split(".")[0])
    file = Path(getattr(top, "__file__", None) or "")
    if top is None or top.__name__ in ("__main__", "alignkit") or not file.is_file():
        return ""
    distribution = _distributions().get(top.__name__, [""])[0]
    if distribution:
        return digest({each: distribution_key(each) for each in (distribution, *required_plugins(distribution))})
    if "site-packages" in file.parts:
        return ""
    return _tree_digest(file.parent) if hasattr(top, "__path__") else hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The distributions of each importable top-level name."""
    return importlib.metadata.packages_distributions()


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
def distribution_key(name: str, path: str = "") -> dict[str, str]:
    """What identifies a plugin's code: the wheel's RECORD, or the source tree of an editable install.

    Args:
        name: the distribution.
        path: for a plugin that was registered by hand, the file it came from; without one (a notebook's cell) its name
            is all there is to go by.
    """
    if not name or name == "alignkit":
        return {"alignkit": __version__}
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        file = Path(path)
        return {
            name: hashlib.sha256(file.read_bytes()).hexdigest() if path and file.is_file() else "registered by hand"
        }
    direct = json.loads(found.read_text("direct_url.json") or "{}")
    folder = Path(direct.get("url", "").removeprefix("file://"))
    if direct.get("dir_info", {}).get("editable") and folder.is_dir():
        return {name: found.version, "source": _tree_digest(folder / "src" if (folder / "src").is_dir() else folder)}
    return {name: found.version, "record": hashlib.sha256((found.read_text("RECORD") or "").encode()).hexdigest()}


def _tree_digest(folder: Path) -> str:
    state = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        state.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return state.hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """What changed between two keys, one line each: `config.learning_rate: 0.001 -> 0.0005`."""
    lines = []
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{path}{name}.")
        else:
            lines.append(f"{path}{name}: {_short(a)} -> {_short(b)}")
    return lines


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:18] + "…" + text[-18:]
