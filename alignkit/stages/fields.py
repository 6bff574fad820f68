"""What the fields of a declaration may hold: words and numbers, and what comes from other stages, checked before
anything is spent."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from alignkit.errors import ConfigError
from alignkit.fields import annotated, check_values, choices, name_in, name_of
from alignkit.groups import Groups
from alignkit.stages.handles import EvaluationHandle, GroupsHandle, Improved, PolicyHandle, RewardHandle

INPUTS: dict[str, type] = {
    kind.__name__: kind for kind in (Groups, GroupsHandle, PolicyHandle, RewardHandle, EvaluationHandle)
}
"""What comes from other stages, or from files, by the name that an annotation has for it."""


def settle(declared: Any) -> None:
    """Refuse values that their annotations do not allow, see `alignkit.fields.check_values`; what is annotated as a
    handle or as `Groups` (one, a sequence, or by name) is one.

    Args:
        declared: an instance of a frozen dataclass.

    Raises:
        ConfigError: the field, what it holds, and what it may hold.
    """
    where = name_of(declared)
    check_values(declared)
    for name, value, node in annotated(declared):
        _check_input(name, value, node, where)


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
    for one in choices(node):
        inside = one
        if isinstance(one, ast.Subscript) and name_in(one.value) in ("Sequence", "Mapping", "list", "tuple", "dict"):
            by_name = name_in(one.value) in ("Mapping", "dict")
            inside = one.slice.elts[-1] if isinstance(one.slice, ast.Tuple) else one.slice
            kinds = [INPUTS[name_in(each)] for each in choices(inside) if name_in(each) in INPUTS]
            several, named = several or bool(kinds and not by_name), named or bool(kinds and by_name)
        allowed += [INPUTS[name_in(each)] for each in choices(inside) if name_in(each) in INPUTS]
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
