"""annotate: responses are ranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from alignkit.annotators import annotated, dimensions_of
from alignkit.calls import releasing
from alignkit.groups import Groups
from alignkit.randomness import derived_seed
from alignkit.stages.base import Made, Product, Stage, component, rows_of
from alignkit.stages.handles import GroupsHandle
from alignkit.stages.place import Place


@dataclass(frozen=True, eq=False)
class Annotate(Stage[dict[str, GroupsHandle]]):
    """Have the responses ranked; returns one handle per dimension.

    Args:
        groups: K >= 2 responses each.
        annotator: an `Annotator` or a registered name.
    """

    verb: ClassVar[str] = "annotate"
    makes: ClassVar[tuple[Product, ...]] = ("groups",)

    groups: Groups | GroupsHandle
    annotator: Any = field(metadata=component("annotator"))

    def work(self, place: Place) -> Mapping[str, Any]:
        """One folder per dimension."""
        if not place.writes:
            return {}
        with releasing(self.annotator), place.computing():
            found = annotated(rows_of(self.groups), self.annotator, derived_seed(*place.path), place.meter)
        result: dict[str, Any] = {}
        for dimension, part in found.items():
            with place.meter.phase("write"):
                part.save(place.folder / f"groups-{dimension}")
            ratings = [row["rating"] for row in part]
            counts = {rating: ratings.count(rating) for rating in sorted({r for r in ratings if r})}
            result[dimension] = {"rows": len(part), "ratings": counts}
        return result

    def handle(self, made: Made) -> dict[str, GroupsHandle]:
        expected = len(self.groups)
        return {
            dimension: GroupsHandle(**made.common(), part=f"groups-{dimension}", expected=expected, responses=2)
            for dimension in dimensions_of(self.annotator)
        }
