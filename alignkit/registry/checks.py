"""What a component must look like to be registered, kind by kind; every refusal says what to write instead."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from alignkit.errors import PluginError, did_you_mean
from alignkit.metrics.offers import OFFERS, refusal
from alignkit.metrics.specs import MetricSpec
from alignkit.registry.grammar import RESERVED
from alignkit.registry.hookspecs import KINDS
from alignkit.registry.records import ComponentRecord, hyperparameters_of, origin_of, signature_of
from alignkit.vocabulary import KEEP, PREPARE, VOCABULARY, not_offered


def kind_of(kind: str) -> str:
    """The kind in the singular; the plural of the hook ("losses") is understood.

    Args:
        kind: "loss" or "losses", "sampler" or "samplers", and so on.

    Raises:
        PluginError: when there is no such kind.
    """
    for singular, hook in KINDS.items():
        if kind in (singular, hook.removeprefix("register_")):
            return singular
    raise PluginError(f"no kind of component is called {kind!r}{did_you_mean(kind, KINDS)}")


def check_component(kind: str, name: str, target: Any, *, distribution: str = "", plugin: str = "") -> ComponentRecord:
    """Check a component and describe it.

    Args:
        kind: the kind in the singular.
        name: the name it wants.
        target: the function or class.
        distribution: who brings it.
        plugin: the entry point's name.

    Raises:
        PluginError: when it is not what its kind requires.
    """
    where = f"{kind} {name}"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in RESERVED:
        raise PluginError(f"{kind} {name!r}: not a name", remedy="use letters, digits and underscores")
    if not callable(target):
        raise PluginError(
            f"{type(target).__name__} is not callable", where=where, remedy="register a function or class"
        )
    tensors, provides = _CHECKS.get(kind, _check_nothing)(target, where)
    return ComponentRecord(
        kind=kind,
        name=name,
        object=target,
        distribution=distribution,
        plugin=plugin,
        signature=_signature(kind, name, target, where),
        hyperparameters=_readable(hyperparameters_of, kind, target, where),
        origin=origin_of(target),
        doc=target.doc if kind == "format" else next(iter((inspect.getdoc(target) or "").splitlines()), ""),
        tensors=tensors,
        provides=provides,
        logs=_logs(kind, name, target, where),
    )


def unknown_tensor(loss: ComponentRecord, provided: Iterable[str]) -> str:
    """The reason why a loss or a metric cannot be served, or an empty string: a tensor that nobody makes.

    Args:
        loss: the record of the loss or the metric.
        provided: the tensors that registered optimizers add to the vocabulary.
    """
    known = {*VOCABULARY, *provided}
    if loss.kind == "metric":
        reason = refusal(loss.tensors, known)
        return f"metric {loss.name} {reason}" if reason else ""
    for name in loss.tensors:
        if name not in known:
            return f"loss {loss.name} asks for the unknown tensor {name!r}{did_you_mean(name, known)}"
    return ""


Checked = tuple[tuple[str, ...], Mapping[str, str]]


def _readable(describe: Callable[[str, Any], Any], first: str, target: Any, where: str) -> Any:
    try:
        return describe(first, target)
    except (TypeError, ValueError) as error:
        raise PluginError(f"its signature cannot be read ({error})", where=where) from error


def _check_nothing(target: Any, where: str) -> Checked:
    return (), {}


def _check_loss(target: Any, where: str) -> Checked:
    parameters = _readable(lambda _, fn: inspect.signature(fn), "", target, where).parameters.values()
    if inspect.isclass(target):
        raise PluginError("a loss is a function, not a class", where=where)
    tensors = []
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise PluginError(f"{p} hides what the loss needs", where=where, remedy="name each tensor it asks for")
        if p.kind is p.POSITIONAL_ONLY:
            raise PluginError("tensors are passed by name", where=where, remedy="remove the / from its parameters")
        if p.kind is p.POSITIONAL_OR_KEYWORD:
            if p.default is not p.empty and p.name not in VOCABULARY:
                remedy = "write * before the hyper-parameters, they are keyword-only"
                raise PluginError(f"{p.name!r} is not a tensor", where=where, remedy=remedy)
            tensors.append(p.name)
    if not tensors:
        raise PluginError("asks for no tensor", where=where, remedy=f"its positional parameters name them: {_some()}")
    return tuple(tensors), {}


def _some() -> str:
    return ", ".join([*list(VOCABULARY)[:4], "…"])


def _check_frozen_dataclass(target: Any, where: str, module: str, base: str) -> None:
    parent = getattr(importlib.import_module(module), base)
    if not (inspect.isclass(target) and issubclass(target, parent)):
        raise PluginError(f"not a class derived from {module}.{base}", where=where)
    # The parent's decorator does not reach a subclass: its own fields would silently be class attributes.
    parameters = vars(target).get("__dataclass_params__")
    if not dataclasses.is_dataclass(target) or parameters is None or not parameters.frozen:
        remedy = f"write @dataclass(frozen=True) above class {target.__name__}"
        raise PluginError("its hyper-parameters must be the fields of a frozen dataclass", where=where, remedy=remedy)
    if inspect.isabstract(target):
        raise PluginError(f"lacks {', '.join(sorted(target.__abstractmethods__))}", where=where)


def _check_sampler(target: Any, where: str) -> Checked:
    _check_frozen_dataclass(target, where, "alignkit.sampling", "Sampler")
    return (), {}


def _check_optimizer(target: Any, where: str) -> Checked:
    _check_frozen_dataclass(target, where, "alignkit.optimizers", "PolicyOptimizer")
    provides = getattr(target, "provides", None) or {}
    if not isinstance(provides, Mapping) or not all(
        isinstance(part, str) for pair in provides.items() for part in pair
    ):
        raise PluginError("`provides` must map names of tensors to what they are", where=where)
    for method, given, offers in (
        ("prepare", ("self", "groups", "state"), PREPARE),
        ("keep", ("self", "groups"), KEEP),
    ):
        _check_asked(method, getattr(target, method), len(given), offers, where)
    return (), dict(provides)


def _check_stage(target: Any, where: str) -> Checked:
    _check_frozen_dataclass(target, where, "alignkit.stages", "Stage")
    if not target.verb:
        raise PluginError("it does not say what its verb is called", where=where, remedy="set the class attribute verb")
    for method in ("work", "handle"):
        if not any(method in vars(base) for base in target.__mro__[: target.__mro__.index(_stage_base())]):
            raise PluginError(f"it has no {method}", where=where, remedy=f"define {method}")
    return (), {}


def _stage_base() -> Any:
    return importlib.import_module("alignkit.stages").Stage


def _check_asked(method: str, function: Any, given: int, offers: Mapping[str, Any], where: str) -> None:
    """Refuse a method that asks for what the engine does not give; `(self, *args, **kwargs)` asks for nothing.

    Args:
        method: "prepare" or "keep".
        function: as the class has it.
        given: its first parameters, which are passed by place.
        offers: what else there is, by name.
        where: named in errors.
    """
    parameters = list(_readable(lambda _, fn: inspect.signature(fn), "", function, where).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters[:given]):
        return
    if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters[:given]) < given:
        what = f"{method} takes {given - 1} parameters by place"
        raise PluginError(what, where=where, remedy=f"write {method}(self, groups{', state' if given > 2 else ''}, …)")
    parameters = parameters[given:]
    remedy = f"name parameters from {', '.join(offers)}"
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise PluginError(f"{method} has {p}, which hides what it needs", where=where, remedy=remedy)
    if reason := not_offered(method, [p.name for p in parameters], offers):
        raise PluginError(reason, where=where, remedy=remedy)


def _check_metric(target: Any, where: str) -> Checked:
    _check_metric_class(target, where)
    names = []
    for p in list(_readable(lambda _, fn: inspect.signature(fn), "", target.update, where).parameters.values())[1:]:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise PluginError(f"{p} hides what update needs", where=where, remedy="name each thing it asks for")
        if p.kind is p.POSITIONAL_ONLY:
            raise PluginError("tensors are passed by name", where=where, remedy="remove the / from its parameters")
        names.append(p.name)
    if not names:
        remedy = f"its parameters name what it needs: {_some()}, {', '.join(OFFERS)}"
        raise PluginError("update asks for nothing", where=where, remedy=remedy)
    return tuple(names), {}


def _check_metric_class(target: Any, where: str) -> None:
    parent = importlib.import_module("alignkit.metrics").Metric
    if not (inspect.isclass(target) and issubclass(target, parent)):
        raise PluginError("not a class derived from alignkit.metrics.Metric", where=where)
    if inspect.isabstract(target):
        raise PluginError(f"lacks {', '.join(sorted(getattr(target, '__abstractmethods__', ())))}", where=where)
    if not isinstance(getattr(target, "spec", None), MetricSpec):
        remedy = "give it a class attribute spec = MetricSpec(…)"
        raise PluginError("says nowhere what it is", where=where, remedy=remedy)


def _logs(kind: str, name: str, target: Any, where: str) -> dict[str, MetricSpec]:
    """What the numbers are that a component logs."""
    if kind == "metric":
        return {name: target.spec}
    logs = (getattr(target, "logs", None) or {}) if kind == "optimizer" else {}
    if not isinstance(logs, Mapping) or not all(isinstance(spec, MetricSpec) for spec in logs.values()):
        raise PluginError("`logs` must map names to a MetricSpec each", where=where)
    return dict(logs)


def _signature(kind: str, name: str, target: Any, where: str) -> str:
    """That of a metric is its `update`'s, as that of a loss is its own: what it asks for."""
    if kind == "metric":
        return str(
            _readable(lambda first, update: signature_of(first, update, method=True), name, target.update, where)
        )
    return str(_readable(signature_of, name, target, where))


