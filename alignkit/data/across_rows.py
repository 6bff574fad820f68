"""Checks that need all rows at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from alignkit.data.problems import Problem


def check_wholes(rows: Sequence[Mapping[str, Any]], kind: str) -> list[Problem]:
    """Notes on the rows together: duplicates, contradictions, columns in some rows only, what looks upside down."""
    found = [*_duplicates(rows), *_contradictions(rows), *_partial(rows, kind), *_inverted(rows)]
    return [*found, *_polarity(rows, kind), *_fields(rows), *_scored_demonstrations(rows, kind)]


MANY = 50
"""Comparisons from which on a share says something."""


def _polarity(rows: Sequence[Mapping[str, Any]], kind: str) -> list[Problem]:
    """Verdicts that are likely the wrong way round, or none at all."""
    found = []
    ranked = [row for row in rows if row["ranks"] and len(row["responses"]) > 1]
    if ranked and kind in ("comparisons", "rankings") and all(len(set(row["ranks"])) == 1 for row in ranked):
        effect = "a tie has no gradient, or pulls scores together"
        found.append(Problem("D19", None, "", "ranks", "every row is a tie", effect, "is the verdict read?", note=True))
    pairs = [row for row in ranked if row["ranks"] == [1, 2]]
    shorter = sum(len(row["responses"][0]) < len(row["responses"][1]) for row in pairs)
    if kind == "comparisons" and len(pairs) >= MANY and shorter >= 0.95 * len(pairs):
        what = f"the better response is the shorter one in {shorter} of {len(pairs)} rows"
        effect = "length alone tells them apart, or the verdict is the wrong way round"
        found.append(Problem("D16", None, "", "ranks", what, effect, "look at some rows", note=True))
    labels = [label for row in rows for label in row["labels"] or []]
    if kind == "unpaired" and len(labels) > 1 and len(set(labels)) == 1:
        what = f"all {len(labels)} labels are {labels[0]}"
        found.append(Problem("D16", None, "", "labels", what, "there is nothing to tell apart", note=True))
    return found


def _fields(rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """What messages have beside their text, and answers that are not learned."""
    said: Counter[str] = Counter()
    for row in rows:
        own = [turn.get("fields") for turn in row["prompt"] or []] + list(row.get("response_fields") or [])
        said.update({name for text in own if text for name in json.loads(text)})
    weights = said.pop("weight", 0)
    names = ", ".join(f"{name} in {count}" for name, count in sorted(said.items()))
    found = []
    if said:
        what, effect = f"of {len(rows)} rows have {names}", "the chat template shows them, or such a row is refused"
        found.append(Problem("D21", None, "", "messages", what, effect, note=True))
    if weights:
        what = f"{weights} of {len(rows)} rows have answers of weight 0"
        found.append(Problem("D21", None, "", "messages", what, "they are read and never learned", note=True))
    return found


def _scored_demonstrations(rows: Sequence[Mapping[str, Any]], kind: str) -> list[Problem]:
    names = sorted({reward["name"] for row in rows for reward in row["rewards"] or []})
    if kind != "demonstrations" or not names:
        return []
    what, effect = f"the answers have scores ({', '.join(names)})", "all are imitated alike, whatever their score"
    return [Problem("D16", None, "", "rewards", what, effect, "keep the good ones (groups.filter)", note=True)]


def shared_prompts(ids: Collection[str], others: Collection[str], where: str, code: str = "D20") -> list[Problem]:
    """A note where two data sets have prompts in common.

    Args:
        ids: the `prompt_id`s of what is learned from.
        others: those of what it is measured on, or of another stage's data.
        where: what the others are called.
        code: D20 of what is held out, D27 of what another stage learned from.
    """
    both = {*ids} & {*others}
    if not both:
        return []
    what = f"{len(both)} of {len({*others})} prompts of {where} are among those learned from"
    effect = "what is measured there is no held-out number" if code == "D20" else "worth knowing, no fault"
    return [Problem(code, None, "", "prompt", what, effect, note=True)]


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
