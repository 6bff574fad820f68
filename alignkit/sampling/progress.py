"""What is said of sampling while it goes on."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, int, float], None]
"""Called with (responses done, responses in all, tokens so far, seconds so far)."""


def shown(what: str, tick: Callable[[str], None]) -> Progress:
    """Progress as one line of text: how far, how fast, how long still.

    Args:
        what: is being sampled.
        tick: where passing lines go.
    """

    def tell(done: int, total: int, tokens: int, seconds: float) -> None:
        rate, left = tokens / max(seconds, 1e-6), seconds / max(done, 1) * (total - done)
        tick(f"{what}: {done}/{total} responses, {rate:.0f} tokens/s, {left:.0f} s left")

    return tell
