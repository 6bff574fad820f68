"""What passes between the rounds of a verb and the trainer that takes their steps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from alignkit.engine.training_data import Step, TrainingData


def _never(metrics: Mapping[str, float]) -> bool:
    return False


@dataclass(frozen=True)
class Lesson:
    """What is learned in one round.

    Args:
        data: what is learned from.
        steps: through it, one after another.
        metrics: of the round, logged with each of its steps.
        skip_rest: asked after every step, with its metrics, whether the round's remaining steps are skipped.
    """

    data: TrainingData
    steps: list[Step]
    metrics: Mapping[str, float] = field(default_factory=dict)
    skip_rest: Callable[[Mapping[str, float]], bool] = _never


RoundLoop = Generator[Lesson | bool | None, Mapping[str, float] | None, None]
"""For each round: yields its lesson (None: nothing to learn), is sent the means of its metrics, and yields whether to
stop."""


class Rounds(Protocol):
    """The rounds of a verb."""

    @property
    def count(self) -> int:
        """How many there are, if nothing stops them early."""
        ...

    def rounds(self) -> RoundLoop:
        """The loop over them."""
        ...


@dataclass
class OneRound:
    """The one round of a verb that learns from fixed rows: supervised fine-tuning and reward models.

    Args:
        data: what is learned from.
        steps: all of them.
    """

    data: TrainingData
    steps: list[Step]
    count: int = 1

    def rounds(self) -> RoundLoop:
        yield Lesson(self.data, self.steps)
        yield False
