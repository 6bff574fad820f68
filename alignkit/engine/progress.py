"""Where training is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from alignkit.meter import Advance


@dataclass
class StepProgress:
    """Tells each step; the time left is that of the round's steps.

    Args:
        tick: where passing lines go.
        rounds: how many there are.
    """

    tick: Callable[[Advance], None]
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
        left = seconds / (done - 1) * max(steps - done, 0) if done > 1 else None
        where = f"round {round_index + 1}/{self.rounds}, " if self.rounds > 1 else ""
        self.tick(Advance(f"{where}step", done, steps, rate=f"loss {loss:.4f}", left=left))
