"""Charts of several methods: intervals, paths and curves, in the colours `c0` … `c9`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

from markupsafe import Markup

from alignkit.evaluation.statistics import Interval
from alignkit.report.charts import Frame, Point, padded, thinned, tick_label, ticks
from alignkit.report.text import brief, clipped, number, visible

COLOURS = 10
ROW = {False: 26, True: 40}
"""Height of a row of a chart that is wide, and of one that is narrow."""


@dataclass(frozen=True)
class Line:
    """One method in a chart.

    Args:
        label: of the method.
        colour: its number.
        points: of its mean.
        faint: the points of each seed.
        names: of the points, for who points at them; default their numbers.
    """

    label: str
    colour: int
    points: Sequence[Point]
    faint: Sequence[Sequence[Point]] = ()
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Drawing:
    """An SVG that is being drawn: elements, so that text from a run can only ever be text."""

    frame: Frame
    svg: ElementTree.Element = field(init=False)

    def __post_init__(self) -> None:
        box = {"viewBox": f"0 0 {self.frame.width} {self.frame.height}", "role": "img"}
        object.__setattr__(self, "svg", ElementTree.Element("svg", box))

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        ends = {"x1": f"{x1:g}", "y1": f"{y1:g}", "x2": f"{x2:g}", "y2": f"{y2:g}"}
        ElementTree.SubElement(self.svg, "line", {"class": kind, **ends})

    def text(self, x: float, y: float, text: str, kind: str) -> None:
        ElementTree.SubElement(self.svg, "text", {"class": kind, "x": f"{x:g}", "y": f"{y:g}"}).text = visible(text)

    def dot(self, point: Point, kind: str, title: str, radius: float = 3.4) -> None:
        place = {"cx": f"{self.frame.x(point[0]):g}", "cy": f"{self.frame.y(point[1]):g}", "r": f"{radius:g}"}
        dot = ElementTree.SubElement(self.svg, "circle", {"class": kind, **place})
        ElementTree.SubElement(dot, "title").text = visible(clipped(title, 200))

    def bar(self, x: float, y: float, width: float, height: float, kind: str, title: str) -> None:
        size = {"x": f"{x:g}", "y": f"{y:g}", "width": f"{width:g}", "height": f"{height:g}"}
        bar = ElementTree.SubElement(self.svg, "rect", {"class": kind, **size})
        ElementTree.SubElement(bar, "title").text = visible(clipped(title, 200))

    def path(self, points: Sequence[Point], kind: str) -> None:
        if len(points) > 1:
            at = [(self.frame.x(x), self.frame.y(y)) for x, y in points]
            commands = " ".join(f"{'L' if k else 'M'}{x:g} {y:g}" for k, (x, y) in enumerate(at))
            ElementTree.SubElement(self.svg, "path", {"class": kind, "d": commands})

    def axes(self) -> None:
        frame = self.frame
        for tick in ticks(frame.y0, frame.y1):
            self.line(frame.left, frame.y(tick), frame.width - frame.right, frame.y(tick), "rule")
            self.text(frame.left - 6, frame.y(tick) + 3.5, tick_label(tick), "tick end")
        for tick in ticks(frame.x0, frame.x1, 4):
            self.text(frame.x(tick), frame.height - 8, _short(tick), "tick middle")

    def markup(self) -> Markup:
        return Markup(ElementTree.tostring(self.svg, encoding="unicode"))


def lines(methods: Sequence[Line], *, height: int = 210, dots: bool = True, from_zero: bool = False) -> Markup:
    """A line per method, with the lines of its seeds faint behind it.

    Args:
        methods: with a point at least between them.
        height: SVG units; the width is 320.
        dots: whether points are marked.
        from_zero: whether the horizontal axis begins at 0.
    """
    known = [p for each in methods for part in (each.points, *each.faint) for p in part]
    xs = [x for x, _ in known]
    low, high = (0.0, max(xs) * 1.04 or 1.0) if from_zero else padded(xs)
    drawing = Drawing(Frame(low, high, *padded([y for _, y in known]), height=height))
    drawing.axes()
    for each in methods:
        for part in each.faint:
            drawing.path(thinned(part), f"thin c{each.colour}")
    for each in methods:
        drawing.path(thinned(each.points), f"many c{each.colour}")
        for place, point in enumerate(each.points if dots else ()):
            name = f" {each.names[place]}" if place < len(each.names) else ""
            title = f"{each.label}{name}: {number(point[1])} at {number(point[0])}"
            drawing.dot(point, f"c{each.colour}", title)
    return drawing.markup()


def intervals(rows: Sequence[tuple[str, int, Interval]], mark: float | None = None, narrow: bool = False) -> Markup:
    """A row per method: its mean as a dot, its interval as a bar.

    Args:
        rows: (label, colour, interval), top to bottom.
        mark: where an upright line stands, such as the start's mean.
        narrow: for a telephone, see `_rows`.
    """
    low, high = padded([end for _, _, each in rows for end in (each.low, each.high, each.mean)])
    drawing = _rows(low, high, len(rows), narrow)
    frame = drawing.frame
    foot = frame.height - frame.bottom
    for tick in ticks(low, high, 4 if narrow else 5):
        drawing.line(frame.x(tick), frame.top, frame.x(tick), foot, "rule")
        drawing.text(frame.x(tick), frame.height - 8, tick_label(tick), "tick middle")
    if mark is not None and low < mark < high:
        drawing.line(frame.x(mark), frame.top, frame.x(mark), foot, "mark strong")
    for place, (label, colour, each) in enumerate(rows):
        middle = 1 - ((0.7 if narrow else 0.5) + place) / len(rows)
        y = frame.y(middle)
        _label(drawing, label, y - 10 if narrow else y + 4, narrow)
        drawing.line(frame.x(each.low), y, frame.x(each.high), y, f"whisker c{colour}")
        title = f"{label}: {number(each.mean)} ({number(each.low)} to {number(each.high)})"
        drawing.dot((each.mean, middle), f"c{colour}", title, radius=4.4)
    return drawing.markup()


def shares(rows: Sequence[tuple[str, Mapping[str, float]]], names: Sequence[str], narrow: bool = False) -> Markup:
    """A row per method of what it took, in parts laid end to end.

    Args:
        rows: (label, amount by name), top to bottom.
        names: of the parts, each a colour.
        narrow: for a telephone, see `_rows`.
    """
    most = max((sum(parts.values()) for _, parts in rows), default=0.0) or 1.0
    drawing = _rows(0.0, most, len(rows), narrow)
    frame = drawing.frame
    for tick in ticks(0.0, most, 4 if narrow else 5):
        drawing.line(frame.x(tick), frame.top, frame.x(tick), frame.height - frame.bottom, "rule")
        drawing.text(frame.x(tick), frame.height - 8, _short(tick), "tick middle")
    for place, (label, parts) in enumerate(rows):
        y, along = frame.top + (18 if narrow else 4) + ROW[narrow] * place, 0.0
        _label(drawing, label, y - 4 if narrow else y + 13, narrow)
        for colour, name in enumerate(names):
            if amount := parts.get(name, 0.0):
                width = frame.x(along + amount) - frame.x(along)
                title = f"{label}, {name}: {number(amount)} s"
                drawing.bar(frame.x(along), y, width, 17, f"c{colour % COLOURS}", title)
                along += amount
    return drawing.markup()


def _rows(low: float, high: float, count: int, narrow: bool) -> Drawing:
    """An empty chart of rows.

    A chart is drawn to the width that there is, and its letters with it: one that has labels on its left is 560 units
    wide, which a telephone shows at three fifths. The narrow one is as wide as a telephone, its labels above the rows.
    """
    size = {"width": 340, "left": 10} if narrow else {"width": 560, "left": 190}
    frame = Frame(low, high, 0.0, 1.0, height=34 + ROW[narrow] * count, right=20, top=6, **size)
    return Drawing(frame)


def _label(drawing: Drawing, label: str, y: float, narrow: bool) -> None:
    """A row's label, as long as there is room for wide letters: 6.6 units each."""
    if narrow:
        drawing.text(0, y, brief(label, 50), "tick")
    else:
        drawing.text(drawing.frame.left - 10, y, brief(label, 27), "tick end")


def _short(tick: float) -> str:
    """Ticks of counts: 20k rather than 20,000."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(tick) >= size:
            return f"{tick / (1e3 if unit == 'k' else size):g}{unit}"
    return tick_label(tick)
