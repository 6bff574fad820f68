"""What passes between the rounds of a verb and the trainer that takes their steps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from alignkit.engine.training_data import Step, TrainingData
from alignkit.errors import NothingToLearnError
from alignkit.registry.records import BoundLoss


def refuse_nothing(data: TrainingData, losses: Sequence[BoundLoss], where: str) -> None:
    """Refuse data of which no loss has an element: every gradient would be 0, and the stage "complete".

    Args:
        data: what would be learned from.
        losses: those that have a weight.
        where: the stage and the round, for the error.

    Raises:
        NothingToLearnError: none has.
    """
    missing = [data.lacks(loss.tensor_names) for loss in losses]
    if not missing or not all(missing):
        return
    raise NothingToLearnError(
        f"loss {losses[0].name} learns from {missing[0]}, and the {len(data.groups)} rows hold none",
        where=where,
        effect="Every gradient would be 0, and the model stay as it is.",
        remedy="bring rows that do, or use a loss of single responses",
    )


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
        sampled: ([R, T] log-probs as they were recorded while sampling, [R, T] bool, where they were), for the step to
            compare its own with; None where that was done.
    """

    data: TrainingData
    steps: list[Step]
    metrics: Mapping[str, float] = field(default_factory=dict)
    skip_rest: Callable[[Mapping[str, float]], bool] = _never
    sampled: tuple[Tensor, Tensor] | None = None


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
