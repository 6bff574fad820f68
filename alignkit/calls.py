"""Calls of what a plugin or a user brought: whatever it raises ends in one message that says whose it is, and where."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from alignkit.errors import AlignkitError, PluginError

REMEDY = "mend it there; ALIGNKIT_TRACE=1 shows the whole traceback"


def whose(owner: Any) -> str:
    """A component as a message names it: by its module (the plugin) and its class or function.

    Args:
        owner: the component: an object, a class, a function, or text that is taken as it is.
    """
    if isinstance(owner, str):
        return owner
    function = getattr(owner, "function", None) or getattr(owner, "fn", None)  # of a plain one that was wrapped
    made = function if callable(function) else owner
    while isinstance(made, functools.partial):
        made = made.func
    named = made if inspect.isclass(made) or inspect.isroutine(made) else type(made)
    return f"{named.__module__}.{named.__qualname__}"


@contextmanager
def calling(owner: Any, hook: str, place: str = "") -> Iterator[None]:
    """Around a call of a component's own code.

    Args:
        owner: whose code it is, see `whose`.
        hook: which of its functions.
        place: where in the data: a row, a round.

    Raises:
        PluginError: it raised something that explains nothing to a user, or called `sys.exit`, which must never pass
            for a success. What explains itself (an `AlignkitError`), and Ctrl-C, go through.
    """
    try:
        yield
    except (AlignkitError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        said = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else _told(error)
        where = ", ".join(part for part in (f"{whose(owner)}.{hook}" if hook else whose(owner), place) if part)
        raise PluginError(f"{said} at {_line(owner, error.__traceback__)}", where=where, remedy=REMEDY) from error


def give_back(owner: Any) -> None:
    """Have a component give back what it holds.

    Args:
        owner: a reward or an annotator.

    Raises:
        PluginError: see `calling`.
    """
    with calling(owner, "release"):
        owner.release()


@contextmanager
def never_exits(where: str) -> Iterator[None]:
    """Around work in which code of others runs: `sys.exit` in it is an error, whatever status it names.

    Args:
        where: stage, recipe or file.

    Raises:
        PluginError: it was called.
    """
    try:
        yield
    except SystemExit as stop:
        what = f"sys.exit({stop.code!r}) was called"
        raise PluginError(what, where=where, effect="It did not come to its end.", remedy="raise an error") from stop


@contextmanager
def within(place: str | Callable[[], str]) -> Iterator[None]:
    """Around work in which plugins are called: their errors say that it was here.

    Args:
        place: such as "round 3"; not said twice. A function is asked only where there is an error.
    """
    try:
        yield
    except PluginError as error:
        place = place() if callable(place) else place
        if place not in error.where:
            error.at(place)
        raise


def _told(error: BaseException) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}" + (f": {text[:300]}" if text else "")


def _line(owner: Any, trace: TracebackType | None) -> str:
    """FILE:LINE of the deepest line of the owner's own file; of any file where none is."""
    made = owner if inspect.isclass(owner) or inspect.isroutine(owner) else type(owner)
    function = getattr(owner, "function", None) or getattr(owner, "fn", None)
    try:
        own = inspect.getsourcefile(function if callable(function) else made)
    except TypeError:
        own = None
    lines = []
    while trace is not None:
        lines.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    lines = [line for line in lines if line[0] == own] or lines
    return f"{Path(lines[-1][0]).name}:{lines[-1][1]}" if lines else "an unknown line"
