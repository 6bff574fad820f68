"""Preference data from files, in the forms that people have it in, to `Groups`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from alignkit.data.across_rows import check_wholes
from alignkit.data.checks import Finding, check_row
from alignkit.data.known import format_called, format_of
from alignkit.data.messages import BadRow
from alignkit.data.problems import Problem, errors_of, logger, refusal, report_notes, summary
from alignkit.data.row_format import Reading, RowFormat, jsonable
from alignkit.data.sources import SUFFIXES, Located, container_of, rows_of
from alignkit.errors import DataError, suggestion
from alignkit.files import write_text
from alignkit.groups import FEATURES, Groups, normal_row

RankBase = Literal["auto", 0, 1]

CONTAINERS = ("auto", "hub", "datasets", *dict.fromkeys(SUFFIXES.values()))


def read_groups(
    source: str | Path | Iterable[Any] | Mapping[str, Any],
    *,
    format: str = "auto",
    split: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    drop_bad: bool | str | Path = False,
    limit: int | None = None,
    dimension: str | None = None,
    rank_base: RankBase = "auto",
    columns: Mapping[str, str | Sequence[str]] | None = None,
) -> Groups:
    """Read prompts, demonstrations, comparisons, rankings or labelled responses; `alignkit formats` lists what they may
    look like, `alignkit data FILE` shows what becomes of a file.

    Every row is checked, and the bad ones are reported with file and line.

    Args:
        source: a file (JSON, CSV, TSV, Parquet, Arrow; packed or not), a folder or a pattern of files, a list of
            files, a folder of `datasets` or of `Groups.save`, a name on the hub; or in memory rows, a data set with or
            without splits, a table of pandas, polars or Arrow, a dict of columns.
        format: what the source is ("csv", "hub", …) or which format its rows have ("messages", …), where neither its
            name nor its columns say so.
        split: of a data set (default: the only one; `train` on the hub).
        revision: of a data set on the hub: branch, tag or commit.
        subset: of a data set on the hub that has several.
        drop_bad: leave bad rows out, and say so, instead of raising; a path: and write them there, with the reasons.
        limit: read at most so many rows.
        dimension: of all rows (helpfulness, safety …), instead of what the rows say; of a format that judges its
            answers by several, the one to read.
        rank_base: the rank of the best response in the file; "auto": 0 if any rank is 0, else 1.
        columns: the name in the file of a column, where it is another: `{"prompt": "instruction"}`; under "meta" the
            names of those that are to be put aside.

    Returns:
        Comparisons have the better response first and ranks 1, 2 (1, 1: a tie). A numeric margin is in `meta`, as is
        every column that says nothing of what is to be learned.

    Raises:
        DataError: what cannot be read; bad rows, counted by code, the first five shown; no rows.
        ConfigError: a format that nobody knows.
    """
    reading = read(
        source, format=format, split=split, revision=revision, subset=subset, limit=limit, dimension=dimension,
        rank_base=rank_base, columns=columns,
    )  # fmt: skip
    return reading.finish(drop_bad)


def read(
    source: Any,
    *,
    format: str = "auto",
    split: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
    dimension: str | None = None,
    rank_base: RankBase = "auto",
    columns: Mapping[str, str | Sequence[str]] | None = None,
) -> LoadedData:
    """As `read_groups`, with everything that is wrong and nothing refused yet.

    Raises:
        DataError: the source as a whole cannot be read.
        ConfigError: a format that nobody knows.
    """
    named = None if format in CONTAINERS else format_called(format)
    form = container_of(source, "auto" if named else format)
    name = str(source) if isinstance(source, str | Path) else "rows"
    if form == "datasets" and (saved := _saved_groups(Path(str(source)))) is not None:
        kept = saved if limit is None else saved.select(range(min(limit, len(saved))))
        kept = kept if dimension is None else kept.map_rows(lambda row: {"dimension": dimension})
        return LoadedData(name, {}, dimension, total=len(kept), saved=kept, names=["Groups.save"])
    found = LoadedData(name, dict(columns or {}), dimension, named)
    found.add_all(islice(rows_of(source, form, split, revision, subset), limit))
    found.check(rank_base)
    return found


def _saved_groups(folder: Path) -> Groups | None:
    """What `Groups.save` wrote, or None if the folder holds another data set."""
    import datasets

    from alignkit.columns import NEWER

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is no datasets folder ({error})", where=str(folder), remedy="give a file, or save_to_disk"
        ) from error
    own = isinstance(found, datasets.Dataset) and set(FEATURES) == {*found.column_names, *NEWER}
    return Groups(found) if own else None


ILL_TYPED = (TypeError, ValueError, AttributeError, OverflowError)
"""What a table raises of a value that a column of it cannot hold."""

TYPED = ("iteration", "response_ids", "finished", "logprobs", "sampled_logprobs", "sampled_by", "rewards")
"""Columns of `Groups` that no text stands in."""


def _of_another_type(row: dict[str, Any]) -> list[Finding]:
    """The columns of a row whose values `Groups` cannot hold."""
    kept = {name: row[name] for name in TYPED if row[name] is not None}
    own = {"prompt": row["prompt"], "responses": row["responses"]}
    if not kept or _holds(own | kept):
        return []
    return [_ill_typed(name) for name in kept if not _holds({**own, name: kept[name]})]


def _holds(row: dict[str, Any]) -> bool:
    try:
        Groups.from_rows([row])
    except (DataError, *ILL_TYPED):
        return False
    return True


def _finding_of(error: Exception) -> Finding:
    """What was wrong with a row, from what was raised of it."""
    if not isinstance(error, DataError):
        return Finding("D21", "", f"{type(error).__name__}: {error}", remedy="drop the row")
    code, named, what = error.what.partition(" ")
    if not named or not code.startswith("AK-"):
        code, what = "AK-D21", error.what
    return Finding(code.removeprefix("AK-"), "", what, error.effect or "", error.remedy or "")


def _ill_typed(name: str) -> Finding:
    return Finding(
        "D21", name, "holds values of another type than this column of Groups", remedy="leave it out, or mend it"
    )


@dataclass
class LoadedData:
    """A source on its way to `Groups`, and what is wrong with it.

    Attributes:
        names: the formats of its rows, as a rule one.
        total: rows there were.
        problems: errors and notes.
        rows: (kind, row of `Groups`, where it stood) of those that hold up.
        aside: how many rows have each column that was put aside into `meta`.
        bad: number -> (where it stood, the row) of those that are left out.
        late: what a model's tokenizer and template found wrong beyond `problems`.
    """

    name: str
    columns: dict[str, str | Sequence[str]]
    dimension: str | None
    named: RowFormat | None = None
    total: int = 0
    saved: Groups | None = None
    names: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    rows: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)
    bad: dict[int, tuple[str, Any]] = field(default_factory=dict)
    late: list[Problem] = field(default_factory=list)
    _format: RowFormat | None = None
    _good: list[tuple[int, str, Reading]] = field(default_factory=list)
    _raw: dict[int, tuple[str, Any]] = field(default_factory=dict)

    def add_all(self, located: Iterator[Located]) -> None:
        """Read rows; those of a format that puts single messages together are read when all are there."""
        held: list[tuple[str, dict[str, Any]]] = []
        for where, row, finding in located:
            self.total += 1
            if row is None:
                self._refuse(self.total - 1, where, finding or Finding("D21", "", "no row"), None)
                continue
            try:
                renamed = self._renamed(row)
                one = self._format or self.named or format_of(renamed)
            except BadRow as bad:
                self._refuse(self.total - 1, where, bad.finding, row)
                continue
            self._format = one
            if one.gather is not None:
                held.append((where, renamed))
            else:
                self._read(self.total - 1, where, row, renamed, one)
        if held and self._format is not None and self._format.gather is not None:
            self.names = [self._format.name]
            for number, (where, row) in enumerate(self._format.gather(held)):
                self._read(number, where, row, row, None)

    def _read(self, number: int, where: str, row: Any, renamed: dict[str, Any], one: RowFormat | None) -> None:
        try:
            own = self._own(renamed, one)
            found = own(renamed)
        except BadRow as bad:
            self._refuse(number, where, bad.finding, row)
            return
        except RecursionError:
            self._refuse(number, where, Finding("D23", "", "is nested too deeply", remedy="drop the row"), row)
            return
        self.names = self.names or [own.name]
        self._raw[number] = (where, row)
        for reading in self._wanted(found):
            if reading.note:
                self._problem(number, where, Finding("D03", "", reading.note, note=True), "")
            self._good.append((number, where, reading))

    def _own(self, row: dict[str, Any], one: RowFormat | None) -> RowFormat:
        """The format of a row: that of the file, unless the row has all that another needs, and says more by it.

        Raises:
            BadRow: so.
        """
        if one is None or one is self.named or one.fits(row):
            return one or format_of(row)
        other, fits = format_of(row), one.fits(row, strict=False)
        if other is not one and (not fits or other.fits(row) > fits):
            what = f"looks like {other.name} where the file began with {one.name}"
            raise BadRow("D21", "", what, remedy="one kind of row to a file")
        return one

    def _wanted(self, found: list[Reading]) -> list[Reading]:
        """Of a row that is judged by several dimensions, the one that is asked for."""
        own = {one.row.get("dimension") for one in found}
        return [one for one in found if len(own) < 2 or self.dimension in (None, one.row.get("dimension"))]

    def _renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the names that we know."""
        out = dict(row)
        taken = {}
        for known, name in self.columns.items():
            names = [name] if isinstance(name, str) else list(name)
            missing = [one for one in names if one not in row]
            if missing and known != "meta":
                near = suggestion(missing[0], sorted(map(str, row)))
                raise BadRow("D21", known, f"there is no column {missing[0]!r}", remedy=near)
            if known == "meta":
                own = out.pop("meta", None)
                aside = {one: out.pop(one) for one in names if one in row and row[one] is not None}
                taken["meta"] = {**(own if isinstance(own, Mapping) else {} if own is None else {"meta": own}), **aside}
            else:
                out.pop(names[0], None)
                taken[known] = row[names[0]]
        return out | taken

    def check(self, rank_base: RankBase) -> None:
        """What is wrong with the rows, one by one and all together."""
        zero = rank_base == 0 or (rank_base == "auto" and any(0 in (r.raw_ranks or ()) for _, _, r in self._good))
        for number, where, reading in self._good:
            row = dict(reading.row)
            if reading.raw_ranks is not None:
                row["ranks"] = [rank + zero for rank in reading.raw_ranks]
            if self.dimension is not None:
                row["dimension"] = self.dimension
            self.aside.update((row.get("meta") or {}).keys())
            self._check(number, where, reading.kind, row)
        self._good.clear()
        kinds = {kind for kind, _, _ in self.rows}
        kind = kinds.pop() if len(kinds) == 1 else ""
        self.problems += check_wholes([row for _, row, _ in self.rows], kind)

    def _check(self, number: int, where: str, kind: str, row: dict[str, Any]) -> None:
        try:
            normal = normal_row(row, where)
            findings = _of_another_type(normal) or check_row(normal, kind)
        except (DataError, *ILL_TYPED, KeyError, RecursionError) as error:
            self._refuse(number, where, _finding_of(error), self._raw[number][1])
            return
        for finding in findings:
            if finding.note:
                self._problem(number, where, finding, normal["prompt_id"])
            else:
                self._refuse(number, where, finding, self._raw[number][1], normal["prompt_id"])
        if all(finding.note for finding in findings):
            self.rows.append((kind, normal, where))

    def finish(self, drop_bad: bool | str | Path) -> Groups:
        """The groups, with the notes told.

        Args:
            drop_bad: leave bad rows out, or write them to this file.

        Raises:
            DataError: there are bad rows, and they are not to be left out; nothing is left.
        """
        if self.saved is not None:
            return self.saved
        errors = errors_of(self.problems)
        if not self.total:
            raise DataError("AK-D28 there are no rows", where=self.name, remedy="check the file")
        if errors and drop_bad is False:
            raise refusal(errors, self.total, self.name)
        if errors and not isinstance(drop_bad, bool):
            self.write_bad(Path(drop_bad))
        if not self.rows:
            why = f": {summary(errors)} dropped {self.total} of {self.total}, first: {errors[0]}" if errors else ""
            raise DataError(f"AK-D28 0 rows left{why}", where=self.name)
        if errors:
            logger.warning("%s: dropped %d of %d rows (%s)", self.name, len(self.bad), self.total, summary(errors))
        report_notes(self.problems, self.name)
        return self.groups()

    def groups(self) -> Groups:
        """What holds up."""
        if self.saved is not None:
            return self.saved
        return Groups.from_rows(row for _, row, _ in self.rows)

    def bad_by_place(self, where: str, problem: Problem) -> None:
        """A row that a model cannot read is left out too."""
        number = next((number for number, (place, _) in self._raw.items() if place == where), None)
        if number is not None:
            self.bad.setdefault(number, self._raw[number])
            self.late.append(problem)

    def write_bad(self, path: Path) -> None:
        """Write what is left out as JSON lines: where it stood, why, and the row."""
        why: dict[str, list[Problem]] = {}
        for problem in errors_of([*self.problems, *self.late]):
            why.setdefault(problem.where, []).append(problem)
        lines = []
        for where, row in self.bad.values():
            problems = [{"code": f"AK-{p.code}", "problem": str(p)} for p in why.get(where, [])]
            lines.append(json.dumps({"where": where, "problems": problems, "row": jsonable(row)}, ensure_ascii=True))
        write_text(path, "".join(line + "\n" for line in lines))
        logger.warning("%s: what was left out is in %s", self.name, path)

    def _refuse(self, number: int, where: str, finding: Finding, row: Any, prompt_id: str = "") -> None:
        self.bad.setdefault(number, (where, row))
        self._problem(number, where, finding, prompt_id)

    def _problem(self, number: int, where: str, finding: Finding, prompt_id: str) -> None:
        code, name, what, effect, remedy, note = finding
        self.problems.append(Problem(code, number, prompt_id, name, what, effect, remedy, where, note))
