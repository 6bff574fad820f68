"""Whose a function or a class is, what it is called, and what it can reach: its globals and its closure."""

from __future__ import annotations

import builtins
import inspect
import linecache
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignkit.identity.distributions import Owners, module_owners, owners
from alignkit.identity.names import Chain

Space = Mapping[str, Any]
"""The globals of a module, a script or a cell."""

PRIVATE = frozenset(
    [
        "__name__",
        "__file__",
        "__spec__",
        "__package__",
        "__path__",
        "__builtins__",
        "__loader__",
        "__cached__",
        "__doc__",
    ]
)
HEAP_TYPE = 1 << 9
"""The flag of classes that a `class` statement made; those written in C mostly lack it."""


def function_owners(function: types.FunctionType) -> Owners:
    """Whose a function is, by the file of its code rather than by what a decorator may have named it."""
    file, name = function.__code__.co_filename, str(function.__globals__.get("__name__") or "")
    if file.startswith("<") and not linecache.getlines(file):  # made by exec: it belongs where it was made
        module = sys.modules.get(function.__module__ or "")
        return module_owners(module, function.__module__) if module else None
    return owners(name.partition(".")[0], file)


def is_own(kind: type) -> bool:
    """Whether a class is the user's own."""
    name = kind.__module__ if isinstance(kind.__module__, str) else ""
    if name == "builtins":  # also said of classes made by exec in a bare namespace
        return bool(kind.__flags__ & HEAP_TYPE) and getattr(builtins, kind.__name__, None) is not kind
    if name.startswith("_cython_"):  # shared by all modules that Cython compiled
        return False
    module = sys.modules.get(name) or sys.modules.get(name.partition(".")[0])
    return module_owners(module, name) is None if module else bool(kind.__flags__ & HEAP_TYPE)


def is_code(value: Any) -> bool:
    """Whether a value is a function or a class rather than data, such as a method of an object is."""
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, (types.ModuleType, type))
    return isinstance(value, (type, types.FunctionType))


def is_evaluator(value: Any) -> bool:
    """Whether a value is one of the functions that lead to any name of the module that calls them."""
    return any(value is each for each in (eval, exec, globals, sys._getframe, inspect.currentframe))


def name_of(target: Any) -> str:
    """The name of a function or class in a key: module and qualified name, the same for a script and its import."""
    return f"{space_name(space_of(target))}.{target.__qualname__}".lstrip(".")


def space_of(target: Any) -> Space:
    """The globals of a function or of the module of a class; of a class whose module is gone, its name alone."""
    if isinstance(target, types.FunctionType):
        return target.__globals__
    module = sys.modules.get(target.__module__)
    return vars(module) if module else {"__name__": target.__module__}


def space_name(space: Space) -> str:
    """The name of a module; of a script, that under which it would be imported; empty for a notebook."""
    name = str(space.get("__name__") or "")
    if name not in ("__main__", "__mp_main__", "builtins"):
        return name
    spec, file = space.get("__spec__"), space.get("__file__")
    return str(getattr(spec, "name", "") if spec else Path(str(file)).stem if file else "")


def folder_of(space: Space) -> str:
    """The folder of a module's file; empty without one."""
    file = space.get("__file__")
    return str(Path(str(file)).parent) if file else ""


def cells_of(function: types.FunctionType) -> dict[str, Any]:
    """The values that a function closes over; those not yet bound are left out."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


def names_in(code: types.CodeType) -> frozenset[str]:
    """The names in code, and in the functions defined in it, that are no variables of its own."""
    return _globals_in(code) | frozenset(code.co_freevars)


def _globals_in(code: types.CodeType) -> frozenset[str]:
    inner = [_globals_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(code.co_names).union(*inner)


def spellings(name: str, names: frozenset[str] | None) -> list[str]:
    """How a name of the source is called in code: inside a class, `__x` is `_Class__x`."""
    if names is None or name in names:
        return [name]
    private = name.startswith("__") and not name.endswith("__")
    return sorted(other for other in names if private and other.startswith("_") and other.endswith(name))


def places(path: Chain, space: Space) -> Iterator[tuple[int, str]]:
    """The global that a path leads to, as (id of its module's namespace, name)."""
    for name, following in zip(path, (*path[1:], None), strict=True):
        value = space.get(name)
        if following is None or not isinstance(value, types.ModuleType):
            yield id(space), name
            return
        space = vars(value)
