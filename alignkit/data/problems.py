"""What is wrong with rows of data: said row by row, then refused or dropped, never passed over in silence."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from alignkit.errors import DataError
from alignkit.groups import Groups

logger = logging.getLogger("alignkit.data")

NOTE = "%s: %s"
"""How a note is said: stage, problem."""

SHOWN = 5
"""How many rows at fault an error shows; all are counted."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one row, or with the whole.

    Args:
        code: D01 to D28, see `alignkit.data.checks`.
        row: its place in the groups, or None: the whole.
        prompt_id: its content hash, or "".
        field: the column at fault.
        what: what is wrong.
        effect: what it would do to the training.
        remedy: what to change.
        where: file and line, where known.
        note: worth knowing, but no reason to refuse the row.
    """

    code: str
    row: int | None
    prompt_id: str
    field: str
    what: str
    effect: str = ""
    remedy: str = ""
    where: str = ""
    note: bool = False

    def __str__(self) -> str:
        place = self.where or ("" if self.row is None else f"row {self.row}")
        name = f"({self.prompt_id})" if self.prompt_id else ""
        head = " ".join(text for text in (f"AK-{self.code}", place, name, self.field) if text)
        return " — ".join(text for text in (head, self.what, self.effect, self.remedy) if text)


def errors_of(problems: Sequence[Problem]) -> list[Problem]:
    """Those that are a reason to refuse."""
    return [problem for problem in problems if not problem.note]


def summary(problems: Sequence[Problem]) -> str:
    """How often each code occurs: `D01 x 7, D05 x 2`."""
    counts = Counter(problem.code for problem in problems)
    return ", ".join(f"{code} x {count}" for code, count in sorted(counts.items()))


class Notes:
    """Notes on rows, one line for each place and code with how many there were."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], Problem] = {}

    def add(self, problem: Problem, where: str) -> None:
        """Count one."""
        self._counts[where, problem.code] += 1
        self._first.setdefault((where, problem.code), problem)

    def tell(self) -> None:
        """Log what was counted since the last time."""
        counted, first, self._counts, self._first = self._counts, self._first, Counter(), {}
        for (where, code), count in counted.items():
            logger.warning(NOTE, where, _folded(first[where, code], count))


def _folded(first: Problem, count: int) -> str:
    """`AK-D08 × 37: holds … — … (first: row 3 (…) text)`; a single one as it is."""
    if count == 1:
        return str(first)
    head, *said = str(first).split(" — ")
    return f"AK-{first.code} × {count}: {' — '.join(said)} (first: {head.removeprefix(f'AK-{first.code} ')})"


_open: list[Notes] = []
"""Of the stage that is being made: its notes on rows are held back and told in one line each."""


@contextmanager
def folded() -> Iterator[None]:
    """Notes on rows that are reported within the block are told at its end, or before by `tell_folded`."""
    notes = Notes()
    _open.append(notes)
    try:
        yield
    finally:
        _open.remove(notes)
        notes.tell()


def tell_folded() -> None:
    """Tell what is held back, before work that takes long."""
    for notes in _open:
        notes.tell()


def report_notes(problems: Sequence[Problem], where: str) -> None:
    """Log the notes: those on rows in one line for each code (within `folded`, at its end), those on the whole all."""
    notes, here = [problem for problem in problems if problem.note], _open[-1] if _open else Notes()
    for problem in notes:
        if problem.row is not None:
            here.add(problem, where)
    if not _open:
        here.tell()
    for problem in notes:
        if problem.row is None:
            logger.warning(NOTE, where, problem)


class _Fresh(logging.Filter):
    """Lets a note pass once, whatever stage it is said of."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[tuple[str, ...]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg != NOTE or not isinstance(record.args, tuple):
            return True
        text = tuple(str(part) for part in record.args[1:])
        fresh = text not in self.said
        self.said.add(text)
        return fresh


@contextmanager
def said_once() -> Iterator[None]:
    """Within it a note on the same rows is said once, though stage after stage reads them: cells of a comparison."""
    fresh = _Fresh()
    logger.addFilter(fresh)
    try:
        yield
    finally:
        logger.removeFilter(fresh)


def refusal(problems: Sequence[Problem], rows: int, where: str) -> DataError:
    """The error that says how many of `rows` rows are bad, why, and shows the first of them."""
    bad = len({problem.row for problem in problems if problem.row is not None})
    head = f"{bad} of {rows} rows cannot be learned from ({summary(problems)})" if bad else summary(problems)
    lines = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
    more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return DataError(f"{head}:{lines}{more}\n", where=where, remedy="correct them, or drop them with drop_bad=True")


def refuse_or_drop(groups: Groups, problems: Sequence[Problem], drop_bad: bool, where: str) -> Groups:
    """Refuse rows that cannot be learned from, or leave them out and say so.

    Args:
        groups: what was checked.
        problems: from `check_groups` or `encode_groups`; notes are logged and change nothing.
        drop_bad: leave bad rows out instead of raising.
        where: the file or stage, for messages.

    Raises:
        DataError: a count for each code and the first five rows at fault; or nothing is left.
    """
    report_notes(problems, where)
    errors = errors_of(problems)
    bad = {problem.row for problem in errors if problem.row is not None}
    whole = [problem for problem in errors if problem.row is None]
    if errors and (whole or not drop_bad):
        raise refusal([*whole, *(p for p in errors if p.row is not None)], len(groups), where)
    if not bad:
        return groups
    if len(bad) >= len(groups):
        raise DataError(f"AK-D28 0 rows left: {summary(errors)} dropped {len(bad)} of {len(groups)}", where=where)
    logger.warning(
        "%s: dropped %d of %d rows (%s), first: %s", where, len(bad), len(groups), summary(errors), errors[0]
    )
    return groups.select(i for i in range(len(groups)) if i not in bad)
