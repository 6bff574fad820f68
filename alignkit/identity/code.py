"""The code that a value stands on: a function or class with whatever of the user's code it calls, and what that calls.

Two ways were weighed. By module: the digest of a whole file and of those it imports. That sees everything, but a script
holds the pipeline beside the reward, and each of its edits would make every stage anew. By object, which is what is
done here: from a function to the globals, closures, defaults, attributes, base classes and imports that its source
names, each by its present value, until nothing of the user's is left. So a stage is made anew when something that its
reward calls changes, and not when a neighbour does. Where names cannot be seen (`eval`, `exec`, `globals()`, a module
used as a value, as `getattr` with a computed name does), the whole module counts, with those it imports; what cannot
be seen even so is refused.

Python and the core are not walked into, and installed distributions count by their version. A key holds one entry for
each thing found: for code a digest of its normalised source and of which name stands for which entry, for a value the
value itself if it is short. So a changed key says what changed.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.identity.classes import describe_class
from alignkit.identity.distributions import module_owners
from alignkit.identity.ledger import Written
from alignkit.identity.names import defaults_in, is_fresh, unseeded, uses_of
from alignkit.identity.reach import Reach, Scope, drawn, makes_of
from alignkit.identity.source import NoSourceError, module_source, source_of
from alignkit.identity.spaces import (
    PRIVATE,
    Space,
    cells_of,
    folder_of,
    function_owners,
    is_evaluator,
    is_own,
    name_of,
    names_in,
    space_name,
)

Described = tuple[Written | None, dict[str, Any]]
PLAIN = (bool, int, float, str, type(None))


class Walk(Reach):
    """Everything that some values stand on: `forms` and `code` note what is to be looked into, `entries` does."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[str, type] = {}

    def more(self) -> bool:
        if self.subclassed:
            for label in [label for label in self._kinds if f"{label}.__subclasses__()" not in self._entries]:
                self._entries[f"{label}.__subclasses__()"] = [*map(self.code, self._kinds[label].__subclasses__())]
        return bool(self._code)

    def code(self, target: Any) -> Any:
        """The reference to a class, function or module; what it stands on is looked into later."""
        if isinstance(target, functools._lru_cache_wrapper):
            return {"cached": self.code(target.__wrapped__)}
        if isinstance(target, types.ModuleType):
            found = module_owners(target, target.__name__)
            return self.whole(vars(target)) if found is None else self.library(found, target.__name__)
        if isinstance(target, type):
            return self._class(target)
        return self._function(target) if isinstance(target, types.FunctionType) else self._stranger(target)

    def whole(self, space: Space) -> str:
        """The reference to a whole module, with those it imports."""
        return self.node(id(space), f"module {space_name(space)}", space, lambda label: self._module(label, space))

    def _class(self, kind: type) -> Any:
        if is_own(kind):
            label = self.node(id(kind), name_of(kind), kind, lambda label: describe_class(self, label, kind))
            self._kinds[label] = kind
            return label
        module = sys.modules.get(kind.__module__)
        return self.library(module_owners(module, kind.__module__), f"{kind.__module__}.{kind.__qualname__}")

    def _function(self, function: types.FunctionType) -> Any:
        found = function_owners(function)
        if found is None:
            return self.node(
                id(function), name_of(function), function, lambda label: self._describe_function(label, function)
            )
        name = f"{function.__globals__.get('__name__')}.{function.__code__.co_qualname}"
        reference = self.library(found, name)
        if not (function.__closure__ or vars(function)) or _at_home(function):
            return reference
        return self.node(id(function), name, function, lambda label: self._wrapper(label, function))

    def _stranger(self, target: Any) -> Any:
        """A function that is not written in Python, by name; a module of the user's own counts by its file."""
        if is_evaluator(target):
            remedy = "call it by its name, or for a reward give it a version="
            raise self.refusal(f"{target.__name__} is handed over, and may bring any name", self._now, remedy)
        home = getattr(target, "__module__", None) or getattr(getattr(target, "__objclass__", None), "__module__", None)
        name = str(home or "")
        module = sys.modules.get(name)
        found = module_owners(module, name) if module else ()
        if found is None and module is not None:
            return {"in": self.code(module), "name": target.__qualname__}
        return self.library(found, f"{name}.{target.__qualname__}".lstrip("."))

    def _describe_function(self, label: str, function: types.FunctionType) -> Described:
        said = vars(function).get("key")
        if callable(said):
            return None, {"key": self.value((label, "key"), f"{label}.key()", said())}
        space, cells = function.__globals__, cells_of(function)
        try:
            source, definition = source_of(function.__code__, space)
        except NoSourceError:
            remedy = "write it in a file, or for a reward give FunctionReward a version=, changed by hand"
            raise self.refusal(f"the source of {function.__qualname__} cannot be read", label, remedy) from None
        makes = makes_of(source, definition) if cells else (frozenset[str](), None)
        closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        scope = Scope(label, space, cells, closure, names_in(function.__code__), makes, source)
        uses = uses_of(definition)
        node: dict[str, Any] = {"names": self.names(uses, scope), "doc": function.__doc__}
        node["defaults"] = self._defaults(label, function, {path[0] for path in uses.written}, definition)
        if "__class__" in cells:  # it calls super()
            node["class"] = self.code(cells["__class__"])
        if vars(function):
            loose, held = replace(scope, lenient=True), vars(function)
            itself = closure.get(function.__code__.co_name)
            node["state"] = self.later(
                (label, "state"),
                f"{label}.__dict__",
                function,
                lambda at: self.put_made(at, function.__name__, held, loose, space, itself),
            )
        return Written(source, [definition]), node

    def _defaults(self, label: str, function: types.FunctionType, written: set[str], definition: Any) -> dict[str, str]:
        """The values of defaults; one that the function itself fills, such as a memo, counts by its text if that says
        all, else as first seen."""
        last = function.__defaults__ or ()
        count = function.__code__.co_argcount
        names = function.__code__.co_varnames[count - len(last) : count]
        found = {**dict(zip(names, last, strict=True)), **(function.__kwdefaults__ or {})}
        space, texts = function.__globals__, defaults_in(definition)
        memos = {k for k in written & set(texts) if is_fresh(texts[k])}
        memos |= {k for k, v in found.items() if drawn(v) and k in texts and unseeded(k, definition, [texts[k]])}
        counted = {k: v for k, v in found.items() if k not in memos}

        def put(at: str, name: str, value: Any) -> None:
            if name in written or drawn(value):
                self.put_first(at, value, space)
            else:
                self.put(at, value, space=space)

        return {
            k: self.later((label, k), f"{label}({k})", v, partial(put, name=k, value=v)) for k, v in counted.items()
        }

    def _wrapper(self, label: str, function: types.FunctionType) -> Described:
        """A library's function that holds something of the user's, as a decorator does."""
        held = [cells_of(function), vars(function)]
        return None, {"holds": self.value((label, "held"), f"{label}[]", held, lenient=True)}

    def _module(self, label: str, space: Space) -> Described:
        """A whole module with those it imports, for where it cannot be seen what is used of it."""
        source, file = module_source(space), Path(str(space.get("__file__") or ""))
        if source is None and file.is_file():
            return None, {"file": hashlib.sha256(file.read_bytes()).hexdigest()}
        if source is None:
            return None, self._parts(label, space)
        uses = uses_of(source.tree)
        self.documented |= uses.documented
        names = {str(each): self.whole_import(each, space) for each in uses.imports}
        main = space.get("__name__") == "__main__"  # whose variables come and go with the pipeline
        plain = {k: v for k, v in space.items() if type(v) in PLAIN and k not in PRIVATE and not main}
        held = {k: self.forms.form(v, folder=folder_of(space)) for k, v in plain.items()}
        return Written(source, [source.tree]), {"names": names, "held": held}

    def _parts(self, label: str, space: Space) -> dict[str, Any]:
        """Of a folder of modules each one that is loaded; of anything else without a file nothing can be known."""
        if "__path__" not in space:
            remedy = "call what it needs by name, without eval, exec or globals(); or for a reward give it a version="
            raise self.refusal("any name of a module without a file may be used", label, remedy)
        return {"parts": {k: self.code(v) for k, v in sorted(space.items()) if isinstance(v, types.ModuleType)}}


def _at_home(function: types.FunctionType) -> bool:
    """Whether a library's function is one of its module, rather than made for somebody."""
    home = sys.modules.get(function.__module__ or "")
    if home is None or getattr(home, function.__qualname__, None) is not function:
        return False
    return module_owners(home, home.__name__) == function_owners(function)
