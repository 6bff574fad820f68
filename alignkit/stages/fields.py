"""What the fields of a declaration may hold, read from their annotations and checked before anything is spent."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.errors import ConfigError, suggestion
from alignkit.groups import Groups
from alignkit.stages.handles import EvaluationHandle, GroupsHandle, Improved, PolicyHandle, RewardHandle

INPUTS: dict[str, type] = {
    kind.__name__: kind for kind in (Groups, GroupsHandle, PolicyHandle, RewardHandle, EvaluationHandle)
}
"""What comes from other stages, or from files, by the name that an annotation has for it."""


def settle(declared: Any) -> None:
    """Refuse values that their annotations do not allow; whole numbers for `float` become floats, so that 1 and 1.0 are
    one key.

    Words are those of a `Literal`; numbers are finite; a flag is a truth value; what is annotated as a handle or as
    `Groups` (one, a sequence, or by name) is one. Other annotations say nothing here.

    Args:
        declared: an instance of a frozen dataclass.

    Raises:
        ConfigError: the field, what it holds, and what it may hold.
    """
    where = getattr(declared, "name", "") or type(declared).__name__
    for each in dataclasses.fields(declared):
        node = _annotation(each.type)
        value = getattr(declared, each.name)
        if node is None or (value is None and _allows_none(node)):
            continue
        _check_word(each.name, value, node, where)
        _check_input(each.name, value, node, where)
        number = _number(each.name, value, node, where)
        if type(number) is not type(value):
            object.__setattr__(declared, each.name, number)


def _annotation(annotation: Any) -> ast.expr | None:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:  # a type whose text is no expression says nothing here
        return None


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _choices(node: ast.expr) -> Iterator[ast.expr]:
    """The alternatives of `A | B`."""
    if isinstance(node, ast.BinOp):
        yield from _choices(node.left)
        yield from _choices(node.right)
    else:
        yield node


def _allows_none(node: ast.expr) -> bool:
    return any(isinstance(one, ast.Constant) and one.value is None for one in _choices(node))


def _check_word(name: str, value: Any, node: ast.expr, where: str) -> None:
    choices = [one for one in _choices(node) if not _is_none(one)]
    literals = [one for one in choices if isinstance(one, ast.Subscript) and _name(one.value) == "Literal"]
    words = [word for literal in literals for word in _in(literal)]
    if words and len(literals) == len(choices) and value not in words:
        raise ConfigError(f"{name}={value!r}", where=where, remedy=suggestion(value, map(str, words)))


def _in(literal: ast.Subscript) -> list[Any]:
    inside = literal.slice
    return [ast.literal_eval(each) for each in (inside.elts if isinstance(inside, ast.Tuple) else [inside])]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _number(name: str, value: Any, node: ast.expr, where: str) -> Any:
    """The value, as a float where that is what the annotation says.

    Raises:
        ConfigError: no finite number, no whole number, or no truth value, where one is declared.
    """
    kinds = {_name(one) for one in _choices(node) if not _is_none(one)}
    if not kinds or not kinds <= {"int", "float", "bool"}:
        return value
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


def _check_input(name: str, value: Any, node: ast.expr, where: str) -> None:
    """Refuse what is no handle and no groups where one is declared."""
    allowed, several, named = _inputs(node)
    if not allowed or isinstance(value, tuple(allowed)):
        return
    parts = value.values() if named and isinstance(value, Mapping) else value if several else None
    if isinstance(parts, (str, bytes, Mapping)) or not hasattr(parts, "__iter__") or parts is None:
        _refuse_input(name, value, allowed, where)
    parts = list(parts)  # type: ignore[arg-type]
    for part in parts:
        if not isinstance(part, tuple(allowed)):
            _refuse_input(name, part, allowed, where)


def _inputs(node: ast.expr) -> tuple[list[type], bool, bool]:
    """(kinds of inputs that an annotation names, whether there may be several, whether by name)."""
    allowed, several, named = list[type](), False, False
    for one in _choices(node):
        inside = one
        if isinstance(one, ast.Subscript) and _name(one.value) in ("Sequence", "Mapping", "list", "tuple", "dict"):
            by_name = _name(one.value) in ("Mapping", "dict")
            inside = one.slice.elts[-1] if isinstance(one.slice, ast.Tuple) else one.slice
            kinds = [INPUTS[_name(each)] for each in _choices(inside) if _name(each) in INPUTS]
            several, named = several or bool(kinds and not by_name), named or bool(kinds and by_name)
        allowed += [INPUTS[_name(each)] for each in _choices(inside) if _name(each) in INPUTS]
    return allowed, several, named


def _refuse_input(name: str, value: Any, allowed: list[type], where: str) -> None:
    wanted = " or ".join(dict.fromkeys(kind.__name__ for kind in allowed))
    remedy = ""
    if isinstance(value, Improved):
        remedy = "pass its .policy" if PolicyHandle in allowed else "pass its .rollouts"
    elif isinstance(value, Mapping) and all(isinstance(one, GroupsHandle) for one in value.values()) and value:
        remedy = f"pass one of its dimensions, such as […][{next(iter(value))!r}]"
    elif Groups in allowed:
        remedy = "make them with Groups.from_prompts, Groups.from_rows or read_groups"
    elif PolicyHandle in allowed:
        remedy = "bring a model into the run with run.policy"
    raise ConfigError(f"{name} is a {type(value).__name__}, and not a {wanted}", where=where, remedy=remedy)
