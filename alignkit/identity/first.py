"""Values as they were first seen in this process.

What code fills, counts in or draws from is another value after the first stage. As it stands it would make the next
stage anew with each run of the script, so it counts as it stood when it was first asked for.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any


class Reference(str):
    """A function, class or module within a value that is kept; its code is looked into for each key."""

    target: Any

    @classmethod
    def to(cls, target: Any) -> Reference:
        """The reference to code, named so that what holds it can be sorted."""
        made = cls(f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}")
        made.target = target
        return made


_first: dict[Hashable, tuple[Any, tuple[Any, ...], Any]] = {}
"""By place: what keeps its identity from being used again (weakly where it can), what it was made for, and the form."""


def first_seen(at: Hashable, owner: Any, marks: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What `make` gave when a place was first asked for.

    Args:
        at: the place, which holds the `id` of the owner.
        owner: lives as long as the place does.
        marks: objects of which each must still be the same; with another one the place is a new one.
        make: the plain form, with a `Reference` for each piece of code.
    """
    known = _first.get(at)
    if known is None or len(known[1]) != len(marks) or any(a is not b for a, b in zip(known[1], marks, strict=True)):
        known = _first[at] = (_alive(at, owner), marks, make())
    return known[2]


def _alive(at: Hashable, owner: Any) -> Any:
    try:
        return weakref.ref(owner, lambda _: _first.pop(at, None))
    except TypeError:
        return owner


def resolved(form: Any, code: Callable[[Any], Any]) -> Any:
    """A form that was kept, with the code in it as `code` refers to it."""
    if isinstance(form, Reference):
        return code(form.target)
    if isinstance(form, list):
        return [resolved(item, code) for item in form]
    return {key: resolved(item, code) for key, item in form.items()} if isinstance(form, dict) else form
