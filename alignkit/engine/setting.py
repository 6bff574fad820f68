"""Who takes part in the rounds of `improve`, and where they happen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from alignkit.budget import Spending
from alignkit.engine.reference import Reference
from alignkit.meter import Advance, Meter
from alignkit.models import Policy

log = logging.getLogger("alignkit")


@dataclass(frozen=True)
class Models:
    """The models of a round.

    Args:
        policy: what is trained.
        behaviour: what samples; the same object where the policy samples for itself.
        reference: of the KL, or None.
        value_model: a separate value model; None where the head sits on the policy's trunk, or there is none.
    """

    policy: Policy
    behaviour: Policy
    reference: Reference | None = None
    value_model: Policy | None = None

    def __post_init__(self) -> None:
        for other in (None if self.reference is None else self.reference.model, self.value_model):
            if other is not None:  # it reads the policy's batches
                self.policy.read_beside(other)


@dataclass(frozen=True)
class Setting:
    """Where rounds happen.

    Args:
        seed: path of the random numbers: (run seed, stage name).
        max_tokens: cells of a micro-batch.
        world: (rank, processes).
        spending: counts the work, and says when to stop.
        say: where lasting lines go.
        tick: where passing progress goes.
        rounds: how many there are, for what is said of them.
        steps: of a round, in place of the method's epochs; 0: the epochs decide.
    """

    seed: Sequence[int | str]
    max_tokens: int
    world: tuple[int, int] = (0, 1)
    spending: Spending = field(default_factory=Spending)
    say: Callable[[str], None] = log.info
    tick: Callable[[Advance], None] = log.debug
    rounds: int = 1
    steps: int = 0

    @property
    def meter(self) -> Meter:
        """Counts the work."""
        return self.spending.meter

    def label(self, index: int) -> str:
        """How a round is called in what is said: "round 1/4"."""
        return f"round {index + 1}/{self.rounds}"
