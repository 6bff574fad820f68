"""One kind of error for users: what went wrong, where, what it does to the result, and what to do about it."""

from __future__ import annotations


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

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        tail = [text for text in (self.effect, f"Remedy: {self.remedy}" if self.remedy else "") if text]
        return " ".join([head if head.endswith((".", "?", "!")) else head + ".", *tail])


class PluginError(AlignkitError):
    """A component or a plugin is unknown, ambiguous, broken or wrongly configured."""


class DataError(AlignkitError):
    """Rows that cannot be learned from, or a file that cannot be read."""


class ConfigError(AlignkitError):
    """An argument outside its range, or arguments that contradict each other."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: what is finished stays, and the same command continues."""


class NumericError(AlignkitError):
    """A NaN or an infinity, caught before it reached the weights."""
