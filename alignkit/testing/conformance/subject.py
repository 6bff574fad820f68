"""What is checked: a registered component, or a distribution, with what its author says is needed to try it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkit.errors import AlignkitError, PluginError, did_you_mean
from alignkit.groups import Groups
from alignkit.registry.grammar import Component
from alignkit.registry.hookspecs import KINDS
from alignkit.registry.host import PluginHost
from alignkit.registry.metadata import PluginInfo, normalized
from alignkit.registry.records import ComponentRecord


@dataclass(frozen=True)
class Given:
    """What the author of a plugin adds, so that components can be tried that need more than their defaults.

    Args:
        settings: hyper-parameters to try a component with, by "kind:name".
        groups: rows to try it on, by "kind:name": what a reward scores, an annotator ranks, a transform maps, a method
            learns from.
        rewards: the reward to improve a method by, by "optimizer:name"; default the share of letters in a response.
        annotators: the same for a method that learns from an annotator.
    """

    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    groups: Mapping[str, Groups] = field(default_factory=dict)
    rewards: Mapping[str, Any] = field(default_factory=dict)
    annotators: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Subject:
    """A component under the eye, or a distribution as a whole (kind "plugin", no record).

    Args:
        kind: of component, or "plugin".
        name: bare, or the distribution's.
        host: the plugins.
        record: of the component.
        info: of the distribution.
        given: what the author adds.
        kept: what checks share, so that nothing is worked out twice.
    """

    kind: str
    name: str
    host: PluginHost
    record: ComponentRecord | None = None
    info: PluginInfo | None = None
    given: Given = field(default_factory=Given)
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`kind:name`, or the distribution's name."""
        return self.name if self.kind == "plugin" else f"{self.kind}:{self.name}"

    @property
    def settings(self) -> dict[str, Any]:
        """The hyper-parameters that the author gives."""
        return dict(self.given.settings.get(self.label, {}))

    @property
    def groups(self) -> Groups | None:
        """The rows that the author gives."""
        return self.given.groups.get(self.label)

    @property
    def target(self) -> Any:
        """What was registered."""
        assert self.record is not None
        return self.record.object

    def build(self, **changes: Any) -> Any:
        """The component with the author's settings, and with `changes` of them.

        Raises:
            PluginError: as the host does.
        """
        assert self.record is not None
        return self.host.build(self.kind, Component(self.record.qualified, {**self.settings, **changes}))

    @property
    def loads(self) -> str:
        """Why it is not tried as it is: a model of its own, which nobody asked for; empty where there is none."""
        known = self.record.hyperparameters if self.record else {}
        model = known.get("model")
        if model is None or "model" in self.settings or model.default in (None, "tiny") or model.required:
            return ""
        return f"it would load a model (model={model.default}); settings= names a small one, such as 'tiny'"

    def once(self, name: str, work: Any) -> Any:
        """What `work()` gives or raises, worked out once."""
        if name not in self.kept:
            try:
                self.kept[name] = (work(), None)
            except Exception as error:
                self.kept[name] = (None, error)
        value, raised = self.kept[name]
        if raised is not None:
            raise raised
        return value


def find(name: str, host: PluginHost, given: Given | None = None) -> list[Subject]:
    """What a name stands for: a distribution (or its entry point, or its module) with all that it brings, or one
    component as `kind:name`.

    Args:
        name: as the author writes it.
        host: the plugins.
        given: what the author adds.

    Raises:
        PluginError: nothing is called so; a plugin that could not be loaded, with its reason.
    """
    given = given or Given()
    kind, _, component = name.partition(":")
    if kind in KINDS:
        record = host.resolve(kind, component)
        return [Subject(kind, record.name, host, record, given=given)]
    infos = [info for info in host.plugins() if _called(info, name)]
    if not infos:
        known = [info.distribution for info in host.plugins()]
        raise PluginError(
            f"no plugin is called {name!r}{did_you_mean(name, known)}",
            remedy="name an installed distribution, or one component as kind:name",
        )
    host.load()
    infos = [info for info in host.plugins() if _called(info, name)]
    faulty = [info for info in infos if not info.loaded]
    if faulty:
        raise PluginError(f"{faulty[0].distribution} is {faulty[0].state}: {faulty[0].reason}", where="conformance")
    return [subject for info in infos for subject in _all_of(info, host, given)]


def _called(info: PluginInfo, name: str) -> bool:
    names = (info.distribution, info.entry_point, info.module.partition(":")[0])
    return normalized(name) in map(normalized, names)


def _all_of(info: PluginInfo, host: PluginHost, given: Given) -> list[Subject]:
    own = [r for r in host.components() if (r.distribution, r.plugin) == (info.distribution, info.entry_point)]
    whole = Subject("plugin", info.distribution, host, info=info, given=given)
    return [whole, *(Subject(r.kind, r.name, host, r, given=given) for r in own)]


def refusal(error: Exception) -> str | None:
    """The text of an error that a component explains itself by, or None for any other."""
    return str(error) if isinstance(error, AlignkitError) else None
