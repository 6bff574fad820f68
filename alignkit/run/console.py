"""What a run says while it works: lasting lines, and progress that is drawn on a terminal or thinned out."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkit.hidden import printable, scrubbed
from alignkit.meter import Advance, Meter

if TYPE_CHECKING:
    from alignkit.run.display import Display, Outlook
    from alignkit.run.plan import Planned

GROWTH, LONGEST = 1.5, 120.0
"""By which factor the pause between progress lines grows within a stage, and to how many seconds."""


class Console:
    """Writes to standard output; only the first process speaks.

    On a terminal a `Display` is drawn while a stage is made. It never ends the run: where the terminal fails it, that
    is said once and plain lines follow.

    Args:
        quiet: say nothing.
        every: seconds between progress lines where nothing is drawn, at first.
        live: draw, where the output is a terminal.
    """

    def __init__(self, quiet: bool = False, every: float = 10.0, live: bool = True) -> None:
        self.quiet, self.every, self.live = quiet, every, live and not quiet
        self.started = time.monotonic()
        self._last, self._pause = 0.0, every
        self._outlook: Outlook | None = None
        self._display: Display | None = None

    @property
    def draws(self) -> bool:
        """Whether stages are drawn: the output is a terminal, and one that did not fail."""
        return self.live and sys.stdout.isatty()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        line = f"[{self._clock()}] {text}"
        if not self._drawn(lambda display: display.print(scrubbed(line))):  # which spells out what is not printable
            print(printable(line), flush=True)
        self._last = time.monotonic()

    def tick(self, text: str, advance: Advance | None = None) -> None:
        """Progress: a line now and then, ever more seldom; or the bar of a terminal, which shows `advance`."""
        if self.quiet or self._drawn(lambda display: display.show(advance)):
            return
        if time.monotonic() - self._last >= self._pause:
            print(printable(f"[{self._clock()}]   {text}"), flush=True)
            self._last, self._pause = time.monotonic(), min(self._pause * GROWTH, LONGEST)

    def expect(self, planned: Sequence[Planned]) -> None:
        """These stages are to come."""
        if self.draws:
            self._know().expect(planned)

    @contextlib.contextmanager
    def working(self, name: str, verb: str, meter: Meter) -> Iterator[None]:
        """Show a stage while it is made; nothing of it is left on the screen, nor a thread, when the block is left.

        Args:
            name, verb: of the stage.
            meter: that its work feeds.
        """
        self._pause = self.every
        if self.draws:
            self._know().begin(name, verb)
            self._open(name, meter)
        if self._display is None:
            self.say(f"{name}: {verb} …")
        try:
            yield
        finally:
            self._drawn(lambda display: display.stop())
            self._display = None

    def ended(self, name: str, verb: str, seconds: float, result: Mapping[str, Any]) -> None:
        """A stage is done, or was there already."""
        if self.draws:
            self._know().end(name, verb, seconds, result)

    def _know(self) -> Outlook:
        from alignkit.run.display import Outlook

        self._outlook = self._outlook or Outlook()
        return self._outlook

    def _open(self, name: str, meter: Meter) -> None:
        from alignkit.run.display import Display

        display = Display(self._know(), self.started)
        if display.usable:
            self._display = display
            if self._drawn(lambda found: found.start(name, meter)):
                meter.pulse = self._beat

    def _beat(self) -> None:
        self._drawn(lambda display: display.show())

    def _drawn(self, do: Callable[[Display], None]) -> bool:
        """Whether the display could do it; once it cannot, plain lines take its place.

        Whatever a terminal or the library that draws on it raises is no reason to lose the stage's work.
        """
        display = self._display
        if display is None:
            return False
        try:
            do(display)
        except Exception as error:
            self._display, self.live = None, False
            with contextlib.suppress(Exception):  # it failed already, and that is said below
                display.stop()
            what = f"{type(error).__name__}: {error}".split("\n")[0]
            print(f"[{self._clock()}] the terminal could not be drawn on ({what}); plain lines follow", flush=True)
            return False
        return True

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"
