"""The table of versions for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit.metrics.specs import ANSWERS, MetricSpec
from alignkit.report.collect import RunView, Version, collect, is_number
from alignkit.report.render import verdict
from alignkit.report.text import brief, number, percent, signed, visible

WIDTH = 100


def plain_table(run_folder: Path) -> str:
    """The table V0 … Vn, the difference of the last to the first version, at most `WIDTH` characters wide."""
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
    """Each part on a line of its own, so that nothing is cut."""
    found = verdict(view)
    if found is None:
        return []
    gain = found["gain"]
    ends = f"[{_ascii(signed(gain['low']))}, {_ascii(signed(gain['high']))}]"
    last, first, score = (brief(visible(found[name]), 20) for name in ("last", "first", "score"))
    return [
        f"{last} - {first} on {score}: {_ascii(signed(gain['mean']))} {ends}",
        f"(95%, paired bootstrap over {gain.get('n', '?')} prompts). {found['meaning']}",
    ]
