"""An annotator that is a program: of the answers to a prompt the shortest is best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alignkit.plugin import Annotator, ConfigError, Groups, Register, class_code, hookimpl, with_ranks


@dataclass(frozen=True)
class ExampleComponent(Annotator):
    """Ranks answers by their length in words.

    Args:
        tolerance: answers whose lengths differ by no more than this from the shortest tie with it, in words.
    """

    tolerance: int = 0

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise ConfigError(f"tolerance={self.tolerance} must not be negative", where="example_component")

    def key(self) -> Any:
        return {**asdict(self), **class_code(type(self))}

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        """The groups with `ranks`, 1 is best, by dimension; those with a single answer are left out."""
        judged = groups.filter(lambda row: len(row["responses"]) > 1)
        ranked = with_ranks(judged, [self._ranks(row["responses"]) for row in judged])
        return {"preference": ranked.map_rows(lambda row: {"dimension": "preference"})}

    def _ranks(self, responses: list[str]) -> list[int]:
        lengths = [len(response.split()) for response in responses]
        shortest = min(lengths)
        counted = [shortest if length <= shortest + self.tolerance else length for length in lengths]
        return [1 + sum(other < length for other in counted) for length in counted]


@hookimpl
def register_annotators(register: Register) -> None:
    register("example_component", ExampleComponent)
