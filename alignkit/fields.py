"""What the fields of a declaration may hold: words and numbers, read from their annotations, and ranges of numbers."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from alignkit.errors import ConfigError, suggestion

NUMBERS = ("int", "float", "bool")
TEXTS: dict[str, tuple[type, ...]] = {"str": (str,), "Path": (str, os.PathLike)}
"""What is text: a path may be written as one."""


def check_values(declared: Any) -> None:
    """Refuse words and numbers that annotations do not allow; whole numbers for `float` become floats, so that 1 and
    1.0 are one key.

    Words are those of a `Literal`, by its name too; numbers are finite, those of a tuple too, which has as many as are
    declared; a flag is a truth value, a text is text. Other annotations say nothing here.

    Args:
        declared: an instance of a dataclass.

    Raises:
        ConfigError: the field, what it holds, and what it may hold.
    """
    where = name_of(declared)
    for name, value, node in annotated(declared):
        settled = _settled(name, value, node, where, type(declared))
        if type(settled) is not type(value):
            object.__setattr__(declared, name, settled)


def check_value(name: str, value: Any, annotation: Any, where: str) -> None:
    """The same of one value that is declared by a parameter of a function.

    Args:
        name: of the parameter.
        value: what it is to be.
        annotation: of the parameter, as text or as a type.
        where: whose it is.

    Raises:
        ConfigError: what it holds, and what it may hold.
    """
    node = _annotation(annotation)
    if node is not None and not (value is None and _allows_none(node)):
        _settled(name, value, node, where, None)


def _settled(name: str, value: Any, node: ast.expr, where: str, kind: type | None) -> Any:
    words = _words(node, kind)
    if words and not any(isinstance(value, type(word)) and value == word for word in words):
        raise ConfigError(f"{name}={value!r}", where=where, remedy=suggestion(value, map(str, words)))
    return _plain_value(name, value, node, where)


def name_of(declared: Any) -> str:
    """How errors call it: a stage by its name, anything else by its class."""
    return getattr(declared, "name", "") or type(declared).__name__


def annotated(declared: Any) -> Iterator[tuple[str, Any, ast.expr]]:
    """(name, value, annotation) of every field whose annotation can be read, but of one that is None and may be."""
    for each in dataclasses.fields(declared):
        node, value = _annotation(each.type), getattr(declared, each.name)
        if node is not None and not (value is None and _allows_none(node)):
            yield each.name, value, node


def _annotation(annotation: Any) -> ast.expr | None:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:  # a type whose text is no expression says nothing here
        return None


def name_in(node: ast.AST) -> str:
    """The name that an annotation is, without its module; empty where it is something else."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def choices(node: ast.expr) -> Iterator[ast.expr]:
    """The alternatives of `A | B`."""
    if isinstance(node, ast.BinOp):
        yield from choices(node.left)
        yield from choices(node.right)
    else:
        yield node


def _allows_none(node: ast.expr) -> bool:
    return any(_is_none(one) for one in choices(node))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _words(node: ast.expr, kind: type | None) -> list[Any]:
    """The words that a field may hold; none where it may hold something else too."""
    found = list[Any]()
    for one in choices(node):
        if _is_none(one):
            continue
        if isinstance(one, ast.Subscript) and name_in(one.value) == "Literal":
            inside = one.slice
            found += [ast.literal_eval(each) for each in (inside.elts if isinstance(inside, ast.Tuple) else [inside])]
        elif words := _named_words(name_in(one), kind):
            found += words
        else:
            return []
    return found


def _named_words(name: str, kind: type | None) -> list[Any]:
    """The words of a `Literal` that has a name in the module of the class, or of one that it is made from."""
    for base in kind.__mro__ if kind else ():
        known = getattr(sys.modules.get(base.__module__), name, None) if name else None
        if get_origin(known) is Literal:
            return list(get_args(known))
    return []


def _plain_value(name: str, value: Any, node: ast.expr, where: str) -> Any:
    """The value, as a float where that is what the annotation says.

    Raises:
        ConfigError: no finite number, no whole number, no truth value, no text, or not as many, where one is declared.
    """
    inside = [_inside(one) for one in choices(node) if not _is_none(one)]
    if len(inside) == 1 and inside[0] is not None:
        return _several(name, value, *inside[0], where)
    return _one(name, value, {name_in(one) for one in choices(node) if not _is_none(one)}, where)


def _one(name: str, value: Any, kinds: set[str], where: str) -> Any:
    if kinds and kinds <= set(NUMBERS):
        return _one_number(name, value, kinds, where)
    if kinds and kinds <= set(TEXTS) and not isinstance(value, tuple(t for kind in kinds for t in TEXTS[kind])):
        raise ConfigError(f"{name}={value!r} is no text", where=where)
    return value


def _several(name: str, value: Any, kind: str, count: int | None, where: str) -> Any:
    """The value of a tuple of `kind`, with `count` of them; None: however many."""
    if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
        wanted = f"{count} of them" if count is not None else "a list of them"
        raise ConfigError(f"{name}={value!r}, which is declared as {kind}s", where=where, remedy=f"give {wanted}")
    settled = [_one(f"{name}[{place}]", each, {kind}, where) for place, each in enumerate(value)]
    alike = all(type(a) is type(b) for a, b in zip(settled, value, strict=True))
    return value if alike and isinstance(value, tuple) else tuple(settled)


def _inside(node: ast.expr) -> tuple[str, int | None] | None:
    """(what it holds, how many; None: any number) of `tuple[float, float]` and `tuple[float, ...]`; None for anything
    else."""
    if not (isinstance(node, ast.Subscript) and name_in(node.value) == "tuple"):
        return None
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    own = [part for part in parts if not (isinstance(part, ast.Constant) and part.value is Ellipsis)]
    kinds = {name_in(part) for part in own}
    if len(kinds) != 1 or not kinds <= {*NUMBERS, *TEXTS}:
        return None
    return kinds.pop(), len(own) if len(own) == len(parts) else None


def _one_number(name: str, value: Any, kinds: set[str], where: str) -> Any:
    if kinds == {"bool"} and not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is no truth value", where=where, remedy="use True or False")
    if isinstance(value, bool):
        if "bool" in kinds:
            return value
        raise ConfigError(f"{name}={value!r} is no number", where=where)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} is no finite number", where=where)
    if kinds == {"int"} and not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} is no whole number", where=where)
    return float(value) if kinds == {"float"} else value


def check_range(where: str, low: float = 0.0, high: float = math.inf, **values: float) -> None:
    """Refuse numbers outside [low, high]; NaN and infinity always.

    Args:
        where: whose they are.
        low: the smallest that is allowed.
        high: the largest.
        values: by name.

    Raises:
        ConfigError: naming the first.
    """
    for name, value in values.items():
        if not low <= value <= high or math.isinf(value):
            limits = f"at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
            raise ConfigError(f"{name}={value} must be finite and {limits}", where=where)
