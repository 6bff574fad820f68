"""Where training is, in one line of text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class StepProgress:
    """Tells each step; the time left is that of the round's steps.

    Args:
        tick: where passing lines go.
        rounds: how many there are.
    """

    tick: Callable[[str], None]
    rounds: int
    _began: dict[int, float] = field(default_factory=dict)

    def tell(self, round_index: int, done: int, steps: int, loss: float) -> None:
        """Say that `done` of the round's steps are behind.

        Args:
            round_index: of the round.
            done: steps of it that were taken, this one included.
            steps: of it.
            loss: of the last step.
        """
        clock = time.monotonic()
        seconds = clock - self._began.setdefault(round_index, clock)
        left = seconds / max(done - 1, 1) * max(steps - done, 0)
        where = f"round {round_index + 1}/{self.rounds}, " if self.rounds > 1 else ""
        self.tick(f"{where}step {done}/{steps}, loss {loss:.4f}" + (f", {left:.0f} s left" if done > 1 else ""))
