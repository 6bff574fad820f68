"""When asking an endpoint is given up: one that is dead, or has failed too often already, costs no more calls."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignkit_rlaif.replies import CallFailed, Closed, Unreachable

GIVE_UP_AFTER = 8
"""Failures in a row after which the rest is not asked: of calls without a reply, and of any where none was answered."""


@dataclass
class Patience:
    """What one pass over questions has met so far.

    A call without a reply has had all its attempts, and a key or an address is the same for every question: where
    nothing was answered before, one such failure ends the pass. Later it may be a passing trouble, and takes
    `GIVE_UP_AFTER` in a row.

    Args:
        tolerated: failures that whoever asks can use; with more the result is refused, so the rest is not asked.
    """

    tolerated: float = math.inf
    answered: int = 0
    failed: int = 0
    in_a_row: int = 0
    ended: str = ""

    def succeed(self) -> None:
        """A question has its answer."""
        self.answered, self.in_a_row = self.answered + 1, 0

    def fail(self, error: CallFailed) -> None:
        """A question has none."""
        dead = isinstance(error, (Closed, Unreachable))
        self.failed += 1
        self.in_a_row = self.in_a_row + 1 if dead or not self.answered else 0
        first = dead and not self.answered
        if not self.ended and (first or self.in_a_row >= GIVE_UP_AFTER or self.failed > self.tolerated):
            calls = "the first call" if self.failed == 1 else f"{self.failed} calls"
            self.ended = f"not asked, after {calls} failed: {error}"
