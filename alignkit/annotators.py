"""Annotators: who says which response is better, on Llama 2's four levels, along one or more dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from alignkit.groups import Groups
from alignkit.meter import Meter


class Annotator:
    """Ranks the responses of each group. Subclasses override `annotate` and `key`.

    The answer holds one `Groups` per dimension, since one pair of responses may be ranked otherwise for helpfulness
    than for safety. A group that cannot be judged is left out of a dimension; nothing is made up for it.
    """

    dimensions: ClassVar[tuple[str, ...]] = ("preference",)

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        """`groups` with `ranks` (1 is best), `rating` and `dimension` filled in, by dimension.

        Args:
            groups: K >= 2 responses each.
            seed: of whatever is random in the judgement; equal seeds give equal answers.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Give back what is held between calls, such as a model; called when a verb ends."""

    def key(self) -> Any:
        """Plain JSON that changes whenever a judgement could."""
        raise NotImplementedError(f"{type(self).__name__} must say what identifies it")


def annotated(groups: Groups, annotator: Annotator, seed: int, meter: Meter | None = None) -> Mapping[str, Groups]:
    """What the annotator says of the groups, by dimension; counted."""
    meter = meter or Meter()
    meter.add("judge_calls", len(groups))
    with meter.phase("score"):
        return annotator.annotate(groups, seed=seed)
