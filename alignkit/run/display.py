"""A run on a terminal while it works: its stages, the present one's bar, the time left, the latest scores."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignkit.meter import TOKENS, Advance, Meter, short
from alignkit.report.text import brief, duration, number, visible

if TYPE_CHECKING:
    from alignkit.run.plan import Planned

BEFORE, SCORES = 3, 4
"""How many of the stages that are done, and of the latest scores, are shown."""
PAUSE = 0.25
"""Seconds between two drawings, at least: they are drawn by the work itself, and no thread is started for it."""


@dataclass
class Line:
    """A stage of the run.

    Args:
        name, verb: of it.
        flops: as planned, at most; 0 where nothing is computed or nobody knows.
        state: "to come", "present" or "done".
        seconds: that it took, where it is done.
        here: whether it was there already.
    """

    name: str
    verb: str
    flops: float = 0.0
    state: str = "to come"
    seconds: float | None = None
    here: bool = False

    @property
    def kind(self) -> tuple[str, str]:
        """Equal for the same stage of other versions: `v1/safety` and `v2/safety`."""
        return self.verb, re.sub(r"\d+", "#", self.name)


@dataclass
class Outlook:
    """The stages that are done, at work and to come, and how long these will take.

    Args:
        lines: by name, in their order.
        planned: whether the stages to come are known.
        scores: the latest, by what was measured.
    """

    lines: dict[str, Line] = field(default_factory=dict)
    planned: bool = False
    scores: dict[str, str] = field(default_factory=dict)

    def expect(self, planned: Sequence[Planned]) -> None:
        """These stages are to come; those that are there already cost nothing."""
        for each in planned:
            self.lines.setdefault(each.name, Line(each.name, each.verb, each.cost.flops(), here=each.cached))
        self.planned = bool(self.lines)

    def begin(self, name: str, verb: str) -> Line:
        """This one is at work; what was expected before it and did not come is left out."""
        begun = {key: line for key, line in self.lines.items() if line.state != "to come"}
        ahead = list(self.lines.values())[len(begun) :]
        names = [line.name for line in ahead]
        rest = ahead[names.index(name) + 1 :] if name in names else ahead
        line = self.lines.get(name) or Line(name, verb)
        line.state = "present"
        self.lines = {**begun, name: line, **{each.name: each for each in rest if each is not line}}
        return line

    def end(self, name: str, verb: str, seconds: float, result: Mapping[str, Any]) -> None:
        """It is done, and took so long, now or when it was made."""
        line = self.begin(name, verb)
        line.state, line.seconds = "done", seconds
        if found := scores_of(result):
            label = str(result.get("label") or name)
            self.scores.pop(label, None)  # the latest is the last
            self.scores[label] = found

    def estimate(self, line: Line) -> float | None:
        """Seconds that a stage will take: as the same stage of the last version did, or one of its verb, in proportion
        to what was planned of both; else what was planned of it at the rate of the stages so far."""
        if line.here:
            return 0.0
        done = [other for other in reversed(self.lines.values()) if other.seconds is not None]
        alike = [o for o in done if o.kind == line.kind] or [o for o in done if o.verb == line.verb]
        if alike:
            ratio = line.flops / alike[0].flops if line.flops and alike[0].flops else 1.0
            return ratio * (alike[0].seconds or 0.0)
        rated = [other for other in done if other.flops]
        if line.flops and rated:
            return line.flops * sum(o.seconds or 0.0 for o in rated) / sum(o.flops for o in rated)
        return None if line.flops or not done else min(other.seconds or 0.0 for other in done)

    def left(self, elapsed: float, least: float = 0.0) -> float | None:
        """Seconds until the run's end, about; None where the stages to come, or how fast they go, are not known.

        Args:
            elapsed: of the present stage.
            least: that the present stage still takes, as it says itself.
        """
        if not self.planned:
            return None
        total = 0.0
        for line in self.lines.values():
            if line.state != "done":
                if (seconds := self.estimate(line)) is None:
                    return None
                total += seconds if line.state == "to come" else max(seconds - elapsed, least)
        return total


def scores_of(result: Mapping[str, Any]) -> str:
    """What a finished stage measured, in one line: of an evaluation, a reward model, or the last round's responses."""
    measured, accuracy, last = (result.get(name) or {} for name in ("metrics", "accuracy", "last"))
    found = {name: m.get("mean") for name, m in measured.items() if isinstance(m, Mapping)}
    if isinstance(overall := accuracy.get("overall"), Mapping):
        found["held-out accuracy"] = overall.get("mean")
    found |= {name: last[name] for name in ("reward_mean", "kl_per_sequence") if name in last}
    return ", ".join(f"{name} {number(value)}" for name, value in found.items() if value is not None)


def _short(seconds: float) -> str:
    """A time as it is said of what is not over: in whole seconds, one at least."""
    return f"{max(round(seconds), 1)} s" if seconds < 60 else duration(seconds)


