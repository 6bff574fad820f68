"""A stage is one declaration: a frozen dataclass whose fields are its arguments, its key, its configuration on disk and
its docs.

A field counts in the stage's key by its value: a handle by its stage, `Groups` by their digest, anything else by its
plain form. Three marks in a field's metadata say otherwise: `component(kind)` (it names a component: the run builds it,
and the distribution that brings it counts, with whatever the component itself names), `NO_EFFECT` (it changes no byte
of the result), `DERIVED` (what counts of it is what `derived` says).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

from alignkit.annotators import Annotator, FunctionAnnotator
from alignkit.calls import calling
from alignkit.engine.checks import refuse_wrong_declarations
from alignkit.errors import AlignkitError, ConfigError, PluginError
from alignkit.groups import Groups
from alignkit.identity import plain
from alignkit.optimizers import PolicyOptimizer
from alignkit.registry.grammar import Component
from alignkit.registry.host import PluginHost
from alignkit.registry.records import ComponentRecord
from alignkit.rewards import FunctionReward, Reward
from alignkit.stages.cost import Cost
from alignkit.stages.fields import settle
from alignkit.stages.handles import EvaluationHandle, GroupsHandle, Handle, RewardHandle

if TYPE_CHECKING:
    from alignkit.stages.place import Place

Product = Literal["policy", "groups", "reward", "evaluation"]
H = TypeVar("H")

NO_EFFECT: Mapping[str, Any] = {"effect": False}
"""Mark of a field that changes no byte of the result."""

DERIVED: Mapping[str, Any] = {"derived": True}
"""Mark of a field of which only that counts which `Stage.derived` says."""


def component(kind: str, *, many: bool = False, named: bool = False) -> Mapping[str, Any]:
    """Mark of a field that names a component.

    Args:
        kind: of the component.
        many: whether it names several: a sequence, or a mapping by name.
        named: whether it names several, each by a name.
    """
    return {"component": kind, "many": many or named, "named": named}


@dataclass(frozen=True)
class Made:
    """A stage that is there, or that is only planned, as `Stage.handle` turns it into what the verb returns.

    Args:
        key: of the stage.
        name: of the stage.
        folder: where it is; None while it is planned.
        result: its small results.
        max_tokens: cells of a micro-batch, for what loads a model later.
        precision: of the run.
        device: where models run.
    """

    key: str
    name: str
    folder: Path | None
    result: Mapping[str, Any]
    max_tokens: int
    precision: str
    device: str

    def common(self) -> dict[str, Any]:
        """The fields of every `Handle`."""
        return {"key": self.key, "name": self.name, "folder": self.folder, "result": self.result}


@dataclass
class Context:
    """What a declaration is resolved against; it keeps which components were built.

    Args:
        host: the plugins.
        first_evaluation: the run's first, which the later ones are paired with.
        used: (record, object) of every registered component that a field names.
        named: the same of those that components name themselves, such as the losses of a method.
    """

    host: PluginHost
    first_evaluation: EvaluationHandle | None = None
    used: list[tuple[ComponentRecord, Any]] = field(default_factory=list)
    named: list[tuple[ComponentRecord, Any]] = field(default_factory=list)

    def build(self, kind: str, spec: Any, name: str | None = None) -> Any:
        """The component that `spec` stands for, counted with those that it names itself; None stays None.

        Args:
            kind: of the component.
            spec: a name, a configured component, an object; for a reward also a plain function.
            name: of a reward's column.

        Raises:
            PluginError: unknown, ambiguous or wrongly configured.
        """
        if spec is None:
            return None
        if kind == "reward" and not isinstance(spec, (str, Component)):
            return self._count(kind, spec, _as_reward(spec, name))
        record, built = self.host.resolve(kind, spec), self.host.build(kind, spec)
        built = _as_reward(built, name or record.name) if kind == "reward" else built
        built = _as_annotator(built) if kind == "annotator" else built
        self.used.append((record, built))
        self._further(built)
        return built

    def _count(self, kind: str, spec: Any, built: Any) -> Any:
        """Count the distribution of an object that was made outside; one of the user's own counts by its key alone."""
        known = [r for r in self.host.components(kind) if r.object is spec or r.object is type(spec)]
        self.used += [(record, built) for record in known]
        self._further(built)
        return built

    def _further(self, built: Any) -> None:
        if not isinstance(built, PolicyOptimizer):
            return
        refuse_wrong_declarations(built)
        with calling(built, "components"):
            components = list(built.components())
        for kind, spec in components:
            self.named.append((self.host.resolve(kind, spec), self.host.build(kind, spec)))

    def records(self) -> list[ComponentRecord]:
        """Of every component that counts."""
        return [record for record, _ in (*self.used, *self.named)]

    def qualified(self, built: Any) -> str | None:
        """The qualified name under which an object was registered."""
        return next((record.qualified for record, one in self.used if one is built), None)


def _as_reward(value: Any, name: str | None) -> Reward:
    if isinstance(value, Reward):
        return value
    if callable(value):
        return FunctionReward(value, name)
    raise AlignkitError(f"a {type(value).__name__} is not a reward", remedy="pass a Reward or a plain function")


