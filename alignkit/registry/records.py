"""What the host keeps of a component, and a loss with its hyper-parameters bound."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkit.hidden import MARK, hides, inline
from alignkit.metrics.specs import MetricSpec

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Hyperparameter:
    """One setting of a component.

    Args:
        default: its default; `REQUIRED` when there is none.
        annotation: the text of its type, empty when none is written.
    """

    default: Any = REQUIRED
    annotation: str = ""

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is REQUIRED

    def __str__(self) -> str:
        return "(required)" if self.required else repr(self.default)


@dataclass(frozen=True)
class ComponentRecord:
    """One registered component.

    Args:
        kind: "loss", "sampler", "optimizer", "reward", "annotator", "metric", "transform", "suite" or "recipe".
        name: its bare name.
        object: what was registered: a function or a class.
        distribution: who brought it; empty for an object that was passed and never registered.
        plugin: the entry point's name.
        signature: its parameters as text, without types.
        hyperparameters: its settings with their defaults.
        origin: `file:line` of its source, empty when unknown.
        doc: the first line of its docstring.
        tensors: for a loss, the tensors it asks for, in order; for a metric, what its `update` names.
        provides: for an optimizer, the tensors it adds to the vocabulary.
        logs: what the numbers are that it logs: an optimizer's `logs`, a metric's `spec`.
    """

    kind: str
    name: str
    object: Any
    distribution: str = ""
    plugin: str = ""
    signature: str = ""
    hyperparameters: Mapping[str, Hyperparameter] = field(default_factory=dict)
    origin: str = ""
    doc: str = ""
    tensors: tuple[str, ...] = ()
    provides: Mapping[str, str] = field(default_factory=dict)
    logs: Mapping[str, MetricSpec] = field(default_factory=dict)

    @property
    def qualified(self) -> str:
        """`distribution/name`, or the bare name when it was never registered."""
        return f"{self.distribution}/{self.name}" if self.distribution else self.name

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for listings; defaults are text, since they may be anything."""
        settings = {
            key: None if value.required else MARK if hides(key, value.default) else str(value)
            for key, value in self.hyperparameters.items()
        }
        listed = ("kind", "name", "distribution", "plugin", "origin", "doc")
        return {
            **{key: getattr(self, key) for key in listed},
            "signature": inline(self.signature),
            "qualified": self.qualified,
            "hyperparameters": settings,
            "tensors": list(self.tensors),
            "logs": {name: spec.to_json() for name, spec in self.logs.items()},
        }


@dataclass(frozen=True)
class BoundLoss:
    """A loss with its hyper-parameters bound: call it with the tensors of `tensor_names`, by keyword.

    Args:
        fn: the loss as its author wrote it.
        name: its name.
        hyperparameters: every hyper-parameter with the value in use, defaults included.
        tensor_names: the tensors it asks for, in order.
        optional: those of them that have a default and may be left out.
        distribution: who brought it; empty for a plain function.
    """

    fn: Callable[..., Any]
    name: str
    hyperparameters: Mapping[str, Any]
    tensor_names: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    distribution: str = ""

    def key(self) -> dict[str, Any]:
        """Hyper-parameters of a registered loss, whose distribution counts beside; of a plain function its code too."""
        arguments = dict(self.hyperparameters)
        return arguments if self.distribution else {**arguments, "function": self.fn}

    def __call__(self, **tensors: Any) -> Any:
        """The unreduced values: a tensor, or a dict of named terms.

        Args:
            tensors: by name, each of `tensor_names`.
        """
        return self.fn(**tensors, **self.hyperparameters)


def hyperparameters_of(kind: str, target: Any) -> dict[str, Hyperparameter]:
    """The settings of a component: fields of a dataclass, arguments of a class, keyword-only ones of a function.

    Args:
        kind: a recipe's settings are all its parameters but `run`.
        target: the class or function.
    """
    if inspect.isclass(target) and dataclasses.is_dataclass(target):
        return {
            f.name: Hyperparameter(_field_default(f), _annotation(f.type)) for f in dataclasses.fields(target) if f.init
        }
    parameters = list(inspect.signature(target).parameters.values())
    if kind == "recipe":
        parameters = parameters[1:]
    elif not inspect.isclass(target):
        parameters = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: Hyperparameter(p.default, _annotation(p.annotation)) for p in named}


def signature_of(name: str, target: Any, *, method: bool = False) -> str:
    """`name(a, b, *, c=1)`: without types, which the docs carry.

    Args:
        name: the component's name.
        target: the class or function.
        method: leave out the first parameter, `self`.
    """
    signature = inspect.signature(target)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()][method:]
    return name + str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def origin_of(target: Any) -> str:
    """`file:line` of a function or class; empty for what has no source, such as a notebook's cell already gone.

    Args:
        target: the class, function or callable object.
    """
    source = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
    try:
        return f"{inspect.getsourcefile(source)}:{inspect.getsourcelines(source)[1]}"
    except (OSError, TypeError):
        return ""


def _field_default(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return REQUIRED


def _annotation(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
