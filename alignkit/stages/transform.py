"""transform: groups to groups."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar

from alignkit.calls import calling, whose
from alignkit.errors import DataError, PluginError
from alignkit.groups import Groups
from alignkit.meter import Meter
from alignkit.randomness import derived_seed
from alignkit.stages.base import Made, Product, Stage, component, rows_of
from alignkit.stages.groups import keep
from alignkit.stages.handles import GroupsHandle, PolicyHandle
from alignkit.stages.place import Place


@dataclass(frozen=True)
class TransformContext:
    """What a transform may use.

    Args:
        sample: `(prompts, n, **sampler arguments) -> Groups` from the policy given to the verb.
        seed: of whatever is random.
        policy: the live policy, or None.
        meter: of the stage; `sample` feeds it, and `score_groups(groups, reward, ctx.meter)`.
    """

    sample: Callable[..., Groups]
    seed: int
    policy: Any = None
    meter: Meter = field(default_factory=Meter)


@dataclass(frozen=True, eq=False)
class Transform(Stage[GroupsHandle]):
    """Map groups to groups.

    Args:
        groups: what is changed.
        transform: a registered transform or a function `(groups, ctx)`; `ctx.sample(prompts, n, …)` samples from
            `policy`.
        policy: whom the transform may sample from.
        sampler: a registered sampler, which `ctx.sample` uses.
    """

    verb: ClassVar[str] = "transform"
    makes: ClassVar[tuple[Product, ...]] = ("groups",)

    groups: Groups | GroupsHandle
    transform: Any = field(metadata=component("transform"))
    _: KW_ONLY
    policy: PolicyHandle | None = None
    sampler: Any = field(default="default", metadata=component("sampler"))

    def work(self, place: Place) -> Mapping[str, Any]:
        from alignkit.sampling import Drawing

        if not place.writes:
            return {}
        with place.meter.phase("load"):
            live = self.policy.load().to(place.device) if self.policy else None
        calls = itertools.count()

        def draw(prompts: Groups, n: int = 1, **options: Any) -> Groups:
            if live is None:
                raise DataError(
                    "the transform samples, but no policy was given", where=place.name, remedy="pass policy=…"
                )
            drawing = Drawing(live, replace(self.sampler, **options), place.meter, place.tick)
            return drawing.draw(prompts, n, seed=(*place.path, next(calls)), name=place.name)

        context = TransformContext(draw, derived_seed(*place.path), live, place.meter)
        with calling(self.transform, "", place.name), place.computing():
            changed = self.transform(rows_of(self.groups), context)
        if not isinstance(changed, Groups):
            what = f"the transform returned a {type(changed).__name__}"
            where = f"{whose(self.transform)}, {place.name}"
            raise PluginError(what, where=where, effect="Nothing was kept.", remedy="return Groups")
        return keep(place, changed)

    def handle(self, made: Made) -> GroupsHandle:
        return GroupsHandle(**made.common(), expected=len(self.groups), responses=1)
