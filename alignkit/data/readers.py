"""Preference data from files, in the forms that people have it in, to `Groups`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignkit.data.across_rows import check_wholes
from alignkit.data.checks import Finding, check_row
from alignkit.data.conversations import BadRow
from alignkit.data.problems import Problem, errors_of, logger, refusal, report_notes, summary
from alignkit.data.row_layouts import Shaped, shaped
from alignkit.data.sources import Format, format_of, rows_of
from alignkit.errors import DataError, suggestion
from alignkit.groups import FEATURES, Groups, normal_row

RankBase = Literal["auto", 0, 1]


def read_groups(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    format: Format = "auto",
    split: str | None = None,
    drop_bad: bool = False,
    limit: int | None = None,
    dimension: str | None = None,
    rank_base: RankBase = "auto",
    columns: Mapping[str, str] | None = None,
) -> Groups:
    """Read prompts, demonstrations, comparisons, rankings or labelled responses; see `alignkit.data.row_layouts`.

    Files are read row by row. Every row is checked, and the bad ones are reported with file and line.

    Args:
        source: a `.jsonl` (`.gz`), `.json` or `.parquet` file, a folder of `datasets` or of `Groups.save`, a name on
            the hub, or rows in memory.
        format: what the source is, where its name does not say.
        split: of a `datasets` folder or hub name (default: the only one; `train` on the hub).
        drop_bad: leave bad rows out, and say so, instead of raising.
        limit: read at most so many rows.
        dimension: of all rows (helpfulness, safety …), instead of what the rows say.
        rank_base: the rank of the best response in the file; "auto": 0 if any rank is 0, else 1.
        columns: the name in the file of a column, where it is another: `{"prompt": "instruction"}`.

    Returns:
        Comparisons have the better response first and ranks 1, 2 (1, 1: a tie). A numeric margin is in `meta`, as is
        every column that is not known.

    Raises:
        DataError: what cannot be read; bad rows, counted by code, the first five shown; no rows.
    """
    form = format_of(source, format)
    if form == "datasets" and (saved := _saved_groups(Path(str(source)))) is not None:
        kept = saved if limit is None else saved.select(range(min(limit, len(saved))))
        return kept if dimension is None else kept.map_rows(lambda row: {"dimension": dimension})
    name = str(source) if isinstance(source, str | Path) else "rows"
    reading = _Reading(name, columns or {}, dimension)
    for place, located in enumerate(rows_of(source, form, split)):
        if limit is not None and place >= limit:
            break
        reading.add(located.where, located.row, located.finding)
    return reading.finish(rank_base, drop_bad)


def _saved_groups(folder: Path) -> Groups | None:
    """What `Groups.save` wrote, or None if the folder holds another data set."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(
            f"is no datasets folder ({error})", where=str(folder), remedy="give a file, or save_to_disk"
        ) from error
    own = isinstance(found, datasets.Dataset) and set(FEATURES) == set(found.column_names)
    return Groups(found) if own else None


@dataclass
class _Reading:
    """A file on its way to `Groups`."""

    name: str
    columns: Mapping[str, str]
    dimension: str | None
    shape: str = ""
    total: int = 0
    good: list[tuple[int, str, Shaped]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, where: str, row: dict[str, Any] | None, finding: Finding | None) -> None:
        self.total += 1
        try:
            if row is None:
                raise BadRow(*(finding or Finding("D21", "", "no row"))[:5])
            result = shaped(_renamed(row, self.columns))
            self.shape = self.shape or result.shape
            if result.shape != self.shape:
                what = f"looks like {result.shape} where the file began with {self.shape}"
                raise BadRow("D21", "", what, remedy="one kind of row to a file")
            self.good.append((self.total - 1, where, result))
        except BadRow as bad:
            self._problem(self.total - 1, where, bad.finding, "")

    def finish(self, rank_base: RankBase, drop_bad: bool) -> Groups:
        rows = self._checked_rows(self._base(rank_base))
        errors = errors_of(self.problems)
        if not self.total:
            raise DataError("AK-D28 there are no rows", where=self.name, remedy="check the file")
        if errors and not drop_bad:
            raise refusal(errors, self.total, self.name)
        if not rows:
            what = f"AK-D28 0 rows left: {summary(errors)} dropped {self.total} of {self.total}, first: {errors[0]}"
            raise DataError(what, where=self.name)
        if errors:
            dropped = self.total - len(rows)
            logger.warning("%s: dropped %d of %d rows (%s)", self.name, dropped, self.total, summary(errors))
        kinds = {kind for kind, _ in rows}
        normal = [row for _, row in rows]
        report_notes([*self.problems, *check_wholes(normal, kinds.pop() if len(kinds) == 1 else "")], self.name)
        return Groups.from_rows(normal)

    def _base(self, declared: RankBase) -> int:
        if declared != "auto":
            return declared
        return 0 if any(0 in (result.raw_ranks or ()) for _, _, result in self.good) else 1

    def _checked_rows(self, base: int) -> list[tuple[str, dict[str, Any]]]:
        """Kind and row of those that hold up."""
        rows = []
        for number, where, result in self.good:
            row = dict(result.row)
            if result.raw_ranks is not None:
                row["ranks"] = [rank - base + 1 for rank in result.raw_ranks]
            if self.dimension is not None:
                row["dimension"] = self.dimension
            try:
                normal = normal_row(row, where)
            except (DataError, TypeError, ValueError, KeyError) as error:
                what = error.what if isinstance(error, DataError) else str(error)
                self._problem(number, where, Finding("D21", "", what), "")
                continue
            findings = check_row(normal, result.kind)
            for finding in findings:
                self._problem(number, where, finding, normal["prompt_id"])
            if all(finding.note for finding in findings):
                rows.append((result.kind, normal))
        return rows

    def _problem(self, number: int, where: str, finding: Finding, prompt_id: str) -> None:
        code, name, what, effect, remedy, note = finding
        self.problems.append(Problem(code, number, prompt_id, name, what, effect, remedy, where, note))


def _renamed(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the names that we know."""
    out = dict(row)
    for known, name in columns.items():
        if name not in row:
            raise BadRow("D21", known, f"there is no column {name!r}", remedy=suggestion(name, sorted(row)))
        out.pop(name, None)
    return out | {known: row[name] for known, name in columns.items()}
