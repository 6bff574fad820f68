"""One kind of error for users: what went wrong, where, what it does to the result, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from alignkit.hidden import scrubbed


class AlignkitError(Exception):
    """An error a user can act on.

    Args:
        what: one sentence that names the fault.
        where: the file, row, stage, plugin or argument at fault.
        effect: what would happen, or did happen, because of it.
        remedy: what to type or change.
    """

    def __init__(self, what: str, *, where: str = "", effect: str = "", remedy: str = "") -> None:
        self.what, self.where, self.effect, self.remedy = what, where, effect, remedy
        super().__init__(str(self))

    def at(self, place: str) -> None:
        """Add to where it was.

        Args:
            place: such as "round 3".
        """
        self.where = f"{self.where}, {place}" if self.where else place
        self.args = (str(self),)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        tail = [text for text in (self.effect, f"Remedy: {self.remedy}" if self.remedy else "") if text]
        return scrubbed(" ".join([head if head.endswith((".", "?", "!")) else head + ".", *tail]))


class PluginError(AlignkitError):
    """A component or a plugin is unknown, ambiguous, broken or wrongly configured."""


class DataError(AlignkitError):
    """Rows that cannot be learned from, or a file that cannot be read."""


class NothingToLearnError(DataError):
    """A round of `improve` without anything to learn from, such as one in which every prompt is solved.

    The round is left out, and said; it is an error where no round has anything.
    """


class ConfigError(AlignkitError):
    """An argument outside its range, or arguments that contradict each other."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: what is finished stays, and the same command continues."""


class NumericError(AlignkitError):
    """A NaN or an infinity, caught before it reached the weights."""


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, or None.

    Args:
        name: what was written.
        known: what could have been meant.
    """
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)), None)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The half sentence that offers the nearest known name, or nothing.

    Args:
        name: what was written.
        known: what could have been meant.
    """
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def suggestion(name: object, known: Iterable[str]) -> str:
    """The remedy for a name that is not known: the nearest one, or all of them.

    Args:
        name: what was written.
        known: what could have been meant.
    """
    names = list(known)
    near = nearest(name, names)
    return f"did you mean {near}?" if near else f"use {', '.join(names)}"
