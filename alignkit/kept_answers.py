"""Where answers that were paid for are kept while a run is at work: an interruption must not make anyone pay twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_FOLDER: ContextVar[Path | None] = ContextVar("answers_folder", default=None)


def answers_folder() -> Path | None:
    """The folder of the run at work in which a component may keep what was paid for; None outside of a stage.

    It is no part of a stage and of no key: what is kept there may only spare work, never change a result.
    """
    return _FOLDER.get()


@contextmanager
def keeping_answers(folder: Path) -> Iterator[None]:
    """Around the work of a stage.

    Args:
        folder: absolute, and made by who first keeps something.
    """
    before = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(before)
