"""What a run says while it works: lasting lines, and progress that is overwritten or thinned out."""

from __future__ import annotations

import sys
import time


class Console:
    """Writes to standard output; only the first process speaks.

    Args:
        quiet: say nothing.
        every: seconds between progress lines where the output is no terminal.
    """

    def __init__(self, quiet: bool = False, every: float = 10.0) -> None:
        self.quiet, self.every = quiet, every
        self.started = time.monotonic()
        self._last = 0.0
        self._open = False

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self._end()
            print(f"[{self._clock()}] {text}", flush=True)
            self._last = time.monotonic()

    def tick(self, text: str) -> None:
        """Progress: the current line of a terminal, or a line now and then in a file."""
        if self.quiet:
            return
        if sys.stdout.isatty():
            print(f"\r\x1b[2K[{self._clock()}]   {text}"[:200], end="", flush=True)
            self._open = True
        elif time.monotonic() - self._last >= self.every:
            print(f"[{self._clock()}]   {text}", flush=True)
            self._last = time.monotonic()

    def _end(self) -> None:
        if self._open:
            print("\r\x1b[2K", end="")
            self._open = False

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"
