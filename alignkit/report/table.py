"""The table of versions for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit.meter import short
from alignkit.metrics.specs import ANSWERS, MetricSpec
from alignkit.report.collect import RunView, Version, collect, is_number
from alignkit.report.render import verdict
from alignkit.report.text import brief, duration, number, percent, signed, visible

WIDTH = 100


def plain_table(run_folder: Path) -> str:
    """The table V0 … Vn, what the last version gained and at what price, at most `WIDTH` characters wide."""
    view = collect(run_folder)
    if not view.versions:
        return "No version was evaluated yet."
    asked = list(view.besides)[len(ANSWERS) :]
    lines, left_out = _widest(view, len(asked))
    more = [f"({left_out} more columns in the report)"] if left_out else []
    return "\n".join(line[:WIDTH].rstrip() for line in [*lines, *more, *_verdict_lines(view)])


def _widest(view: RunView, asked: int) -> tuple[list[str], int]:
    """The table with as many columns as fit, and how many do not: metrics that were asked for go before scores."""
    table: list[str] = []
    for left_out in range(len(view.scores) + asked + 1):
        scores = view.scores[: len(view.scores) - max(left_out - asked, 0)]
        besides = list(view.besides.items())[: len(ANSWERS) + max(asked - left_out, 0)]
        for with_intervals in (len(scores), 1):
            table = _aligned(_rows(view, scores, besides, with_intervals))
            if max(map(len, table)) <= WIDTH:
                return table, left_out
    return table, len(view.scores) + asked


def _rows(
    view: RunView, scores: list[str], besides: list[tuple[str, MetricSpec]], with_intervals: int
) -> list[list[str]]:
    heads = (spec.head or name for name, spec in besides)
    head = ["version", *(brief(visible(name), 20) for name in (*scores, *heads))]
    return [head, *(_row(version, scores, besides, with_intervals) for version in view.versions)]


def _row(version: Version, scores: list[str], besides: list[tuple[str, MetricSpec]], with_intervals: int) -> list[str]:
    cells = [_interval(version.metrics.get(name, {}), place < with_intervals) for place, name in enumerate(scores)]
    return [brief(visible(version.label), 24), *cells, *(_mean(version, name, spec) for name, spec in besides)]


def _interval(metric: dict[str, Any], with_ends: bool) -> str:
    ends = f" [{_plain(metric.get('low'))}, {_plain(metric.get('high'))}]" if with_ends and metric else ""
    return f"{_plain(metric.get('mean'))}{ends}"


def _mean(version: Version, name: str, spec: MetricSpec) -> str:
    mean = version.metrics.get(name, {}).get("mean")
    return _ascii(percent(mean)) if spec.unit == "share" else _plain(mean)


def _plain(value: Any) -> str:
    """A number in ASCII, for terminals that know no more."""
    return f"{value:.1f}" if is_number(value) and 10 <= abs(value) < 1000 else _ascii(number(value))


def _ascii(text: str) -> str:
    return text.replace("−", "-").replace("–", "-")


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _verdict_lines(view: RunView) -> list[str]:
    """What differs between the last version and the first, and the one before; then that in words, with its price."""
    found = verdict(view)
    if found is None:
        return []
    *_, before, last = view.versions
    sides = [last.paired] if len(view.versions) < 3 else [last.paired, last.paired_to_previous]
    labels = [brief(visible(version.label), 20) for version in (view.versions[0], before, last)]
    heads = [f"{labels[2]} - {label}" for label in labels[: len(sides)]]
    names = [name for name in view.scores if name in last.paired]
    rows = [[brief(visible(name), 24), *(_signed_interval(side.get(name)) for side in sides)] for name in names]
    of = f"(95%, paired bootstrap over {found['gain'].get('n', '?')} prompts)"
    return ["", *_aligned([["difference", *heads], *rows]), of, *_in_words(view, names), _price(view)]


def _in_words(view: RunView, names: list[str]) -> list[str]:
    """Which scores of the last version stand above the first's, which below, and of which neither can be said."""
    last, first = view.versions[-1], view.versions[0]
    said: dict[str, list[str]] = {"rose": [], "fell": [], "cannot be told apart": []}
    for name in names:
        gain = last.paired[name]
        low, high = (gain.get(end) for end in ("low", "high"))
        if not (is_number(low) and is_number(high)):
            continue
        way = "rose" if low > 0 else "fell" if high < 0 else "cannot be told apart"
        said[way].append(brief(visible(name), 24))
    versions = f"from {brief(visible(first.label), 20)} to {brief(visible(last.label), 20)}"
    return [f"{', '.join(found)}: {way} {versions}." for way, found in said.items() if found]


def _price(view: RunView) -> str:
    """The last version's KL, and what all stages took."""
    kl = view.versions[-1].metrics.get("kl", {}).get("mean")
    parts = [f"KL {_plain(kl)} nats a response"] if is_number(kl) else []
    tokens = sum(stage.spent("generated_tokens") for stage in view.stages if stage.meter)
    parts += [f"{short(tokens)} tokens sampled"] if tokens else []
    return f"Cost: {', '.join([*parts, duration(sum(stage.seconds or 0 for stage in view.stages))])}."


def _signed_interval(gain: Any) -> str:
    if not isinstance(gain, dict):
        return "-"
    return f"{_ascii(signed(gain.get('mean')))} [{_ascii(signed(gain.get('low')))}, {_ascii(signed(gain.get('high')))}]"
