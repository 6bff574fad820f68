"""sample: responses of one or several policies, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Self

from alignkit.groups import Groups
from alignkit.stages.base import Context, Cost, Made, Product, Stage, as_sequence, component, rows_of
from alignkit.stages.groups import keep
from alignkit.stages.handles import GroupsHandle, PolicyHandle
from alignkit.stages.place import Place


@dataclass(frozen=True, eq=False)
class Sample(Stage[GroupsHandle]):
    """Sample `n` responses per prompt from each policy at each temperature, side by side in one group.

    Args:
        policy: one or several.
        prompts: what is answered.
        n: responses per prompt, policy and temperature.
        sampler: a registered sampler.
        temperature: one or several; default the sampler's own.
        max_new_tokens: default the sampler's own.
    """

    verb: ClassVar[str] = "sample"
    makes: ClassVar[tuple[Product, ...]] = ("groups",)

    policy: PolicyHandle | Sequence[PolicyHandle]
    prompts: Groups | GroupsHandle
    n: int = 1
    _: KW_ONLY
    sampler: Any = field(default="default", metadata=component("sampler"))
    temperature: float | Sequence[float] | None = None
    max_new_tokens: int | None = None

    def resolved(self, context: Context) -> Self:
        built = super().resolved(context)
        sampler = limited(built.sampler, None, self.max_new_tokens)
        given = sampler.temperature if self.temperature is None else self.temperature
        temperatures = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        # One temperature is the sampler's; its own check refuses what is none.
        for temperature in temperatures:
            limited(sampler, temperature, None)
        return replace(
            built,
            policy=as_sequence(self.policy),
            sampler=limited(sampler, temperatures[0], None),
            temperature=temperatures,
            max_new_tokens=sampler.max_new_tokens,
        )

    def _samplers(self) -> list[Any]:
        assert isinstance(self.temperature, tuple)
        return [limited(self.sampler, temperature, None) for temperature in self.temperature]

    def _responses(self) -> int:
        return self.n * len(as_sequence(self.policy)) * len(self._samplers())

    def cost(self) -> Cost:
        generated = len(self.prompts) * self._responses() * self.sampler.max_new_tokens
        return Cost(generated=generated, parameters=as_sequence(self.policy)[0].parameters)

    def work(self, place: Place) -> Mapping[str, Any]:
        """Each policy at each temperature. Only the first process samples."""
        from alignkit.sampling import Drawing, sample_side_by_side

        if not place.writes:
            return {}
        prompts, parts = rows_of(self.prompts), []
        for index, handle in enumerate(as_sequence(self.policy)):
            policy = place.load(handle)
            for number, sampler in enumerate(self._samplers()):
                drawing = Drawing(policy, sampler, place.meter, place.tick)
                parts.append(drawing.draw(prompts, self.n, seed=(*place.path, index, number), name=handle.key[:16]))
        groups = sample_side_by_side(parts)
        return {**keep(place, groups), "generated_tokens": place.meter.counts["generated_tokens"]}

    def handle(self, made: Made) -> GroupsHandle:
        return GroupsHandle(**made.common(), expected=len(self.prompts), responses=self._responses())


def limited(sampler: Any, temperature: float | None, max_new_tokens: int | None) -> Any:
    """The sampler with what is given in place of its own."""
    changes = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    return replace(sampler, **{name: value for name, value in changes.items() if value is not None})
