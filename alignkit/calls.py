"""Calls of what a plugin or a user brought: whatever it raises ends in one message that says whose it is, and where."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError, PluginError

log = logging.getLogger("alignkit")

REMEDY = "mend it there; ALIGNKIT_TRACE=1 shows the whole traceback"


def whose(owner: Any) -> str:
    """A component as a message names it: by its module (the plugin) and its class or function.

    Args:
        owner: the component: an object, a class, a function, a file, or text that is taken as it is.
    """
    if isinstance(owner, (str, Path)):
        return str(owner)
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
        raise PluginError(f"{said} at {_line(owner, error)}", where=where, remedy=REMEDY) from error


def release(*parts: Any) -> None:
    """Have components give back what they hold.

    Args:
        parts: rewards, annotators; what has no `release` (None, an annotator of a class of its own) holds nothing.

    Raises:
        PluginError: see `calling`; the others have been released all the same.
    """
    for place, part in enumerate(parts):
        if not callable(getattr(part, "release", None)):
            continue
        try:
            with calling(part, "release"):
                part.release()
        except PluginError:
            release(*parts[place + 1 :])
            raise


@contextmanager
def releasing(*parts: Any) -> Iterator[None]:
    """Around work with components that hold something: they give it back, however it ends.

    Args:
        parts: see `release`.

    Raises:
        PluginError: see `release`; where the work failed, its own error is raised, and this one only said.
    """
    try:
        yield
    except BaseException:
        try:
            release(*parts)
        except PluginError as another:
            log.warning("%s", another)
        raise
    release(*parts)


def told(owner: Any, name: str, kind: type | tuple[type, ...], *given: Any) -> Any:
    """What a component says of itself by a property or a method of its own.

    Args:
        owner: the component.
        name: of the property or method.
        kind: what it must be.
        given: to the method.

    Raises:
        PluginError: see `calling`; or it is something else.
    """
    with calling(owner, name):
        found = getattr(owner, name)
        found = found(*given) if callable(found) else found
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise PluginError(f"{name} is {found!r}", where=whose(owner), remedy=f"give a {kinds}")
    return found


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


def _line(owner: Any, error: BaseException) -> str:
    """FILE:LINE of the deepest line of the owner's own file; of any file where none is."""
    if isinstance(error, SyntaxError) and error.filename:  # it never ran
        return f"{Path(error.filename).name}:{error.lineno}"
    made = owner if inspect.isclass(owner) or inspect.isroutine(owner) else type(owner)
    function = getattr(owner, "function", None) or getattr(owner, "fn", None)
    try:
        own = str(owner) if isinstance(owner, Path) else inspect.getsourcefile(function if callable(function) else made)
    except TypeError:
        own = None
    lines, trace = [], error.__traceback__
    while trace is not None:
        lines.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    lines = [line for line in lines if line[0] == own] or lines
    return f"{Path(lines[-1][0]).name}:{lines[-1][1]}" if lines else "an unknown line"
