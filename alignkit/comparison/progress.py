"""How a comparison shows that it works: a table that changes on a terminal, a line a cell elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from alignkit.comparison.cell import Cell
from alignkit.report.text import brief, duration, visible


class Progress:
    """Which cells wait, work, are done or have failed, and how long it will take.

    Args:
        quiet: say nothing.
        processes: at once.
    """

    def __init__(self, quiet: bool = False, processes: int = 1) -> None:
        self.quiet, self.processes = quiet, processes
        self.states: dict[Cell, str] = {}
        self.started = time.monotonic()
        self._begun: dict[Cell, float] = {}
        self._took: list[float] = []
        self._live: Any = None

    @contextmanager
    def over(self, cells: Sequence[Cell]) -> Iterator[None]:
        """Show these cells while the block works."""
        self.states = dict.fromkeys(cells, "waits")
        if self.quiet or not sys.stdout.isatty():
            yield
            return
        from rich.live import Live

        with Live(self._table(), refresh_per_second=2, transient=True) as self._live:
            yield
        self._live = None

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            seconds = int(time.monotonic() - self.started)
            line = f"[{seconds // 60:02d}:{seconds % 60:02d}] {visible(text)}"
            if self._live is not None:
                self._live.console.print(line, markup=False, highlight=False)
            else:
                print(line, flush=True)

    def watch(self, cell: Cell, what: str, record: Any) -> None:
        """A cell begins or has ended."""
        if what == "begins":
            self.states[cell], self._begun[cell] = "works", time.monotonic()
        else:
            self._took.append(time.monotonic() - self._begun[cell])
            failed = record["status"] == "failed"
            self.states[cell] = "failed" if failed else "done"
            reason = f": failed: {brief(record['reason'], 200)}" if failed else f": done ({duration(self._took[-1])})"
            ended = len(self._took)
            self.say(f"{cell.name}{reason}; {ended} of {len(self.states)}{self._left()}")
        if self._live is not None:
            self._live.update(self._table())

    def _left(self) -> str:
        """How long it will take at the pace of the cells so far, half of a cell's time for one at work."""
        waiting = sum(state == "waits" for state in self.states.values())
        working = sum(state == "works" for state in self.states.values())
        if not waiting + working or not self._took:
            return ""
        mean = sum(self._took) / len(self._took)
        return f", about {duration(mean * (waiting + working / 2) / self.processes)} left"

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        methods = list(dict.fromkeys(cell.method.label for cell in self.states))
        seeds = sorted({cell.seed for cell in self.states})
        table = Table(title=f"{len(self._took)} of {len(self.states)} cells{self._left()}")
        table.add_column("method", overflow="fold")
        for seed in seeds:
            table.add_column(f"seed {seed}")
        for method in methods:
            states = {cell.seed: state for cell, state in self.states.items() if cell.method.label == method}
            table.add_row(Text(visible(method)), *(Text(states.get(seed, "")) for seed in seeds))
        return table