def _as_annotator(value: Any) -> Annotator:
    if callable(getattr(value, "annotate", None)):  # whatever its class is derived from
        return value
    if callable(value):
        return FunctionAnnotator(value)
    raise PluginError(f"a {type(value).__name__} is not an annotator", remedy="pass an Annotator or a plain function")


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage(Generic[H]):
    """One durable unit of a run; a subclass declares a verb.

    Args:
        name: of the stage, once in a run.
    """

    verb: ClassVar[str] = ""
    """What the verb is called."""

    makes: ClassVar[tuple[Product, ...]] = ()
    """What can be had from a finished stage: report and listings ask this and not the verb's name."""

    name: str = ""

    def __post_init__(self) -> None:
        if self.name == "":
            object.__setattr__(self, "name", self.verb)
        settle(self)

    # -- what a verb says of itself ------------------------------------------------------------------------------------

    def resolved(self, context: Context) -> Self:
        """The stage with its components built and what depends on other fields, or on the run, settled.

        Override it, beginning with `super().resolved(context)`, to settle more and to refuse what contradicts itself:
        nothing has been spent yet.
        """
        changes = {}
        for each in dataclasses.fields(self):
            if "component" in each.metadata:
                changes[each.name] = _built(context, each, getattr(self, each.name), self.name)
        return dataclasses.replace(self, **changes) if changes else self

    def derived(self) -> Mapping[str, Any]:
        """What counts in the key beside the fields: what their handles carry, or a content in place of a path."""
        return {}

    def cost(self) -> Cost:
        """The estimate that a plan shows."""
        return Cost()

    def work(self, place: Place) -> Mapping[str, Any]:
        """Do it, writing into `place.folder`; returns the small results as plain JSON."""
        raise NotImplementedError

    def handle(self, made: Made) -> H:
        """What the verb returns, of a finished stage or of a planned one."""
        raise NotImplementedError

    def summary(self, result: Mapping[str, Any]) -> str:
        """One line about a finished stage."""
        return f"{result['rows']} rows" if "rows" in result else "done"

    # -- what counts ---------------------------------------------------------------------------------------------------

    def counted(self, context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
        """(config, inputs): every field that counts in the key, those that name a stage or hold groups apart."""
        config: dict[str, Any] = {}
        inputs: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            if each.name == "name" or not each.metadata.get("effect", True) or "derived" in each.metadata:
                continue
            value = getattr(self, each.name)
            value = value.handle if each.name in ("init", "model") and isinstance(value, RewardHandle) else value
            key = _component_key(context, value) if "component" in each.metadata else _named(each.name, value)
            if key is not None and _refers(key):
                inputs[each.name] = key
            else:
                config[each.name] = key
        derived = {name: _named(name, value) for name, value in self.derived().items()}
        if clash := set(derived) & {*config, *inputs}:
            what = f"derived() says {sorted(clash)}, which are fields that count already"
            raise ConfigError(what, where=self.name, remedy="use other names, or mark the fields DERIVED")
        return {**config, **derived}, inputs


def _built(context: Context, field: dataclasses.Field[Any], value: Any, where: str) -> Any:
    """The components that a field names: of several a tuple, or a dict by name.

    Raises:
        ConfigError: none where there must be one, or several where one is meant.
    """
    kind, many = field.metadata["component"], field.metadata["many"]
    if many and isinstance(value, Mapping):
        return {
            name: context.build(kind, _there(one, f"{field.name}[{name!r}]", where), name)
            for name, one in value.items()
        }
    if many and not field.metadata["named"] and isinstance(value, (list, tuple)):
        return tuple(context.build(kind, _there(one, field.name, where)) for one in value)
    if many or isinstance(value, (list, tuple)) or (isinstance(value, Mapping) and not isinstance(value, Component)):
        several = "a mapping by name" if field.metadata["named"] else "a list, or a mapping by name"
        wanted = f"some {kind}s: {several}" if many else f"one {kind}"
        raise ConfigError(f"{field.name} is a {type(value).__name__}", where=where, remedy=f"pass {wanted}")
    return context.build(kind, value if field.default is None else _there(value, field.name, where))


def _there(value: Any, name: str, where: str) -> Any:
    if value is None:
        raise ConfigError(f"{name} is None", where=where)
    return value


def _component_key(context: Context, value: Any) -> Any:
    """The plain form of a component, with the name under which it is registered; of several, of each."""
    if isinstance(value, Mapping):
        return {name: _component_key(context, one) for name, one in value.items()}
    if isinstance(value, tuple):
        return [_component_key(context, one) for one in value]
    key, name = plain(value), context.qualified(value)
    if name is None:
        return key
    return {"component": name, **(key if isinstance(key, dict) else {"value": key})}


def _named(name: str, value: Any) -> Any:
    """The plain form of what stands under a name, which may say that it is a secret."""
    return plain({name: value})[name]


def _refers(key: Any) -> bool:
    """Whether a plain form names a stage or the digest of groups, however deep."""
    if isinstance(key, dict):
        own = isinstance(key.get("stage"), str) or (set(key) == {"groups"} and isinstance(key["groups"], str))
        return own or any(_refers(value) for value in key.values())
    return isinstance(key, list) and any(_refers(value) for value in key)


def rows_of(value: Groups | GroupsHandle) -> Groups:
    """The groups that an argument stands for."""
    return value.groups if isinstance(value, GroupsHandle) else value


def as_sequence(value: Any) -> tuple[Any, ...]:
    """One or several, as several."""
    return (value,) if isinstance(value, (Groups, Handle)) else tuple(value)


__all__ = [
    "DERIVED",
    "NO_EFFECT",
    "Context",
    "Cost",
    "Made",
    "Product",
    "Stage",
    "as_sequence",
    "component",
    "rows_of",
]
