"""What a class of the user's own stands on: its bases, methods, attributes and fields, as they are at run time.

Its attributes rather than its text are read: they are there in a notebook too, and for a class that was made or changed
by a decorator, a metaclass or an assignment.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from enum import Enum
from typing import Any

from alignkit.identity.atoms import shown
from alignkit.identity.ledger import Ledger, Written
from alignkit.identity.spaces import Space, space_of

UNCOUNTED = frozenset(
    [
        "__module__",
        "__dict__",
        "__weakref__",
        "__doc__",
        "__qualname__",
        "__firstlineno__",
        "__static_attributes__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__abstractmethods__",
        "_abc_impl",
        "__parameters__",
        "__orig_bases__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__match_args__",
        "__slotnames__",
        "__type_params__",
        "__pydantic_core_schema__",
        "__pydantic_decorators__",
        "__pydantic_serializer__",
        "__pydantic_validator__",
    ]
)
"""What Python itself, or pydantic, keeps in a class, made of the rest of it."""

SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)
CALLED = (types.FunctionType, type, property, staticmethod, classmethod, functools.cached_property)


def describe_class(ledger: Ledger, label: str, kind: type) -> tuple[Written | None, dict[str, Any]]:
    """The description of a class, and what it names noted in the ledger.

    Args:
        ledger: where.
        label: of the class.
        kind: it.
    """
    attributes, space = vars(kind), space_of(kind)
    found: dict[str, Any] = {
        "bases": [ledger.code(base) for base in kind.__bases__],
        "metaclass": ledger.code(type(kind)),
        "annotations": [[k, _type(v)] for k, v in dict(attributes.get("__annotations__", {})).items()],
        "attributes": {
            k: _attribute(ledger, label, k, v, space) for k, v in sorted(attributes.items()) if _counts(kind, k)
        },
        "doc": kind.__doc__,
    }
    if "__dataclass_fields__" in attributes:
        found["dataclass"] = repr(attributes["__dataclass_params__"])
        found["fields"] = [_field(ledger, label, f) for f in attributes["__dataclass_fields__"].values()]
    return None, found


def _counts(kind: type, name: str) -> bool:
    value = vars(kind)[name]
    value = value.__func__ if isinstance(value, staticmethod) else value
    if name in UNCOUNTED or isinstance(value, SLOTS):
        return False
    if isinstance(value, types.FunctionType):
        return not _generated(kind, name, value)
    private = name.startswith("_") and name.endswith("_")
    return not (issubclass(kind, Enum) and private and not isinstance(value, CALLED))


def _generated(kind: type, name: str, value: types.FunctionType) -> bool:
    """Whether a method was written by `dataclass` or `namedtuple`, of what else is counted."""
    made = "__dataclass_fields__" in vars(kind) or ("_fields" in vars(kind) and issubclass(kind, tuple))
    by = value.__code__.co_filename == "<string>" or value.__globals__.get("__name__") in ("dataclasses", "reprlib")
    return made and by and name.startswith("__")


def _attribute(ledger: Ledger, label: str, name: str, value: Any, space: Space) -> Any:
    if isinstance(value, (types.FunctionType, type)):
        return ledger.code(value)
    if isinstance(value, Enum) and label.endswith(type(value).__qualname__):
        value = value._value_
    made = name.startswith("__")  # by a metaclass or a library's decorator, for itself
    return ledger.value((label, name), f"{label}.{name}", value, lenient=made, space=space)


def _field(ledger: Ledger, label: str, item: Any) -> Any:
    has_default = item.default is not dataclasses.MISSING
    factory = item.default_factory if item.default_factory is not dataclasses.MISSING else None
    name = f"{label}.{item.name}="
    return {
        "name": item.name,
        "default": ledger.value((label, "field", item.name), name, item.default) if has_default else None,
        "factory": ledger.value((label, "factory", item.name), f"{name}()", factory) if factory else None,
        "settings": [item.init, bool(item.kw_only), item.compare, item.hash],
        "kind": item._field_type.name,
        "metadata": ledger.value((label, "metadata", item.name), f"{name}#", dict(item.metadata), lenient=True),
    }


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__qualname__", "") or shown(annotation)
