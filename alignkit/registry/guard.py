"""Around the import of a plugin: said while it takes long, and kept from ending, moving or silencing the process."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from alignkit.errors import PluginError

log = logging.getLogger("alignkit.plugins")

SLOW = 10.0
"""Seconds after which an import is said to take long; and again whenever it has taken three times as long."""

_ENDS = ("_exit", "abort")
_STANDARD = tuple(os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib"))


@contextlib.contextmanager
def guarded(name: str) -> Iterator[None]:
    """Around the code that a plugin runs as it is imported and asked for its components.

    Args:
        name: of its distribution.

    Raises:
        SystemExit: it called `os._exit` or `os.abort`, which would have ended the process without a word.
        PluginError: it closed standard output or standard error.
    """
    with _watched(name), _alive(), _in_place(name), _speaking():
        yield


@contextlib.contextmanager
def _watched(name: str) -> Iterator[None]:
    """A word while it waits. An import cannot be ended from outside, but who waits may leave the plugin out."""
    done, thread = threading.Event(), threading.get_ident()

    def watch() -> None:
        waited = SLOW
        while not done.wait(waited if waited == SLOW else waited * 2 / 3):
            log.warning(
                "plugin %s is still being imported after %.0f s, at %s; ALIGNKIT_BLOCK_PLUGINS=%s leaves it out",
                *(name, waited, _where(sys._current_frames().get(thread)), name),
            )
            waited *= 3

    watcher = threading.Thread(target=watch, name=f"import of {name}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _where(frame: FrameType | None) -> str:
    """FILE:LINE of the innermost line that is not the standard library's."""
    lines = []
    while frame is not None:
        lines.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    own = [line for line in lines if not line[0].startswith(("<frozen", *_STANDARD)) or "-packages" in line[0]]
    return "{}:{}".format(*(own or lines)[0]) if lines else "its end"


@contextlib.contextmanager
def _alive() -> Iterator[None]:
    """`os._exit` and `os.abort` of this thread raise; a child process that was forked meanwhile may end itself."""
    process, thread, at_work = os.getpid(), threading.get_ident(), True
    modules = [os, sys.modules[os.name]]  # `posix`, where they come from
    real = {end: getattr(os, end) for end in _ENDS}

    def refusing(end: str) -> Callable[..., Any]:
        def refuse(*status: Any) -> Any:
            if at_work and (os.getpid(), threading.get_ident()) == (process, thread):
                raise SystemExit(f"os.{end}({', '.join(map(repr, status))}) was called")
            return real[end](*status)

        return refuse

    for module in modules:
        for end in _ENDS:
            setattr(module, end, refusing(end))
    try:
        yield
    finally:
        at_work = False  # for who kept the function
        for module in modules:
            for end in _ENDS:
                setattr(module, end, real[end])


@contextlib.contextmanager
def _in_place(name: str) -> Iterator[None]:
    """The working folder stays: relative paths of the run would lead elsewhere."""
    try:
        before = os.getcwd()
    except OSError:  # it was deleted: there is none to go back to
        yield
        return
    try:
        yield
    finally:
        if os.getcwd() != before:
            log.warning("plugin %s changed the working folder to %s; it is %s again", name, os.getcwd(), before)
            os.chdir(before)


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    """Standard output and error are what they were. A closed one is opened again, and its plugin refused."""
    before, kept = (sys.stdout, sys.stderr), [_copy(1), _copy(2)]
    try:
        yield
        closed = [name for name, stream in zip(("output", "error"), before, strict=True) if _closed(stream)]
        if closed:
            raise PluginError(f"it closed standard {' and '.join(closed)}", remedy="leave it open")
    finally:
        sys.stdout, sys.stderr = (_opened(*pair) for pair in zip(before, (1, 2), kept, strict=True))
        for copy in kept:
            if copy is not None:
                os.close(copy)


def _copy(descriptor: int) -> int | None:
    try:
        return os.dup(descriptor)
    except OSError:  # the process has none
        return None


def _closed(stream: Any) -> bool:
    return bool(getattr(stream, "closed", False))


def _opened(stream: Any, descriptor: int, copy: int | None) -> Any:
    if not _closed(stream) or copy is None:
        return stream
    os.dup2(copy, descriptor)
    return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
