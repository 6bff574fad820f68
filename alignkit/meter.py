"""What work cost: counts and seconds, added up where the work is done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from alignkit.errors import ConfigError, did_you_mean

COUNTS = {
    "generated_tokens": "tokens that samplers wrote, end tokens included, held-out sampling too",
    "trained_tokens": "learned tokens of the optimizer steps that were taken (of the round's data, not of streams)",
    "scored_tokens": "tokens that went through a model without a gradient, their prompts included",
    "reward_calls": "responses that a reward was asked for; a combination counts once",
    "judge_calls": "groups that an annotator was asked to rank",
    "optimizer_steps": "optimizer steps that were taken",
}
"""What is counted, by name. With several processes each holds what all of them did together."""


@dataclass
class Meter:
    """Counts by name and seconds by phase, as plain numbers.

    Args:
        counts: so far, of the names of `COUNTS`.
        seconds: of wall time by phase: "generate", "score", "annotate", "forward", "prepare", "train". A phase within
            another has its seconds to itself.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    seconds: dict[str, float] = field(default_factory=dict)
    _within: list[str] = field(default_factory=list, repr=False)
    _since: float = field(default=0.0, repr=False)

    def add(self, name: str, amount: int) -> None:
        """Count.

        Raises:
            ConfigError: a name that is not counted: it would be missing from every table.
        """
        if name not in self.counts:
            raise ConfigError(f"{name!r} is not counted{did_you_mean(name, COUNTS)}", where="Meter")
        self.counts[name] += int(amount)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes."""
        self._charge()
        self._within.append(name)
        try:
            yield
        finally:
            self._charge()
            self._within.pop()

    def _charge(self) -> None:
        """Give the seconds since the last change of phase to the one that they were spent in."""
        now = time.monotonic()
        if self._within:
            self.seconds[self._within[-1]] = self.seconds.get(self._within[-1], 0.0) + now - self._since
        self._since = now

    def to_json(self) -> dict[str, Any]:
        """{"counts": …, "seconds": …}."""
        return {"counts": dict(self.counts), "seconds": {k: round(v, 3) for k, v in self.seconds.items()}}
