"""groups: data that exists already comes into the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from alignkit.groups import Groups
from alignkit.stages.base import Made, Product, Stage
from alignkit.stages.handles import GroupsHandle
from alignkit.stages.place import Place


@dataclass(frozen=True, eq=False)
class KeepGroups(Stage[GroupsHandle]):
    """Bring data that exists already (annotations, rollouts) into the run as a stage.

    Args:
        groups: the rows.
    """

    verb: ClassVar[str] = "groups"
    makes: ClassVar[tuple[Product, ...]] = ("groups",)

    groups: Groups

    def work(self, place: Place) -> Mapping[str, Any]:
        return keep(place, self.groups) if place.writes else {}

    def handle(self, made: Made) -> GroupsHandle:
        return GroupsHandle(**made.common(), expected=len(self.groups), responses=1)


def keep(place: Place, groups: Groups) -> dict[str, Any]:
    """Write the groups of a stage; returns how many there are."""
    with place.meter.phase("write"):
        groups.save(place.folder / "groups")
    return {"rows": len(groups), "responses": groups.num_responses}
