"""From a component and its hyper-parameters to the object that is used."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from alignkit.errors import AlignkitError, ConfigError, PluginError, did_you_mean
from alignkit.fields import check_value
from alignkit.registry.grammar import Component, parse
from alignkit.registry.records import BoundLoss, ComponentRecord

# The types a value of the grammar can be checked against without resolving annotations.
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


def build(resolve: Callable[[Any], ComponentRecord], kind: str, spec: Any) -> Any:
    """The object that `spec` stands for, with its hyper-parameters set.

    Args:
        resolve: finds the record of a component of this kind.
        kind: the kind in the singular.
        spec: text, a `Component`, a function, a class or an instance.

    Raises:
        PluginError: for a hyper-parameter that is unknown, missing or refused.
    """
    if isinstance(spec, BoundLoss):
        return spec
    if isinstance(spec, str):
        spec = parse(spec)
    record = resolve(spec)
    params = spec.params if isinstance(spec, Component) else {}
    if kind == "loss":
        return _bind_loss(record, _checked(record, params))
    if isinstance(spec, (Component, ComponentRecord)) or inspect.isclass(spec):
        return _instantiate(record, _checked(record, params))
    return spec


def _checked(record: ComponentRecord, params: Mapping[str, Any]) -> dict[str, Any]:
    where = f"{record.kind} {record.qualified}"
    known = record.hyperparameters
    listing = ", ".join(f"{key}={value}" for key, value in known.items())
    effect = f"It takes {listing}." if listing else "It takes no hyper-parameters."
    for key, value in params.items():
        if key not in known:
            raise PluginError(
                f"no hyper-parameter is called {key!r}{did_you_mean(key, known)}", where=where, effect=effect
            )
        _check_type(where, key, known[key].annotation, value)
    missing = [key for key, value in known.items() if value.required and key not in params]
    if missing:
        raise PluginError(f"{', '.join(missing)} must be given", where=where, effect=effect)
    return dict(params)


def _check_type(where: str, key: str, annotation: str, value: Any) -> None:
    """A value of the wrong simple type; a bare word, which reads as a component, where text is meant."""
    wanted = annotation.removesuffix(" | None")
    types = _TYPES.get(wanted)
    if value is None and wanted != annotation:
        return
    if types is None or isinstance(value, float):
        try:
            check_value(key, value, annotation, where)
        except ConfigError as error:
            raise PluginError(error.what, where=where, remedy=error.remedy) from error
    if types is None:
        return
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        shown = str(value) if isinstance(value, Component) else repr(value)
        remedy = f"write {key}='{value}'" if wanted == "str" and isinstance(value, Component) else ""
        raise PluginError(f"{key} is {annotation}, not {shown}", where=where, remedy=remedy)


def _bind_loss(record: ComponentRecord, params: dict[str, Any]) -> BoundLoss:
    defaults = {key: value.default for key, value in record.hyperparameters.items() if not value.required}
    parameters = inspect.signature(record.object).parameters
    optional = (name for name in record.tensors if parameters[name].default is not inspect.Parameter.empty)
    return BoundLoss(
        fn=record.object,
        name=record.name,
        hyperparameters={**defaults, **params},
        tensor_names=record.tensors,
        optional=frozenset(optional),
        distribution=record.distribution,
    )


def _instantiate(record: ComponentRecord, params: dict[str, Any]) -> Any:
    if not inspect.isclass(record.object):
        return functools.partial(record.object, **params) if params else record.object
    try:
        return record.object(**params)
    except AlignkitError as error:
        raise PluginError(str(error), where=f"{record.kind} {record.qualified}") from error
    except (TypeError, ValueError) as error:
        raise PluginError(str(error), where=f"{record.kind} {record.qualified}") from error
    except (Exception, SystemExit) as error:
        what = f"cannot be made: {type(error).__name__}: {error}"
        raise PluginError(what, where=f"{record.kind} {record.qualified}") from error
