"""What identifies a value in a stage's key: plain JSON, with the code that it stands on."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.identity.code import Walk
from alignkit.identity.forms import UnknownError, lasting, vars_of
from alignkit.identity.spaces import function_owners, is_own, name_of
from alignkit.identity.values import digest


def plain(value: Any) -> Any:
    """A value as plain JSON: dataclasses, components, tuples and paths included, each with the code it stands on.

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
    fields = getattr(value, "__dataclass_fields__", {})
    for name in ("key", "to_json"):
        said = None if isinstance(value, type) or name in fields else getattr(value, name, None)
        if callable(said):
            return _with_code(plain(said()), value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        more = {k: v for k, v in lasting(value, vars_of(value)).items() if k not in known}
        further = {"further": _formed(more, lenient=True)} if more and is_own(type(value)) else {}
        return {"class": name_of(type(value)), **class_code(type(value)), **further, **known}
    if callable(value):
        return function_key(value)
    return _formed(value)


def _with_code(said: Any, value: Any) -> Any:
    """What a value says of itself, with the code of its class; a function's `key` stands for its code."""
    code = {} if isinstance(value, types.FunctionType) else class_code(type(value))
    if is_own(type(value)):
        walk = Walk()
        walk.forms.held(value)
        code = {"code": walk.entries()}
    if not code:
        return said
    return {**said, **code} if isinstance(said, dict) else {"key": said, **code}


def _formed(value: Any, lenient: bool = False) -> dict[str, Any]:
    walk = Walk()
    try:
        if type(value) is object:
            raise UnknownError(value)
        form = walk.forms.form(value, lenient)
    except UnknownError:
        raise ConfigError(
            f"a {type(value).__name__} cannot be part of a stage's key",
            where="Run",
            remedy="pass plain values, or give its class a key() method",
        ) from None
    return {"value": form, "code": walk.entries()}


def function_key(function: Callable[..., Any], version: str | None = None) -> dict[str, Any]:
    """What identifies a function: its source, its defaults, what it closes over, and the user's code that it calls.

    Args:
        function: a function, method, class or callable object.
        version: stands for all of it where it cannot be read or known.

    Raises:
        ConfigError: no source and no version, or something that it uses has no plain form.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if version is not None:
        return {"name": name, "version": version}
    walk = Walk()
    if isinstance(function, types.FunctionType):
        reference = walk.code(function)
        return {"name": name, "of": reference, "code": walk.entries()}
    label = walk.value("it", f"{name}()", function)
    found = walk.entries()
    return {"name": name, "of": found.pop(label), "code": found}


def object_key(value: Any) -> Any:
    """What identifies any object, such as a callback: its class with what that calls, and its state.

    Of a library's object without a plain form (a logger, a client) the class's name counts. Take it before the object
    is used: a callback that counts batches is another one afterwards.

    Raises:
        ConfigError: an object of the user's own that cannot be identified.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [object_key(item) for item in value]
    walk = Walk()
    label = walk.value("it", type(value).__qualname__, value, lenient=True)
    found = walk.entries()
    return {"of": found.pop(label), "code": found}


def component_code(target: Any) -> dict[str, Any]:
    """What identifies a component that was registered by hand: its code. Empty where a distribution's digest says it.

    Args:
        target: what was registered: a function, a class or an object.

    Raises:
        ConfigError: it cannot be identified.
    """
    if isinstance(target, types.FunctionType):
        return function_key(target) if function_owners(target) is None or target.__closure__ else {}
    if isinstance(target, type):
        return class_code(target) if is_own(target) else {}
    key = object_key(target)
    return key if isinstance(key, dict) else {"value": key}


def class_code(kind: type) -> dict[str, Any]:
    """What identifies the code of a class that is not the core's: the core counts by its version."""
    if kind.__module__.partition(".")[0] in ("alignkit", "builtins") and not is_own(kind):
        return {}
    walk = Walk()
    walk.code(kind)
    return {"code": walk.entries()}


@cache
def module_code(name: str) -> str:
    """Digest of everything that a module stands on: its distribution, or its text and the user's modules it imports.

    Args:
        name: of a module that is imported.
    """
    walk = Walk()
    walk.code(sys.modules[name])
    return digest(walk.entries())
