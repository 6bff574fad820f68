"""What a judge said of two responses, by principle and by order."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

from alignkit_rlaif.verdicts import both_orders, consistent


@dataclass(frozen=True)
class Vote:
    """What the judge said by one principle (or by the criteria), in both orders.

    Args:
        principle: its number, or None.
        first_when_ab: normalised probability of "1" where the first response stands first; None if that pass is
            missing or the mass on the verdicts is below the floor.
        first_when_ba: the same where the second one stands first.
        mass: probability on the verdicts together, in each pass; None where the call failed.
        reason: why the vote does not count, or None.
        failed: whether a call failed, as against a judge who abstains.
        by: "logprobs" or "sampled".
    """

    principle: int | None
    first_when_ab: float | None
    first_when_ba: float | None
    mass: tuple[float | None, float | None]
    reason: str | None = None
    failed: bool = False
    by: str = "logprobs"

    @property
    def prob(self) -> float | None:
        """P(the first response is better), or None."""
        if self.first_when_ab is None or self.first_when_ba is None:
            return None
        return both_orders(self.first_when_ab, self.first_when_ba)

    def to_json(self) -> dict[str, Any]:
        """As it is kept in `meta`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Two responses of a group, compared.

    Args:
        row: of the groups.
        first, second: places of the responses.
        votes: one per principle asked.
    """

    row: int
    first: int
    second: int
    votes: tuple[Vote, ...]

    @property
    def prob(self) -> float | None:
        """P(first is better), averaged over the votes that count and not clamped; None if none counts."""
        found = [vote.prob for vote in self.votes if vote.prob is not None]
        return statistics.fmean(found) if found else None

    @property
    def mass(self) -> float | None:
        """Mean probability on the verdicts over the calls that did not fail."""
        found = [mass for vote in self.votes for mass in vote.mass if mass is not None]
        return statistics.fmean(found) if found else None

    @property
    def failed(self) -> bool:
        """Whether no vote counts, and a call that failed is among them."""
        return self.prob is None and any(vote.failed for vote in self.votes)

    @property
    def reason(self) -> str | None:
        """Why there is no probability; a call that failed is named before a judge who abstains."""
        if self.prob is not None:
            return None
        return min(self.votes, key=lambda vote: not vote.failed).reason

    @property
    def consistent(self) -> bool | None:
        """Whether both orders name the same response, over the votes that count on average; None if none counts."""
        counted = [v for v in self.votes if v.first_when_ab is not None and v.first_when_ba is not None]
        if not counted:
            return None
        ab, ba = (statistics.fmean(getattr(v, n) for v in counted) for n in ("first_when_ab", "first_when_ba"))
        return consistent(ab, ba)
