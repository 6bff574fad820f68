"""Values as plain JSON: whatever a function may find in a global, a closure, a default or an attribute."""

from __future__ import annotations

import contextvars
import copyreg
import dataclasses
import functools
import hashlib
import os
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

from alignkit import hidden
from alignkit.identity.atoms import array, asks_nothing, fields_of, in_context, lasting, number, still, vars_of
from alignkit.identity.first import Reference, first_seen, resolved
from alignkit.identity.spaces import is_code
from alignkit.identity.values import canonical_json

WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)

CODE = (
    types.ModuleType,
    functools._lru_cache_wrapper,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)
"""What is looked into as code, beside functions and classes."""


class UnknownError(Exception):
    """A value that has no plain form.

    Args:
        value: it.
    """

    def __init__(self, value: Any) -> None:
        super().__init__(f"{type(value).__module__}.{type(value).__qualname__}")


class Forms:
    """Plain forms of values, for one key.

    Args:
        code: gives the reference to a class, function or module.
        own: whether a class is the user's own.
    """

    def __init__(self, code: Callable[[Any], Any], own: Callable[[type], bool]) -> None:
        self._code, self._own = code, own
        self._known: dict[tuple[int, bool], tuple[Any, Any]] = {}  # the value too, so that its id stays its own
        self._open: list[int] = []
        self._folder = ""

    def form(self, value: Any, lenient: bool = False, folder: str = "") -> Any:
        """A value as plain JSON; a container within itself refers to its place.

        Args:
            value: anything.
            lenient: of a library's object without a plain form, its class's name will do.
            folder: paths in it are written relative to it.

        Raises:
            UnknownError: it has no plain form.
        """
        if value is None or type(value) in (bool, int):
            return value
        if type(value) is str or (isinstance(value, PurePath) and not self._own(type(value))):
            return _text(value, folder)
        if id(value) in self._open:
            return {"again": len(self._open) - self._open.index(id(value))}
        if (id(value), lenient) not in self._known:
            self._open.append(id(value))
            self._folder = folder
            try:
                made = self._form(value, functools.partial(self.form, lenient=lenient, folder=folder), lenient)
            finally:
                self._open.pop()
            self._known[id(value), lenient] = (made, value)
        return self._known[id(value), lenient][0]

    def _taken_apart(self, value: Any, form: Callable[[Any], Any]) -> Any:
        """An object as pickle would take it apart: what makes it, and of what."""
        known = copyreg.dispatch_table.get(type(value))
        taken = known(value) if known else value.__reduce_ex__(4)
        if isinstance(taken, str):
            return {"of": self._code(type(value)), "name": f"{getattr(value, '__module__', '')}.{taken}"}
        maker, arguments, state, items, pairs = (*taken, *[None] * (5 - len(taken)))[:5]
        made = {"by": form(maker), "with": [form(part) for part in arguments], "state": _state(value, state, form)}
        made |= {"items": [form(item) for item in items]} if items is not None else {}
        return made | ({"pairs": [[form(k), form(v)] for k, v in pairs]} if pairs is not None else {})

    def _form(self, value: Any, form: Callable[[Any], Any], lenient: bool) -> Any:
        for way in (number, _container, self._code_form, _descriptor, array, self._loose, self._still_form):
            found = way(value, form)
            if found is not None:  # a subclass of the user's own may do otherwise than what it is made from
                return {"of": self._code(type(value)), "is": found} if self._own(type(value)) else found
        if isinstance(value, Enum):
            return {"of": self._code(type(value)), "name": value.name, "value": form(value._value_)}
        said = _said(value) if self._may_speak(type(value)) else None
        if said is not None:
            return {"of": self._code(type(value)), "key": form(said), "holds": self.held(value)}
        return self._object(value, form, lenient)

    def _loose(self, value: Any, form: Callable[[Any], Any]) -> Any:
        """What holds something loosely, by that: variables of a thread or a context, weak references and caches."""
        if isinstance(value, contextvars.ContextVar):
            return {"context": value.name, "value": self.form(in_context(value), True, self._folder)}
        if isinstance(value, threading.local):
            return {"local": self.form(dict(vars(value)), True, self._folder)}
        if isinstance(value, weakref.ReferenceType):
            return {"weak": self.form(value(), True, self._folder)}
        if isinstance(value, WEAK):
            content = set(value) if isinstance(value, weakref.WeakSet) else dict(value)
            return {"weak": self.form(content, True, self._folder), "by": type(value).__name__}
        return None

    def _as_first_seen(self, value: Any, look: Callable[[], Any]) -> Any:
        """What an object changes in itself as it is used, as it was when the object was first asked for."""

        def make() -> Any:
            forms = Forms(Reference.to, self._own)
            forms._open = [*self._open]
            return forms.form(look(), True, self._folder)

        return resolved(first_seen(("object", id(value)), value, (), make), self._code)

    def _may_speak(self, kind: type) -> bool:
        """Whether `key` and `to_json` of a class are those that this library asks for."""
        return self._own(kind) or any(base.__module__.partition(".")[0] == "alignkit" for base in kind.__mro__)

    def held(self, value: Any) -> list[Any]:
        """The code of the user's own that an object holds. Its `key()` says which values matter; that a function among
        them was edited, it cannot say."""
        found: list[Any] = []
        waiting, seen = [value], set[int]()
        while waiting:
            item = waiting.pop(0)
            if id(item) in seen:
                continue
            seen.add(id(item))
            if is_code(item):
                found.append(self._code(item))
            elif self._own(type(item)):
                found.append(self._code(type(item)))
                waiting += [part for _, part in sorted(vars_of(item).items())]
            elif self._may_speak(type(item)):
                found.append(self.form(_said(item), True))
            else:
                waiting += _parts(item)
        return found

    def _still_form(self, value: Any, form: Callable[[Any], Any]) -> Any:
        return still(value, self._own(type(value)))

    def _code_form(self, value: Any, form: Callable[[Any], Any]) -> Any:
        if is_code(value) or isinstance(value, CODE):
            return self._code(value)
        if isinstance(value, types.BuiltinFunctionType):
            return {"method": value.__qualname__, "self": form(value.__self__)}
        if isinstance(value, types.MethodType):
            return {"method": self._code(value.__func__), "self": form(value.__self__)}
        return None

    def _object(self, value: Any, form: Callable[[Any], Any], lenient: bool) -> Any:
        """An object by its class and its state, as pickle would take it apart."""
        own, core = self._own(type(value)), type(value).__module__.partition(".")[0] == "alignkit"
        if dataclasses.is_dataclass(value) and (own or core):
            state, memos = fields_of(value)
            made = {"of": self._code(type(value)), "state": _state(value, state, form)}
            kept = None if memos is None else self._as_first_seen(value, lambda: memos or None)
            return made | ({"memos": kept} if kept is not None else {})
        try:
            if core:  # a run, a host: they are at work, and say what counts of them if anything does
                raise UnknownError(value)
            return self._taken_apart(value, form)
        except Exception as error:  # whatever a stranger's __reduce__ raises: there is no plain form
            if own and isinstance(error, UnknownError):
                raise
            if lenient and not own:
                return {"of": self._code(type(value))}
            raise UnknownError(value) from None


