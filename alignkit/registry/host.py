"""The plugin host: loads each plugin on its own, keeps why one was refused, and finds components by name.

One `PluginHost` is one set of plugins; `default_host()` is the process's, made from the environment on first use.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pluggy

from alignkit._version import __version__
from alignkit.errors import PluginError, did_you_mean
from alignkit.hidden import scrubbed
from alignkit.metrics.specs import CORE as CORE_SPECS
from alignkit.metrics.specs import MetricSpec
from alignkit.registry import building, finding, hookspecs
from alignkit.registry.checks import check_component, kind_of, unknown_tensor
from alignkit.registry.guard import guarded
from alignkit.registry.metadata import CORE, LoadLists, PluginInfo, discover
from alignkit.registry.records import ComponentRecord

log = logging.getLogger("alignkit.plugins")

BUILTIN = "alignkit.builtin"


@dataclass
class _Open:
    """The plugin whose hooks are being called, and what it has registered so far."""

    info: PluginInfo
    records: list[ComponentRecord] = field(default_factory=list)


class PluginHost:
    """Plugins, and the components they bring.

    Args:
        block: distributions never to import, besides those of ALIGNKIT_BLOCK_PLUGINS.
        allow: the only distributions to import; None for ALIGNKIT_LOAD_PLUGINS, or all when that is unset.
        strict: whether a faulty plugin is an error; None for ALIGNKIT_STRICT_PLUGINS=1.
        path: folders in which to look for distributions; None for `sys.path`.
    """

    def __init__(
        self,
        *,
        block: Iterable[str] = (),
        allow: Iterable[str] | None = None,
        strict: bool | None = None,
        path: list[str] | None = None,
    ) -> None:
        self.strict = strict_from_environment() if strict is None else strict
        self._lists = LoadLists.read(block, allow)
        self._records: dict[str, tuple[ComponentRecord, ...]] = {}
        self._errors: dict[str, BaseException] = {}
        self._open: _Open | None = None
        core = PluginInfo(CORE, __version__, "core", BUILTIN, path=os.path.dirname(os.path.dirname(__file__)))
        self._infos: dict[str, PluginInfo] = {core.id: core}
        self._entry_points: dict[str, EntryPoint | None] = {core.id: None}
        for info, entry_point in discover(path):
            self._infos[info.id] = self._lists.judge(info)
            self._entry_points[info.id] = entry_point
        self._manager = pluggy.PluginManager("alignkit")
        self._manager.add_hookspecs(hookspecs)
        for kind, hook in hookspecs.KINDS.items():
            # Asked once here, before there is any plugin: history answers for each one that comes later.
            caller = getattr(self._manager.hook, hook)
            caller.call_historic(kwargs={"register": functools.partial(self._accept, kind)})

    # What there is

    def plugins(self) -> list[PluginInfo]:
        """Every plugin known, the core first; imports nothing, so that states are those of the moment."""
        return list(self._infos.values())

    def components(self, kind: str | None = None) -> list[ComponentRecord]:
        """The components of all loaded plugins, by kind and name.

        Args:
            kind: only these, for example "loss".
        """
        self.load()
        records = [record for record in self._all() if kind is None or record.kind == kind_of(kind)]
        order = list(hookspecs.KINDS)
        return sorted(records, key=lambda record: (order.index(record.kind), record.name, record.distribution))

    def provided_tensors(self) -> dict[str, str]:
        """The tensors that registered optimizers add to the vocabulary, with what they are."""
        return {name: doc for record in self._all() for name, doc in record.provides.items()}

    def metric_specs(self) -> dict[str, MetricSpec]:
        """What every number is that the core and the loaded plugins log."""
        return {**{name: spec for record in self._all() for name, spec in record.logs.items()}, **CORE_SPECS}

    def resolve(self, kind: str, spec: Any) -> ComponentRecord:
        """The component that a name, a configured component or an object stands for.

        Args:
            kind: for example "loss".
            spec: text of the grammar, a `Component`, or the function, class or instance itself.

        Raises:
            PluginError: for a name that is unknown or ambiguous, or an object that is no such component.
        """
        self.load()
        record = finding.resolve(self._all(), self.plugins(), kind_of(kind), spec)
        if reason := unknown_tensor(record, self.provided_tensors()):
            raise PluginError(reason)  # a function that was passed, since registered ones were checked
        return record

    def named_recipe(self, name: str) -> ComponentRecord | None:
        """A recipe that the metadata of one plugin names, with that plugin alone imported: to be shown, not run.

        None where no metadata names it, or that of several does: `resolve` then says what there is. It also sees what
        is registered and named nowhere, and so a run asks it.

        Args:
            name: of the recipe, without its distribution's.
        """
        owners = [info for info in self._infos.values() if name in info.recipes and info.state == "enabled"]
        if len({info.distribution for info in owners}) == 1 and self._open is None:
            for info in owners:
                if info.import_seconds is None:
                    self._load_one(info)
        found = [record for record in self._all() if (record.kind, record.name) == ("recipe", name)]
        return found[0] if len(found) == 1 else None

    def formats(self) -> list[ComponentRecord]:
        """The formats of data files that there are without loading every plugin: those of what is loaded, and of
        distributions whose metadata names theirs, which are imported alone.

        Raises:
            PluginError: in strict mode, when one of them is faulty.
        """
        for info in list(self._infos.values()):
            if info.formats and info.state == "enabled" and info.import_seconds is None and self._open is None:
                self._load_one(info)
        if self.strict and self._open is None:
            self.raise_failures()
        return [record for record in self._all() if record.kind == "format"]

    def build(self, kind: str, spec: Any) -> Any:
        """The component ready for use, with its hyper-parameters set.

        A dataclass or class gives an instance (components among its fields stay `Component`s), a loss a `BoundLoss`,
        another function itself with its keywords bound. What is an instance already is returned as it is.

        Args:
            kind: for example "optimizer".
            spec: as for `resolve`.

        Raises:
            PluginError: as `resolve` does, and for a hyper-parameter that is unknown, missing or refused.
        """
        self.load()
        return building.build(functools.partial(self.resolve, kind), kind_of(kind), spec)

    # Loading

    def load(self) -> None:
        """Load all enabled plugins that are not loaded yet, one by one; a faulty one is disabled alone.

        Raises:
            PluginError: in strict mode, when any plugin is faulty.
        """
        pending = [info for info in self._infos.values() if info.state == "enabled" and info.import_seconds is None]
        if pending and self._open is None:
            for info in pending:
                self._load_one(info)
            self._check_tensors()
            self._report()
        if self.strict and self._open is None:
            self.raise_failures()

    def register(self, plugin: object, name: str) -> PluginInfo:
        """Register a module, class or object with hooks, at any time; again under the same name replaces it.

        Args:
            plugin: what carries the hooks.
            name: the name to list it under, and to qualify its components with.

        Raises:
            PluginError: when it is faulty; what was registered before under the name then stays.
        """
        self.load()
        module = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__name__
        info = PluginInfo(name, "", name, module, path=getattr(plugin, "__file__", None) or "")
        before, kept = self._manager.unregister(name=info.id), self._records.pop(info.id, ())
        try:
            records, seconds = self._register(info, lambda: plugin)
            provided = self._provided_with(records)
            for reason in filter(None, (unknown_tensor(record, provided) for record in records)):
                self._manager.unregister(name=info.id)
                raise PluginError(reason)
        except (Exception, SystemExit) as error:
            if before is not None:
                self._register(info, lambda: before)
                self._records[info.id] = kept
            raise PluginError(_reason(error), where=f"plugin {name}", effect="It was not registered.") from error
        self._records[info.id] = records
        self._infos[info.id] = _with(info, records, seconds)
        return self._infos[info.id]

    def raise_failures(self) -> None:
        """Make an error of the plugins that were refused.

        Raises:
            PluginError: naming each one, chained to what the first one raised.
        """
        refused = [info for info in self._infos.values() if info.state in ("failed", "disabled")]
        if refused:
            reasons = "; ".join(f"{info.distribution}: {info.reason}" for info in refused)
            remedy = "repair, uninstall or block them (ALIGNKIT_BLOCK_PLUGINS), or unset ALIGNKIT_STRICT_PLUGINS"
            raise PluginError(f"faulty plugins: {reasons}", remedy=remedy) from self._errors.get(refused[0].id)

    def _load_one(self, info: PluginInfo) -> None:
        entry_point = self._entry_points[info.id]
        source = entry_point.load if entry_point else functools.partial(importlib.import_module, info.module)
        try:
            records, seconds = self._register(info, source)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin that calls sys.exit() must not end the program it was asked to join
            self._refuse(info, _reason(error), error)
        else:
            self._records[info.id] = records
            self._infos[info.id] = _with(info, records, seconds)

    def _register(self, info: PluginInfo, source: Callable[[], Any]) -> tuple[tuple[ComponentRecord, ...], float]:
        """Import a plugin and collect its components; whatever goes wrong, nothing of it stays behind."""
        if self._open is not None:
            raise PluginError(f"a plugin cannot be loaded while {self._open.info.distribution} registers")
        started = time.perf_counter()
        self._open = _Open(info)
        try:
            with guarded(info.distribution) if info.distribution != CORE else contextlib.nullcontext():
                plugin = source()
                self._check_hooks(plugin)
                self._manager.register(plugin, name=info.id)
            return tuple(self._open.records), time.perf_counter() - started
        except BaseException:
            if self._manager.has_plugin(info.id):
                self._manager.unregister(name=info.id)
            raise
        finally:
            self._open = None

    def _accept(self, kind: str, name: str, target: Any) -> None:
        """The `register` that hooks are given."""
        if self._open is None:
            raise PluginError(f"{kind} {name!r}: register() can be called only by the hook that received it")
        info, records = self._open.info, self._open.records
        record = check_component(kind, name, target, distribution=info.distribution, plugin=info.entry_point)
        if any((known.kind, known.name) == (kind, name) for known in records):
            raise PluginError(f"{kind} {name!r} is registered twice")
        records.append(record)

    def _check_hooks(self, plugin: Any) -> None:
        """Refuse what pluggy would pass over: a misspelled hook (its `check_pending` speaks only after hooks ran), and
        a hook without its marker."""
        hooks = hookspecs.KINDS.values()
        for attribute in dir(plugin):
            options = self._manager.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                if attribute in hooks:
                    raise PluginError(f"{attribute} is not marked as a hook", remedy="write @hookimpl above it")
                continue
            name = options.get("specname") or attribute
            if name not in hooks and not options.get("optionalhook"):
                raise PluginError(f"unknown hook {name!r}{did_you_mean(name, hooks)}")

    def _check_tensors(self) -> None:
        """Refuse losses whose tensors nobody makes; again after each refusal, which may take an optimizer away."""
        while True:
            provided = self.provided_tensors()
            reasons = ((id, unknown_tensor(record, provided)) for id, record in self._by_plugin())
            id, reason = next(((id, reason) for id, reason in reasons if reason), ("", ""))
            if not reason:
                return
            self._manager.unregister(name=id)
            del self._records[id]
            self._refuse(self._infos[id], reason, PluginError(reason))

    def _refuse(self, info: PluginInfo, reason: str, error: BaseException) -> None:
        self._errors[info.id] = error
        self._infos[info.id] = replace(info, state="failed", reason=reason, components=(), import_seconds=None)

    def _report(self) -> None:
        """One warning line for each plugin that is not there although nobody blocked it."""
        for info in self._infos.values():
            if info.state in ("failed", "disabled"):
                log.warning("plugin %s %s is disabled: %s", info.distribution, info.version, info.reason)
        for name in self._lists.unknown(self._infos.values()):
            log.warning("no plugin called %s is installed, though the block or allow list names it", name)

    def _provided_with(self, records: Iterable[ComponentRecord]) -> set[str]:
        return {*self.provided_tensors(), *(name for record in records for name in record.provides)}

    def _by_plugin(self) -> Iterator[tuple[str, ComponentRecord]]:
        return ((id, record) for id, records in self._records.items() for record in records)

    def _all(self) -> list[ComponentRecord]:
        return [record for _, record in self._by_plugin()]


def build(kind: str, spec: Any) -> Any:
    """A registered component, built: what a component that is configured with another one's name does.

    Args:
        kind: as in "loss", "reward".
        spec: text of the grammar, a `Component`, a class, a function, or the object itself.

    Raises:
        PluginError: unknown, ambiguous, broken or wrongly configured.
    """
    return default_host().build(kind, spec)


@functools.cache
def default_host() -> PluginHost:
    """The host of this process, made from the environment when first asked for."""
    return PluginHost()


def strict_from_environment() -> bool:
    """Whether ALIGNKIT_STRICT_PLUGINS asks that a faulty plugin be an error."""
    return os.environ.get("ALIGNKIT_STRICT_PLUGINS", "") not in ("", "0")


def _with(info: PluginInfo, records: tuple[ComponentRecord, ...], seconds: float) -> PluginInfo:
    return replace(info, components=tuple(f"{record.kind} {record.name}" for record in records), import_seconds=seconds)


def _reason(error: BaseException) -> str:
    """One line: an error of ours speaks for itself, any other with its type."""
    text = scrubbed(" ".join(str(error).split()))
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}".rstrip(": ")
