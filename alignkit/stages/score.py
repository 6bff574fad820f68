"""score: the responses of groups are scored, and the scores kept with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from alignkit.calls import releasing
from alignkit.groups import Groups
from alignkit.stages.base import Cost, Made, Product, Stage, component, rows_of
from alignkit.stages.groups import keep
from alignkit.stages.handles import GroupsHandle
from alignkit.stages.place import Place

RESPONSE_TOKENS = 150
"""Tokens of a response, with its share of the prompt, that a plan reckons with."""


@dataclass(frozen=True, eq=False)
class Score(Stage[GroupsHandle]):
    """Score the responses of groups; of a combination each part's scores are kept beside its own.

    Args:
        groups: with responses.
        reward: a registered reward, a reward model, or a plain function; its name is that of the scores.
    """

    verb: ClassVar[str] = "score"
    makes: ClassVar[tuple[Product, ...]] = ("groups",)

    groups: Groups | GroupsHandle
    reward: Any = field(metadata=component("reward"))

    def cost(self) -> Cost:
        return Cost(forwarded=len(self.groups) * RESPONSE_TOKENS)

    def work(self, place: Place) -> Mapping[str, Any]:
        from alignkit.rewards import score_groups

        if not place.writes:
            return {}
        with releasing(self.reward), place.computing():
            scored = score_groups(rows_of(self.groups), self.reward, place.meter)
        values, present = scored.rewards(self.reward.name)
        flat = [v for row, there in zip(values, present, strict=True) for v, t in zip(row, there, strict=True) if t]
        means = {"mean": sum(flat) / len(flat)} if flat else {}
        return {**keep(place, scored), **means, "missing": scored.num_responses - len(flat)}

    def handle(self, made: Made) -> GroupsHandle:
        return GroupsHandle(**made.common(), expected=len(self.groups), responses=1)

    def summary(self, result: Mapping[str, Any]) -> str:
        if "mean" not in result:
            return super().summary(result)
        gone = f", {result['missing']} without a score" if result["missing"] else ""
        return f"{result['responses']} responses, mean {result['mean']:.3f}{gone}"