def _text(value: Any, folder: str) -> Any:
    """A string or a path, by a digest: it may be a key or a password, and a record is made to be shared. What lies in
    the folder of the code is told relative to it, so that both may be moved."""
    text: Any = str(value)
    if folder and (text == folder or text.startswith(folder + os.sep)):
        text = "." + text[len(folder) :]
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return {"text" if type(value) is str else "path": digest}


def _container(value: Any, form: Callable[[Any], Any]) -> Any:
    """Lists as they are, the others by what they are; the order of a dict counts, since code may go by it."""
    if type(value) is list:
        return [form(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [form(item) for item in value]}
    if type(value) in (dict, types.MappingProxyType):
        for key, item in value.items():
            hidden.hides(key, item)
        return {"dict": [[form(key), form(item)] for key, item in value.items()]}
    if type(value) in (set, frozenset):
        ordered = sorted(value, key=lambda item: (type(item).__name__, getattr(item, "__qualname__", "") or repr(item)))
        return {"set": sorted((form(item) for item in ordered), key=canonical_json)}
    return None


def _descriptor(value: Any, form: Callable[[Any], Any]) -> Any:
    if isinstance(value, property):
        return {"property": [form(part) for part in (value.fget, value.fset, value.fdel)]}
    if isinstance(value, (staticmethod, classmethod)):
        return {type(value).__name__: form(value.__func__)}
    if isinstance(value, functools.cached_property):
        return {"cached_property": form(value.func)}
    if isinstance(value, functools.partial):
        return {"partial": form(value.func), "args": form(value.args), "keywords": form(value.keywords)}
    return None


def _said(value: Any) -> Any:
    """What an object of the core or of a user says of itself: `key()`, `to_json()`, or the digest of groups."""
    kind = type(value)
    for name in ("key", "to_json"):
        method = getattr(kind, name, None)
        if isinstance(method, types.FunctionType) and name not in vars_of(value) and asks_nothing(getattr(value, name)):
            try:
                return getattr(value, name)()
            except NotImplementedError:  # inherited, and left to say
                continue
    if kind.__module__.partition(".")[0] == "alignkit" and callable(getattr(kind, "digest", None)):
        return value.digest()
    return None


def _parts(value: Any) -> list[Any]:
    """What a container, a partial or a bound method is made of."""
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, Mapping):
        return [*value.values()]
    return [*value] if type(value) in (list, tuple) else []


def _state(value: Any, state: Any, form: Callable[[Any], Any]) -> Any:
    """The state of an object, by attribute where it has attributes."""
    if not isinstance(state, Mapping):
        return form(state)
    for name, part in state.items():
        hidden.hides(name, part)  # what is struck out of what others write
    return {str(name): form(part) for name, part in lasting(value, state).items()}
