"""Charts as inline SVG, drawn by hand: small, the same bytes for the same numbers, coloured by the page's style sheet.

Elements are built as a tree, so that text from a run can only ever be text. Colours are classes (`c0` … `c4`) that
follow the light or dark theme; every mark that carries a number has a `<title>` with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from alignkit.report.collect import is_number
from alignkit.report.text import brief, clipped, duration, number, visible

POINTS = 240
"""Points of one curve: longer ones are averaged in equal pieces, which keeps the page small."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """A plot area and its scales. Lengths are SVG units."""

    x0: float
    x1: float
    y0: float
    y1: float
    width: int = 320
    height: int = 170
    left: int = 46
    bottom: int = 24
    top: int = 10
    right: int = 10

    def x(self, value: float) -> float:
        share = (value - self.x0) / (self.x1 - self.x0 or 1.0)
        return round(self.left + share * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        share = (value - self.y0) / (self.y1 - self.y0 or 1.0)
        return round(self.height - self.bottom - share * (self.height - self.bottom - self.top), 1)


def curve(points: Sequence[Point], marks: Iterable[float] = ()) -> Markup:
    """A line over steps, with a faint upright line at each of `marks` (the ends of rounds)."""
    shown = thinned([(x, y) for x, y in points if is_number(y)])
    frame = Frame(shown[0][0], shown[-1][0], *padded([y for _, y in shown]))
    svg = _canvas(frame)
    for mark in marks:
        if frame.x0 < mark < frame.x1:
            _line(svg, frame.x(mark), frame.top, frame.x(mark), frame.height - frame.bottom, "mark")
    _steps_axis(svg, frame)
    _path(svg, [(frame.x(x), frame.y(y)) for x, y in shown], "line c0")
    _dot(svg, frame.x(shown[-1][0]), frame.y(shown[-1][1]), "dot c0", f"last: {number(shown[-1][1])}")
    return _markup(svg)


def versions(labels: Sequence[str], intervals: Sequence[Mapping[str, Any]], colour: int = 0) -> Markup:
    """A mean with its interval per version, joined by a thin line."""
    spread = [float(i[end]) for i in intervals for end in ("low", "high", "mean") if is_number(i.get(end))]
    frame = Frame(-0.5, len(labels) - 0.5, *padded(spread), height=210)
    svg = _canvas(frame)
    _value_axis(svg, frame)
    middle = [(frame.x(k), frame.y(i["mean"])) for k, i in enumerate(intervals) if is_number(i.get("mean"))]
    _path(svg, middle, f"thin c{colour}")
    every = max(1, math.ceil(len(labels) / 8))
    for place, (label, interval) in enumerate(zip(labels, intervals, strict=True)):
        if place % every == 0:
            _text(svg, frame.x(place), frame.height - 8, brief(label, 10), "tick middle")
        if is_number(interval.get("mean")):
            _whisker(svg, frame, place, interval, f"c{colour}", label)
    return _markup(svg)


def accuracy(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Markup:
    """Accuracy by level as dots with intervals over 0 … 100%, with the line of a coin at 50%."""
    frame = Frame(0.0, 1.0, 0.0, 1.0, width=430, height=34 + 30 * len(rows), left=150, right=98, top=6)
    svg = _canvas(frame)
    foot = frame.height - frame.bottom
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _line(svg, frame.x(share), frame.top, frame.x(share), foot, "mark strong" if share == 0.5 else "rule")
        _text(svg, frame.x(share), frame.height - 8, f"{share:.0%}", "tick middle")
    for place, (label, interval) in enumerate(rows):
        y = frame.top + 15 + 30 * place
        _text(svg, frame.left - 10, y + 4, brief(label, 24), "tick end")
        if not is_number(interval.get("mean")):
            continue
        if is_number(interval.get("low")) and is_number(interval.get("high")):
            _line(svg, frame.x(interval["low"]), y, frame.x(interval["high"]), y, "whisker c0")
        _dot(svg, frame.x(interval["mean"]), y, "dot c0", f"{label}: {_spelled(interval)}")
        _text(svg, frame.width - 82, y + 4, f"{interval['mean']:.1%} of {interval.get('n', '?')}", "tick")
    return _markup(svg)


def histogram(edges: Sequence[float], sides: Mapping[str, Sequence[float]]) -> Markup:
    """Two distributions over common bins as filled outlines."""
    top = max(max(counts) for counts in sides.values()) or 1
    frame = Frame(edges[0], edges[-1], 0.0, top * 1.05, width=430, height=184)
    svg = _canvas(frame)
    _value_axis(svg, frame)
    for tick in ticks(frame.x0, frame.x1, 6):
        _text(svg, frame.x(tick), frame.height - 8, tick_label(tick), "tick middle")
    for place, counts in enumerate(sides.values()):
        outline: list[Point] = [(edges[0], 0.0)]
        for left, right, count in zip(edges, edges[1:], counts, strict=False):
            outline += [(left, count), (right, count)]
        outline.append((edges[-1], 0.0))
        _path(svg, [(frame.x(x), frame.y(y)) for x, y in outline], f"area c{place}")
    return _markup(svg)


def bar(parts: Sequence[tuple[str, str, float]], whole: float) -> Markup:
    """One stacked bar, as wide as its share of `whole`; it is stretched to its place, so it holds no text but titles.

    Args:
        parts: (class of its colour, name, size) one beside another.
        whole: what the full width stands for.
    """
    svg = ElementTree.Element("svg", {"viewBox": "0 0 1000 10", "preserveAspectRatio": "none", "class": "bar"})
    at = 0.0
    for kind, name, size in parts:
        width = 1000 * size / (whole or 1.0)
        place = {"x": f"{at:.2f}", "y": "0", "width": f"{width:.2f}", "height": "10"}
        part = ElementTree.SubElement(svg, "rect", {"class": kind, **place})
        ElementTree.SubElement(part, "title").text = visible(f"{name}: {duration(size)}")
        at += width
    return _markup(svg)


def best_of_n(curve_of_n: Mapping[str, Mapping[str, Any]], low: float, high: float) -> Markup:
    """Maximum (solid) and median (dashed) reward among n samples."""
    names = sorted((n for n in curve_of_n if n.isdecimal()), key=int)
    frame = Frame(1, max(int(names[-1]), 2), *padded([low, high]), width=260, height=150)
    svg = _canvas(frame)
    _steps_axis(svg, frame)
    for place, which in enumerate(("max", "median")):
        line = [(int(n), curve_of_n[n][which]) for n in names if is_number(curve_of_n[n].get(which))]
        _path(svg, [(frame.x(x), frame.y(y)) for x, y in line], f"line c{place}")
        for x, y in line:
            _dot(svg, frame.x(x), frame.y(y), f"dot small c{place}", f"{which} of {x}: {number(y)}")
    return _markup(svg)


def thinned(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """At most `limit` points: the average of equal pieces, the last point kept as it is."""
    if len(points) <= limit:
        return list(points)
    bounds = [round(i * len(points) / limit) for i in range(limit + 1)]
    pieces = [points[a:b] for a, b in itertools.pairwise(bounds)]
    means = [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in pieces]
    return [*means[:-1], points[-1]]


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a little room; a flat line is put in the middle."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between low and high: about `count` of them."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)]


def tick_label(tick: float) -> str:
    """As short as it can be: ticks are round numbers."""
    text = f"{tick:,.0f}" if 1000 <= abs(tick) < 1e6 else f"{tick:g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def _canvas(frame: Frame) -> ElementTree.Element:
    return ElementTree.Element("svg", {"viewBox": f"0 0 {frame.width} {frame.height}", "role": "img"})


def _value_axis(svg: ElementTree.Element, frame: Frame) -> None:
    for tick in ticks(frame.y0, frame.y1):
        _line(svg, frame.left, frame.y(tick), frame.width - frame.right, frame.y(tick), "rule")
        _text(svg, frame.left - 6, frame.y(tick) + 3.5, tick_label(tick), "tick end")


def _steps_axis(svg: ElementTree.Element, frame: Frame) -> None:
    _value_axis(svg, frame)
    whole = [tick for tick in ticks(frame.x0, frame.x1) if tick == int(tick)] or [frame.x0]
    for tick in whole:
        _text(svg, frame.x(tick), frame.height - 8, tick_label(tick), "tick middle")


def _whisker(
    svg: ElementTree.Element, frame: Frame, place: int, interval: Mapping[str, Any], colour: str, label: str
) -> None:
    x = frame.x(place)
    if is_number(interval.get("low")) and is_number(interval.get("high")):
        low, high = frame.y(interval["low"]), frame.y(interval["high"])
        _line(svg, x, low, x, high, f"whisker {colour}")
        for y in (low, high):
            _line(svg, x - 5, y, x + 5, y, f"cap {colour}")
    _dot(svg, x, frame.y(interval["mean"]), f"dot {colour}", f"{label}: {_spelled(interval)}")


def _spelled(interval: Mapping[str, Any]) -> str:
    ends = f"{number(interval.get('low'))} to {number(interval.get('high'))}"
    return f"{number(interval.get('mean'))} ({ends}, n = {interval.get('n', '?')})"


def _line(svg: ElementTree.Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    ends = {"x1": f"{x1:g}", "y1": f"{y1:g}", "x2": f"{x2:g}", "y2": f"{y2:g}"}
    ElementTree.SubElement(svg, "line", {"class": kind, **ends})


def _dot(svg: ElementTree.Element, x: float, y: float, kind: str, title: str) -> None:
    radius = "2.4" if "small" in kind else "4"
    dot = ElementTree.SubElement(svg, "circle", {"class": kind, "cx": f"{x:g}", "cy": f"{y:g}", "r": radius})
    ElementTree.SubElement(dot, "title").text = visible(clipped(title, 200))


def _path(svg: ElementTree.Element, points: Sequence[Point], kind: str) -> None:
    if len(points) > 1:
        commands = " ".join(f"{'L' if k else 'M'}{x:g} {y:g}" for k, (x, y) in enumerate(points))
        ElementTree.SubElement(svg, "path", {"class": kind, "d": commands})


def _text(svg: ElementTree.Element, x: float, y: float, text: str, kind: str) -> None:
    ElementTree.SubElement(svg, "text", {"class": kind, "x": f"{x:g}", "y": f"{y:g}"}).text = visible(text)


def _markup(svg: ElementTree.Element) -> Markup:
    return Markup(ElementTree.tostring(svg, encoding="unicode"))
