"""What identifies a value in a stage's key: plain JSON, with the code that it stands on."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from alignkit import hidden
from alignkit.errors import ConfigError
from alignkit.identity.atoms import asks_nothing, fields_of, number
from alignkit.identity.code import Walk
from alignkit.identity.first import first_seen
from alignkit.identity.forms import UnknownError
from alignkit.identity.spaces import function_owners, is_own, name_of
from alignkit.identity.values import digest, spelt


def plain(value: Any) -> Any:
    """A value as plain JSON: dataclasses, components, tuples and paths included, each with the code it stands on.

    The order of a mapping does not count, but in the fields of the user's own dataclasses, whose code may go by it.

    Raises:
        ConfigError: something that has no plain form; give it a `key()`.
    """
    return _of_some_depth(_plain, value)


def _of_some_depth(look: Callable[[Any], Any], value: Any) -> Any:
    try:
        return look(value)
    except RecursionError:
        raise ConfigError(
            f"a {type(value).__name__} that holds itself, or is nested too deep, cannot be part of a stage's key",
            where="Run",
            remedy="pass plain values, or give its class a key() method",
        ) from None


def _plain(value: Any, ordered: bool = False) -> Any:
    """See `plain`; `ordered`: the order of mappings counts."""
    if not is_own(type(value)):  # a class of the user's own may do otherwise than what it is made from
        if type(value) is float:
            return number(value, _plain)  # JSON has no inf
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, (str, Path)):
            return spelt(value if isinstance(value, str) else str(value))
        if isinstance(value, Mapping):
            return _mapping(value, ordered)
        if isinstance(value, (list, tuple)):
            return [_plain(item, ordered) for item in value]
        if isinstance(value, (set, frozenset)):
            return _sorted([_plain(item) for item in value])
    said = _said(value)
    if said is not None:
        return _with_code(_plain(said()), value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, ordered)
    return function_key(value) if callable(value) else _formed(value)


def _named(name: str, value: Any, ordered: bool) -> Any:
    """What stands under a name; of what is named as a secret no more than a digest."""
    found = _plain(value, ordered)
    return hidden.digested(found) if hidden.hides(name, value) else found


def _mapping(value: Mapping[Any, Any], ordered: bool) -> Any:
    """A mapping from text as it is, with the order of the names if it counts and is not that of the alphabet; of any
    other, whose keys JSON would make text of, the pairs."""
    if all(type(key) is str and spelt(key) is key for key in value):
        found = {key: _named(key, item, ordered) for key, item in value.items()}
        return {"dict": found, "order": [*found]} if ordered and [*found] != sorted(found) else found
    pairs = [[_plain(key, ordered), _plain(item, ordered)] for key, item in value.items()]
    return {"dict": pairs if ordered else _sorted(pairs)}


def _sorted(items: list[Any]) -> list[Any]:
    """Plain values in an order of their own: numbers, and texts, as such."""
    alike = all(type(item) is str for item in items) or all(type(item) in (int, float) for item in items)
    return sorted(items, key=None if alike else lambda item: json.dumps(item, sort_keys=True))


def _said(value: Any) -> Callable[[], Any] | None:
    """How a value says itself what it is: `key()` or `to_json()`, where it can be called just so."""
    fields = getattr(value, "__dataclass_fields__", {})
    for name in ("key", "to_json"):
        said = None if isinstance(value, type) or name in fields else getattr(value, name, None)
        if callable(said) and asks_nothing(said):
            return functools.partial(_asked, value, said)
    return None


def _asked(value: Any, said: Callable[[], Any]) -> Any:
    try:
        return said()
    except NotImplementedError:
        raise ConfigError(
            f"a {type(value).__name__} does not say what identifies it",
            where="Run",
            effect="A change of it would go unseen, and the stage be taken for done.",
            remedy="give its class a key() method that returns plain values, different whenever a result could be",
        ) from None


def _dataclass(value: Any, ordered: bool) -> dict[str, Any]:
    """A dataclass by its fields; of the user's own, what else it holds, which of a frozen one counts as first seen."""
    kind, own = type(value), is_own(type(value))
    named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    state, memos = fields_of(value) if own else (named, None)
    more = {k: v for k, v in state.items() if k not in named}
    if memos is not None:
        further = first_seen(("plain", id(value)), value, (), lambda: _formed(memos, lenient=True) if memos else None)
    else:
        further = _formed(more, lenient=True) if more else None
    known = {name: _named(name, item, ordered or own) for name, item in named.items() if name in state}
    return {"class": name_of(kind), **class_code(kind), **({"further": further} if further else {}), **known}


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
    return _of_some_depth(_object, value)


def _object(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return spelt(value) if type(value) is str else value
    if type(value) in (list, tuple):
        return [_object(item) for item in value]
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
