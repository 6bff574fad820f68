"""`alignkit data`: what a source holds, as it would be learned from, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.data.across_rows import shared_prompts
from alignkit.data.checks import Kind, check_groups
from alignkit.data.problems import SHOWN, Problem, errors_of
from alignkit.data.readers import LoadedData, RankBase, read
from alignkit.data.shown import Overview, counted, overview
from alignkit.errors import DataError

if TYPE_CHECKING:
    from alignkit.data.chat import ChatFormat


@dataclass(frozen=True)
class LookedAt:
    """What a source holds.

    Args:
        name: of the source.
        total: rows that it has.
        formats: of its rows.
        aside: column -> in how many rows it was put aside into `meta`.
        overview: of what holds up.
        dropped: rows that do not.
        left_out: the file that they were written to, or None.
    """

    name: str
    total: int
    formats: Sequence[str]
    aside: Mapping[str, int]
    overview: Overview
    dropped: int
    left_out: Path | None = None

    @property
    def errors(self) -> list[Problem]:
        """Reasons to refuse rows, unless they were left out."""
        return [] if self.left_out else errors_of(self.overview.problems)

    def text(self) -> str:
        """For a terminal."""
        refused = f", {self.dropped} refused" if self.dropped else ""
        lines = [
            f"file       {self.name} ({self.total} rows{refused})",
            f"format     {', '.join(self.formats) or 'none'}",
        ]
        if self.aside:
            lines.append(f"put aside  {', '.join(sorted(self.aside))} (kept in meta)")
        lines += self.overview.lines()
        problems = self.overview.problems
        lines.append(f"problems   {'none' if not problems else ''}".rstrip())
        for code, count, first in counted(problems):
            word = "note" if first.note else "refused"
            lines.append(f"  AK-{code} x {count} ({word})")
            same = [problem for problem in problems if (problem.code, problem.note) == (code, first.note)]
            lines += [f"    {_told(problem)}" for problem in same[:SHOWN]]
            if len(same) > SHOWN:
                lines.append(f"    … and {len(same) - SHOWN} more")
        if self.left_out:
            lines.append(f"left out   {self.dropped} rows are in {self.left_out}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        own = {name: getattr(self, name) for name in ("name", "total", "dropped")}
        left = None if self.left_out is None else str(self.left_out)
        return {
            **own,
            "formats": list(self.formats),
            "aside": dict(self.aside),
            "left_out": left,
            **self.overview.to_json(),
        }


def _told(problem: Problem) -> str:
    """Where, what, effect, remedy; the code stands above."""
    return str(problem).removeprefix(f"AK-{problem.code}").removeprefix(" — ").strip()


def look_at(
    source: Any,
    *,
    chat: ChatFormat | None = None,
    format: str = "auto",
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    dimension: str | None = None,
    rank_base: RankBase = "auto",
    limit: int | None = None,
    drop_bad: Path | None = None,
    against: Any = None,
) -> LookedAt:
    """Read a source as `read_groups` does, and say what is there instead of refusing it.

    Args:
        source: see `read_groups`, as for the other arguments of its names.
        chat: the tokenizer and the chat template that read the rows; without, texts are shown.
        drop_bad: where the rows that are left out are written.
        against: another source, whose prompts are compared.

    Raises:
        DataError: the source as a whole cannot be read, or holds no rows.
        ConfigError: the format is none.
    """
    options = {"format": format, "split": split, "subset": subset, "revision": revision, "limit": limit}
    loaded = read(source, dimension=dimension, rank_base=rank_base, columns=columns, **options)  # type: ignore[arg-type]
    if not loaded.total:
        raise DataError("AK-D28 there are no rows", where=loaded.name, remedy="check the file")
    groups = loaded.groups()
    problems = list(loaded.problems)
    if chat is not None:
        problems += _of_tokens(loaded, groups, chat)
    if against is not None:
        others = read(against).groups().column("prompt_id")
        problems += shared_prompts(groups.column("prompt_id"), others, str(against), "D27")
    # Overviews number the rows that hold up; the reader's problems number those of the file.
    own = overview(groups, chat, kinds=[kind for kind, _, _ in loaded.rows])
    dropped = len(loaded.bad)
    if drop_bad is not None:
        loaded.write_bad(drop_bad)
    return LookedAt(
        loaded.name, loaded.total, loaded.names, loaded.aside, replace(own, problems=tuple(problems)), dropped, drop_bad
    )


def _of_tokens(loaded: LoadedData, groups: Any, chat: Any) -> list[Problem]:
    """What only a tokenizer and a template can tell: what the reader has said already is left out."""
    kinds = {kind for kind, _, _ in loaded.rows}
    kind: Kind = kinds.pop() if len(kinds) == 1 else "prompts"  # type: ignore[assignment]
    places = [where for _, _, where in loaded.rows]
    said = {(problem.code, problem.what) for problem in loaded.problems}
    found = []
    for problem in check_groups(groups, kind, chat):
        if (problem.code, problem.what) in said:
            continue
        where = "" if problem.row is None or not places else places[problem.row]
        found.append(replace(problem, where=where))
        if not problem.note and problem.row is not None and places:
            loaded.bad_by_place(where, problem)
    return found