def _check_recipe(target: Any, where: str) -> Checked:
    parameters = list(_readable(lambda _, fn: inspect.signature(fn), "", target, where).parameters)
    if not parameters or parameters[0] != "run":
        raise PluginError("the first parameter of a recipe is `run`", where=where)
    return (), {}


def _check_format(target: Any, where: str) -> Checked:
    parent = importlib.import_module("alignkit.data.row_format").RowFormat
    if not isinstance(target, parent):
        raise PluginError("not an alignkit.plugin.RowFormat", where=where, remedy="register an instance, not a class")
    if target.name != where.removeprefix("format "):
        raise PluginError(f"it calls itself {target.name!r}", where=where, remedy="register it under its name")
    if not target.needs or not all(isinstance(need, str) and need for need in (*target.needs, *target.may)):
        raise PluginError("it names no column that it needs", where=where, remedy='give needs=("prompt", …)')
    if not target.fits(target.example):
        raise PluginError("its example is no row of it", where=where, remedy="give an example with all that it needs")
    return (), {}


_CHECKS: dict[str, Callable[[Any, str], Checked]] = {
    "loss": _check_loss,
    "sampler": _check_sampler,
    "optimizer": _check_optimizer,
    "metric": _check_metric,
    "recipe": _check_recipe,
    "stage": _check_stage,
    "format": _check_format,
}
