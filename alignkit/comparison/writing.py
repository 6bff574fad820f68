"""What a comparison leaves on disk beside its cells: the table, JSON, CSV, and every prompt's scores."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from alignkit.budget import NAMES
from alignkit.comparison.results import TABLE, Comparison
from alignkit.comparison.table import leaderboard
from alignkit.evaluation.statistics import Interval
from alignkit.files import write_json, write_text

JSON = "comparison.json"
CSV = "comparison.csv"
SCORES = "scores.jsonl"


def write(found: Comparison) -> None:
    """Write all of it, each file whole or not at all."""
    write_text(found.folder / TABLE, leaderboard(found) + "\n")
    write_json(found.folder / JSON, found.to_json())
    write_text(found.folder / CSV, _csv(found))
    write_text(found.folder / SCORES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scores(found)))


def scores(found: Comparison) -> Iterator[dict[str, Any]]:
    """One row per method, seed, version, prompt and answer: for anybody's own test."""
    for cell in found.cells:
        for version in cell.path:
            for row in cell.answers(version):
                named = {"method": cell.method, "seed": cell.seed, "version": version["version"]}
                kept = ("prompt_id", "sample", "scores", "kl", "response_length", "finished")
                yield {**named, **{name: row.get(name) for name in kept}}


def _csv(found: Comparison) -> str:
    """A row per method."""
    out = io.StringIO()
    intervals = ("mean", "iqm", "gap", "better_than_start")
    besides = list(dict.fromkeys(name for each in found.standings for name in each.besides))
    writer = csv.writer(out, lineterminator="\n")
    titles = ("mean", "iqm", "optimality_gap", "better_than_start")
    ends = [f"{name}{end}" for name in titles for end in ("", "_low", "_high")]
    ours = ["method", "rank", "rank_best", "rank_worst", "seeds", "failed", *ends]
    further = map(_cell, _named_apart(besides, {*ours, *NAMES, "trials"}))
    writer.writerow([*ours, *further, *NAMES, "trials"])
    for each in found.standings:
        values = [value for name in intervals for value in _ends(getattr(each, name))]
        more = [each.besides.get(name, "") for name in besides]
        spent = [each.spent.get(name, "") for name in NAMES]
        place = each.rank or ("", "", "")
        writer.writerow(
            [_cell(each.method), *place, len(each.seeds), len(each.failed), *values, *more, *spent, each.trials]
        )
    return out.getvalue()


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula: labels may be of a comparison that somebody else made."""
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _named_apart(names: list[str], taken: set[str]) -> list[str]:
    """What was measured besides, by names that no other column has: a suite may call a score "rank"."""
    found: list[str] = []
    for name in names:
        column = name
        while column in taken or column in found or (column != name and column in names):
            column = f"score.{column}"
        found.append(column)
    return found


def _ends(interval: Interval | None) -> tuple[Any, Any, Any]:
    return (interval.mean, interval.low, interval.high) if interval else ("", "", "")