class Display:
    """The part of a terminal that is drawn anew while a stage is made, and is gone when it ends.

    Args:
        outlook: what it shows.
        began: when the run did, by `time.monotonic`.
    """

    def __init__(self, outlook: Outlook, began: float) -> None:
        from rich.console import Console

        self.outlook, self.began = outlook, began
        self.console = Console(markup=False, highlight=False, emoji=False)
        self.meter, self.advance, self.name = Meter(), None, ""  # type: Meter, Advance | None, str
        self._live: Any = None
        self._since = self._phase_since = self._drawn = time.monotonic()
        self._phase, self._within, self._tokens_before = "", "", 0

    @property
    def usable(self) -> bool:
        """Whether the output is a terminal that can be drawn on."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def start(self, name: str, meter: Meter) -> None:
        """Draw while this stage is made."""
        from rich.live import Live

        self.name, self.meter, self.advance, self._since = name, meter, None, time.monotonic()
        self._live = Live(self._picture(), console=self.console, auto_refresh=False, transient=True)
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Take the picture away; what the work prints goes where it went before, whatever the terminal says."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def print(self, text: str) -> None:
        """A line that stays, above the picture."""
        from rich.text import Text

        self.console.print(Text("\n".join(map(visible, text.split("\n")))), soft_wrap=True)

    def show(self, advance: Advance | None = None) -> None:
        """Draw, unless that was done a moment ago."""
        if advance is not None:
            self.advance, self._within = advance, self.meter.now
        clock = time.monotonic()
        if self._live is not None and clock - self._drawn >= PAUSE:
            self._drawn = clock
            self._live.update(self._picture(), refresh=True)

    # -- what is drawn -------------------------------------------------------------------------------------------------

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        elapsed = time.monotonic() - self._since
        lines = list(self.outlook.lines.values())
        place = next((i for i, line in enumerate(lines) if line.state == "present"), len(lines))
        ahead = lines[place + 1 :]
        room = max(self.console.size.height - 8 - BEFORE - min(len(self.outlook.scores), SCORES), 1)
        table = Table.grid(padding=(0, 2))
        for justify in ("left", "left", "right"):
            table.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for line in [*lines[max(place - BEFORE, 0) : place + 1], *ahead[:room]]:
            table.add_row(*self._row(line, elapsed))
        parts: list[Any] = [Text(""), Text(self._head(lines, elapsed), style="bold"), table]
        parts += [Text(f"    and {len(ahead) - room} more", style="dim")] if len(ahead) > room else []
        parts += [self._work(elapsed)] if place < len(lines) else []
        parts += [Text(f"{brief(visible(k), 24)}: {v}") for k, v in list(self.outlook.scores.items())[-SCORES:]]
        for part in parts:
            if isinstance(part, Text):
                part.no_wrap, part.overflow = True, "ellipsis"
        return Group(*parts)

    def _head(self, lines: Sequence[Line], elapsed: float) -> str:
        done = sum(line.state == "done" for line in lines)
        head = f"{done} of {len(lines)} stages done" if self.outlook.planned else f"{done} stages done"
        head += f", {_short(time.monotonic() - self.began)}"
        left = self.outlook.left(elapsed, (self.advance.left if self.advance else None) or 0.0)
        return head if left is None else f"{head}, about {_short(left)} left"

    def _row(self, line: Line, elapsed: float) -> list[Any]:
        from rich.text import Text

        plain = self.console.options.ascii_only
        marks = {"done": "x" if plain else "✓", "present": ">" if plain else "▶", "to come": "-" if plain else "·"}
        style = {"done": "green", "present": "bold", "to come": "dim"}[line.state]
        seconds = {"done": line.seconds, "present": elapsed}.get(line.state)
        about = self.outlook.estimate(line) if line.state == "to come" and self.outlook.planned else None
        told = _short(seconds) if seconds is not None else f"about {_short(about)}" if about else ""
        cells = (f"{marks[line.state]} {brief(visible(line.name), 32)}", brief(visible(line.verb), 16), told)
        return [Text(cell, style=style) for cell in cells]

    def _work(self, elapsed: float) -> Any:
        """What the present stage is about: its bar, or the phase with the tokens that went through it."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 2))
        if self.advance is not None and self._within in self.meter.within:
            bar = ProgressBar(total=max(self.advance.total, 1), completed=self.advance.done, width=24)
            row.add_row(bar, Text(visible(str(self.advance)), no_wrap=True, overflow="ellipsis"))
        else:
            row.add_row(Text(self._phase_told(), style="dim", no_wrap=True, overflow="ellipsis"))
        return row

    def _phase_told(self) -> str:
        now, clock = self.meter.now, time.monotonic()
        tokens = self.meter.work.get(now, {}).get(TOKENS.get(now, "scored_tokens"), 0)
        if now != self._phase:
            self._phase, self._phase_since, self._tokens_before = now, clock, tokens
        told, seconds = tokens - self._tokens_before, clock - self._phase_since
        rate = f", {short(told)} tokens, {told / seconds:.0f} tokens/s" if told and seconds > 0 else ""
        return f"{now or 'at work'}, {_short(seconds)}{rate}"


__all__ = ["Display", "Outlook", "scores_of"]
