"""What a stage may spend, and how far it has come in spending it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from alignkit.errors import ConfigError, suggestion
from alignkit.meter import COUNTS, Meter

NAMES = (*COUNTS, "flops")
"""What a budget may limit: every count of the meter, and floating-point operations in both directions."""

ROUND = ("generated_tokens", "reward_calls", "judge_calls")
"""What is spent when a round's responses are drawn and judged; the others are spent by steps too."""

FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12, "p": 10**15}
"""Suffixes of amounts, in either case: "200k", "1.5M"."""


@dataclass(frozen=True)
class Budget:
    """The most that a stage may spend, by name. A stage that reaches one of its limits stops.

    Args:
        limits: whole numbers above zero, of the names in `NAMES`, in the order of their names.
    """

    limits: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, given: Any) -> Budget:
        """From a mapping of names to numbers or texts such as "200k", from a text such as "generated_tokens=200k", from
        a budget, or from None: no limit.

        Raises:
            ConfigError: a name that is not counted or is there twice, or an amount that is no whole number above zero.
        """
        if isinstance(given, Budget):
            return given
        if isinstance(given, str):
            parts = [part.partition("=") for part in given.split(",")]
            given = {name.strip(): amount for name, _, amount in parts}
            if len(given) < len(parts):
                raise ConfigError("a limit is given twice", where="budget", remedy="give each name once")
        if not isinstance(given, Mapping | None):
            raise ConfigError(f"budget={given!r}", where="budget", remedy='write {"generated_tokens": "200k"}')
        return cls(tuple(sorted((_known(name), amount_of(name, value)) for name, value in (given or {}).items())))

    def to_json(self) -> dict[str, int]:
        """Limits by name."""
        return dict(self.limits)


def _known(name: Any) -> str:
    if name not in NAMES:
        raise ConfigError(f"{name!r} is not counted", where="budget", remedy=suggestion(str(name), NAMES))
    return str(name)


def amount_of(name: str, value: Any) -> int:
    """A number, or a text with a suffix of `FACTORS`, as a whole number.

    Args:
        name: what it limits, for the error.
        value: the amount.

    Raises:
        ConfigError: it is not above zero, or not whole.
    """
    text = str(value).strip().lower().replace("_", "")
    factor = FACTORS[text[-1]] if text and text[-1] in FACTORS else 1
    try:
        amount = Decimal(text if factor == 1 else text[:-1]) * factor  # of floats, 8.2 million is not whole
    except InvalidOperation:
        amount = Decimal("nan")
    if isinstance(value, bool) or not (amount.is_finite() and 1 <= amount < 10**40 and amount == int(amount)):
        remedy = 'give a whole number above zero, such as 200000 or "200k"'
        raise ConfigError(f"{name}={value!r}", where="budget", remedy=remedy)
    return int(amount)


@dataclass
class Spending:
    """How a stage's budget is spent. The meter counts alike on all processes, so all of them stop together.

    What is spent while a round's responses are drawn and judged is laid evenly over the steps that learn from them, so
    that `progress` rises from step to step and reaches 1 at the last one; what steps spend counts as they spend it.

    Args:
        budget: the limits.
        meter: what was spent.
        stopped: the name of the limit that stopped the stage; None while it goes on, or if it came to its own end.
    """

    budget: Budget = field(default_factory=Budget)
    meter: Meter = field(default_factory=Meter)
    stopped: str | None = None
    _before: dict[str, int] = field(default_factory=dict)
    _drawn: dict[str, int] = field(default_factory=dict)
    _place: tuple[int, int] = (0, 1)

    @property
    def limits(self) -> dict[str, int]:
        """By name."""
        return dict(self.budget.limits)

    def left(self, name: str) -> float:
        """What may still be spent, never below 0; without a limit, infinity."""
        limit = self.limits.get(name, math.inf)
        return max(limit - self.meter.spent(name), 0)

    def reached(self, names: Iterable[str] = NAMES) -> str | None:
        """The first of the names whose limit is reached."""
        return next((name for name in names if not self.left(name)), None)

    def exceeded_by(self, amounts: Mapping[str, int]) -> str | None:
        """The first name whose limit these amounts would exceed."""
        return next((name for name, amount in amounts.items() if amount > self.left(name)), None)

    def times(self, amounts: Mapping[str, int]) -> int:
        """How often these amounts fit; once at least while no limit is reached, and 0 then."""
        if self.reached():
            return 0
        fits = [self.left(name) // amount for name, amount in amounts.items() if amount and name in self.limits]
        return max(int(min(fits, default=1)), 1)

    def stop(self, name: str | None) -> bool:
        """Note what stopped the stage, if anything did; whether it is to stop."""
        self.stopped = self.stopped or name
        return self.stopped is not None

    # -- progress ------------------------------------------------------------------------------------------------------

    def drawing(self) -> None:
        """Responses will be drawn and judged now, for the rounds that follow."""
        self._before = {name: self.meter.spent(name) for name in self.limits}

    def learning(self, place: int, rounds: int) -> None:
        """The steps of a round will be taken now.

        Args:
            place: of the round among those that learn from the same responses.
            rounds: how many these are.
        """
        if place == 0:
            self._drawn = {name: self.meter.spent(name) for name in self.limits}
        self._place = place, rounds

    def progress(self, share: float, step: Mapping[str, int] | None = None) -> float:
        """How much of the budget is spent, in [0, 1]; 0 without one.

        Args:
            share: of the round's steps that were taken.
            step: what a step costs that is to count as taken.
        """
        place, rounds = self._place
        along, found = (place + share) / rounds, [0.0]
        for name, limit in self.limits.items():
            before, drawn = self._before.get(name, 0), self._drawn.get(name, 0)
            by_steps = self.meter.spent(name) - drawn + (step or {}).get(name, 0)
            found.append((before + (max(min(drawn, limit), before) - before) * along + by_steps) / limit)
        return min(max(found), 1.0)

    def fitting(self, costs: Sequence[Mapping[str, int]]) -> int:
        """How many of these steps, one after another, stay within the limits."""
        total: dict[str, int] = {}
        for place, cost in enumerate(costs):
            total = {name: total.get(name, 0) + amount for name, amount in cost.items()}
            if self.exceeded_by(total):
                return place
        return len(costs)


def stopped(spending: Spending) -> dict[str, str]:
    """What a result says of a stage that its budget stopped."""
    return {"stopped": "budget", "stopped_by": spending.stopped} if spending.stopped else {}
