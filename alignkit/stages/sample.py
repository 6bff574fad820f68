"""sample: responses of one or several policies, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Self

from alignkit.budget import Budget, Spending, stopped
from alignkit.errors import ConfigError
from alignkit.groups import Groups
from alignkit.optimizers import check_positive
from alignkit.stages.base import DERIVED, Context, Cost, Made, Product, Stage, as_sequence, component, rows_of
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
        budget: the most to spend, such as {"generated_tokens": "200k"}. Prompts are answered in their order until it is
            spent; of several policies or temperatures, as many prompts as it surely pays for.
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
    budget: Mapping[str, int | float | str] | Budget | None = field(default=None, metadata=DERIVED)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "n")
        if isinstance(self.temperature, (list, tuple)) and not self.temperature:
            raise ConfigError("temperature names none", where=self.name)
        if not isinstance(self.policy, PolicyHandle) and not len(self.policy):
            raise ConfigError("policy names none", where=self.name)

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
            budget=Budget.of(self.budget),
        )

    def derived(self) -> Mapping[str, Any]:
        limits = Budget.of(self.budget).to_json()
        return {"budget": limits} if limits else {}

    @property
    def _temperatures(self) -> tuple[float, ...]:
        assert isinstance(self.temperature, tuple)
        return self.temperature

    def _responses(self) -> int:
        return self.n * len(as_sequence(self.policy)) * len(self._temperatures)

    def cost(self) -> Cost:
        generated = len(self.prompts) * self._responses() * self.sampler.max_new_tokens
        return Cost(generated=generated, parameters=as_sequence(self.policy)[0].parameters)

    def work(self, place: Place) -> Mapping[str, Any]:
        """Each policy at each temperature. Only the first process samples."""
        from alignkit.sampling import Drawing, sample_side_by_side

        if not place.writes:
            return {}
        prompts, parts = rows_of(self.prompts), list[Groups]()
        spending, room = Spending(Budget.of(self.budget), place.meter), None
        with place.computing():
            for index, handle in enumerate(as_sequence(self.policy)):
                drawing = Drawing(place.load(handle), self.sampler, place.meter, place.tick)
                if not parts and spending.limits:
                    prompts, room = self._within(prompts, spending, drawing)
                seeds = [(*place.path, index, number) for number in range(len(self._temperatures))]
                name = handle.key[:16]
                if len(seeds) > 1:
                    parts += drawing.draw_at(prompts, self.n, self._temperatures, seeds=seeds, name=name)
                else:
                    parts.append(drawing.draw(prompts, self.n, seed=seeds[0], name=name, room=room))
        groups = sample_side_by_side(parts)
        if room is not None and len(groups) < len(prompts):
            spending.stop(spending.reached())
        tokens = place.meter.counts["generated_tokens"]
        return {**keep(place, groups), "generated_tokens": tokens, **stopped(spending)}

    def _within(self, prompts: Groups, spending: Spending, drawing: Any) -> tuple[Groups, Callable[[], int] | None]:
        """(the prompts that the budget pays for, what says how many may be answered next)."""
        draws = self._responses()
        tight = spending.exceeded_by(drawing.most(len(prompts), draws))
        if tight is None:
            return prompts, None
        if draws == self.n:
            return prompts, lambda: spending.times(drawing.most(1, draws))
        spending.stop(tight)
        return prompts.select(range(spending.times(drawing.most(1, draws)))), None

    def handle(self, made: Made) -> GroupsHandle:
        return GroupsHandle(**made.common(), expected=len(self.prompts), responses=self._responses())


def limited(sampler: Any, temperature: float | None, max_new_tokens: int | None) -> Any:
    """The sampler with what is given in place of its own."""
    changes = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    return replace(sampler, **{name: value for name, value in changes.items() if value is not None})
