"""A verb: a step of a pipeline that is kept on disk, found again and planned like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from alignkit import Groups, GroupsHandle
from alignkit.plugin import ConfigError, Made, Place, Register, Stage, hookimpl


@dataclass(frozen=True, eq=False)
class ExampleComponent(Stage[GroupsHandle]):
    """The rows with the shortest prompts.

    Args:
        groups: of which some stay.
        rows: how many, above 0.
    """

    verb: ClassVar[str] = "example_component"
    makes: ClassVar[tuple[Any, ...]] = ("groups",)

    groups: Groups | GroupsHandle
    rows: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 1:
            raise ConfigError(f"rows={self.rows} must be positive", where=self.name)

    def work(self, place: Place) -> Mapping[str, Any]:
        groups = self.groups.groups if isinstance(self.groups, GroupsHandle) else self.groups
        lengths = [len(row["prompt"][-1]["content"]) for row in groups]
        kept = groups.select(sorted(range(len(groups)), key=lambda i: lengths[i])[: self.rows])
        if place.writes:  # one of several processes does
            kept.save(place.folder / "groups")
        return {"rows": len(kept)}

    def handle(self, made: Made) -> GroupsHandle:
        return GroupsHandle(**made.common(), expected=self.rows)


@hookimpl
def register_stages(register: Register) -> None:
    register("example_component", ExampleComponent)
