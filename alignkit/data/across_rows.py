"""Checks that need all rows at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.data.problems import Problem


def check_wholes(rows: Sequence[Mapping[str, Any]], kind: str) -> list[Problem]:
    """Notes on the rows together: duplicates, contradictions, columns known in some rows only, inverted scores."""
    return [*_duplicates(rows), *_contradictions(rows), *_partial(rows, kind), *_inverted(rows)]


def _duplicates(rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
    first: dict[tuple[Any, ...], int] = {}
    again = []
    for index, row in enumerate(rows):
        key = (row["prompt_id"], *row["responses"], *(row["ranks"] or ()), row["dimension"])
        if first.setdefault(key, index) != index:
            again.append((first[key], index))
    if not again:
        return []
    what = f"{len(again)} rows occur before (rows {again[0][0]} and {again[0][1]} first)"
    return [Problem("D20", None, "", "", what, "they count twice", "leave them out unless you mean it", note=True)]


def _contradictions(rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Pairs that were judged both ways."""
    seen: dict[tuple[Any, ...], int] = {}
    both = []
    for index, row in enumerate(rows):
        ranks, texts = row["ranks"], row["responses"]
        if ranks is None or len(texts) != 2 or len(ranks) != 2 or None in ranks or ranks[0] == ranks[1]:
            continue
        better, worse = texts if ranks[0] < ranks[1] else reversed(texts)
        seen.setdefault((row["prompt_id"], row["dimension"], better, worse), index)
        other = seen.get((row["prompt_id"], row["dimension"], worse, better))
        if other is not None and better != worse:
            both.append((other, index))
    if not both:
        return []
    what = f"{len(both)} pairs are judged both ways (rows {both[0][0]} and {both[0][1]} first)"
    return [Problem("D20", None, "", "ranks", what, "their gradients cancel", "keep one, or neither", note=True)]


def _partial(rows: Sequence[Mapping[str, Any]], kind: str) -> list[Problem]:
    """A rating or a margin in some rows and not in others."""
    if kind != "comparisons":
        return []
    known = {
        "rating": sum(row["rating"] is not None for row in rows),
        "margin": sum(meta_of(row).get("margin") is not None for row in rows),
    }
    effect, remedy = "those are learned with margin 0", "give it everywhere or nowhere"
    return [
        Problem("D18", None, "", name, f"missing in {len(rows) - count} of {len(rows)} rows", effect, remedy, note=True)
        for name, count in known.items()
        if 0 < count < len(rows)
    ]


def _inverted(rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Rank 1 has the lowest score more often than not: one of the two is upside down."""
    votes: Counter[bool] = Counter()
    for row in rows:
        scores, ranks = meta_of(row).get("scores"), row["ranks"]
        if (
            not isinstance(scores, list)
            or not ranks
            or None in ranks
            or len(scores) != len(ranks)
            or len(set(ranks)) < 2
        ):
            continue
        if all(isinstance(score, int | float) for score in scores):
            best, worst = (scores[ranks.index(pick(ranks))] for pick in (min, max))
            if best != worst:
                votes[best < worst] += 1
    if votes[True] <= votes[False]:
        return []
    share = votes[True] / votes.total()
    what = f"rank 1 has a lower score than the last rank in {share:.0%} of {votes.total()} rows"
    return [
        Problem("D19", None, "", "ranks", what, "one of them is upside down", "is a higher score better?", note=True)
    ]


def meta_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object in `meta`, {} where there is none."""
    try:
        found = json.loads(row["meta"]) if row["meta"] else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
