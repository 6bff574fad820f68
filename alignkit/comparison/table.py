"""The leaderboard as text."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.comparison.naming import called, in_short
from alignkit.comparison.results import Comparison, Standing
from alignkit.evaluation.statistics import Interval
from alignkit.meter import short
from alignkit.report.text import brief, number, percent, signed, visible


def leaderboard(found: Comparison) -> str:
    """The methods, best first, the differences that can be told from none, and what failed."""
    labels = [each.method for each in found.standings]
    found, names = in_short(found), called(labels)
    asked = list(found.conditions.get("budget") or {}) or ["generated_tokens", "optimizer_steps"]
    gap = not found.whole and any(each.gap for each in found.standings)  # of a whole problem it is 1 less the mean
    besides = ["kl", *found.only_of_the_whole]
    head = ["rank", "method", "seeds", brief(found.score, 20), "iqm", *(["gap to 1"] if gap else [])]
    head += ["P(> start)", *(name.replace("_", " ") for name in (*besides, *asked))]
    shown = _distinct([visible(each.method) for each in found.standings])
    rows = [_row(each, name, besides, asked, gap) for each, name in zip(found.standings, shown, strict=True)]
    spelled = [f"{visible(name)} is {visible(label)}" for label, name in names.items() if name != label]
    return "\n".join([*_aligned([head, *rows]), "", *spelled, *([""] if spelled else []), *_words(found)])


def _distinct(labels: Sequence[str], width: int = 44) -> list[str]:
    """The labels, cut where they are long, and as far as they stay different."""
    longest = max(map(len, labels), default=0)
    found = [brief(label, width) for label in labels]
    return found if len(set(found)) == len(labels) or width >= longest else _distinct(labels, width + 8)


def _row(each: Standing, name: str, besides: Sequence[str], asked: Sequence[str], gap: bool) -> list[str]:
    place = "–"
    if each.rank:
        rank, best, worst = each.rank
        place = f"{rank}" if best == worst else f"{rank} ({best}–{worst})"
    seeds = str(len(each.seeds)) + (f" of {len(each.seeds) + len(each.failed)}" if each.failed else "")
    cells = [place, name, seeds, _spelled(each.mean), _spelled(each.iqm)]
    cells += [_spelled(each.gap)] if gap else []
    chance = percent(each.better_than_start.mean) if each.better_than_start else "–"
    spent = [short(each.spent[name]) if each.spent else "–" for name in asked]
    return [*cells, chance, *(number(each.besides.get(name)) for name in besides), *spent]


def _spelled(interval: Interval | None) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]" if interval else "failed"


def _words(found: Comparison) -> list[str]:
    """What the numbers are, and what can be told apart."""
    seeds = max((len(each.seeds) for each in found.standings), default=0)
    drawn = "other seeds" if found.whole else "other seeds and other prompts"
    lines = [
        f"{found.score}: mean and interquartile mean with 95% intervals over {drawn}; "
        f"{seeds} seed{'s' * (seeds != 1)}. A rank's range holds for all methods at once.",
    ]
    if found.left_out:
        lines.append(f"Prompts without {found.score} in some cell, left out of all: {found.left_out}.")
    if seeds == 1:
        rest = (
            "with all prompts there, the intervals have no width"
            if found.whole
            else "the intervals are those of other prompts alone"
        )
        lines.append(f"One seed says nothing of other seeds: {rest}.")
    sure = [each for each in found.differences if each.sure]
    for each in sure:
        a, b, gain = each.a, each.b, each.difference
        if gain.mean < 0:
            a, b, gain = b, a, Interval(-gain.mean, -gain.high, -gain.low, gain.n)
        ends = f"[{signed(gain.low)}, {signed(gain.high)}]"
        lines.append(f"{visible(a)} beats {visible(b)}: {signed(gain.mean)} {ends}, p = {number(each.p)} (Holm)")
    if not sure and len(found.differences):
        lines.append("No two methods can be told apart.")
    for standing in found.standings:
        lines += _failures(standing)
        lines += [f"{visible(standing.method)}: {note}" for note in standing.notes]
    return lines


def _failures(standing: Standing) -> list[str]:
    """Each reason once, with the seeds that it stopped."""
    seeds: dict[str, list[int]] = {}
    for seed, why in standing.failed.items():
        seeds.setdefault(why, []).append(seed)
    name = visible(standing.method)
    return [
        f"{name} failed under seed{'s' * (len(which) > 1)} {', '.join(map(str, which))}: {brief(visible(why), 300)}"
        for why, which in seeds.items()
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if k == 1 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
