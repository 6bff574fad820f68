"""The base of every metric, and the two forms that most of them have: a mean, a ratio of sums."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
import torchmetrics
from torch import Tensor

from alignkit.errors import NumericError
from alignkit.identity import class_code
from alignkit.metrics.specs import MetricSpec

M = TypeVar("M", bound=torchmetrics.Metric)


class Metric(torchmetrics.Metric):
    """A number with its state. The parameters of `update` are the contract, as a loss's are: their names say what the
    metric is given (see `alignkit.vocabulary` and `alignkit.metrics.offers`).

    Arguments of the constructor are its hyper-parameters: `use("my_metric", k=4)`. State made with `add_state` grows
    with each `update` (a micro-batch, a prompt), is reduced over processes by its `dist_reduce_fx`, and is saved with
    the stage. `compute` gives a number, or a mapping of named ones, logged as `<metric>_<name>` (the name "" is the
    metric's own); an empty mapping says that there is nothing to tell.

    To use one of torchmetrics' own, derive from both, this one first, and write an `update` that names what it needs.
    """

    spec: ClassVar[MetricSpec]
    """What the number is."""
    per_prompt: ClassVar[bool] = False
    """Whether an evaluation computes it prompt by prompt, and gives their mean with an interval."""
    answers_needed: ClassVar[int] = 1
    """How many answers to a prompt it needs."""
    full_state_update = False

    arguments: Mapping[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(cls.__dict__.get("spec"), MetricSpec):
            cls.higher_is_better = {"up": True, "down": False}.get(cls.spec.better or "")

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__new__(cls)
        object.__setattr__(
            made, "arguments", _arguments(cls, args, kwargs)
        )  # torch allows no attribute before its init
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return ()  # a copy brings its state with it; torchmetrics would pass the names of its attributes

    def add_state(
        self, name: str, default: Any, dist_reduce_fx: Any = None, persistent: bool = True
    ) -> None:  # saved, unless told otherwise
        super().add_state(name, default, dist_reduce_fx, persistent)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """Moves to another device keep the dtype: a model in bfloat16 must not make its counts bfloat16."""
        if self._dtype_convert:  # by `set_dtype`
            return super()._apply(fn, *args, **kwargs)

        def moved(state: Tensor) -> Tensor:
            return state.to(fn(state.new_empty(0)).device)

        dtype = self._dtype
        super()._apply(moved, *args, **kwargs)
        self._dtype = dtype
        return self

    @classmethod
    def asks_for(cls, *, optional: bool = False) -> tuple[str, ...]:
        """The names that `update` must be given, or those that it can do without (they have a default)."""
        parameters = list(inspect.signature(cls.update).parameters.values())[1:]
        return tuple(p.name for p in parameters if (p.default is not p.empty) == optional)

    def key(self) -> dict[str, Any]:
        """What identifies it in a stage's key: its class, the code of a class of the user's own, its arguments."""
        kind = type(self)
        return {
            "class": f"{kind.__module__}.{kind.__qualname__}",
            **class_code(kind),
            "arguments": dict(self.arguments),
        }


class Mean(Metric, torchmetrics.MeanMetric):
    """The mean of what it is given, weighted or not, in float64."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nan_strategy="disable", **kwargs)
        self.set_dtype(torch.float64)

    def compute(self) -> Any:
        return super().compute() if self.weight else {}


class Ratio(Metric):
    """A sum over another, in float64: what is averaged over tokens."""

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, values: Tensor, mask: Tensor) -> None:
        """Add what is under a mask: [responses, tokens] each."""
        shown = mask.bool()  # what it hides may be anything, NaN included
        self.total += values.detach().double().where(shown, 0).sum()
        self.count += mask.sum()

    def compute(self) -> Any:
        return self.total / self.count if self.count else {}


def values_of(name: str, metric: torchmetrics.Metric) -> dict[str, float]:
    """What a metric says, by the names that are logged; over all processes, so each of them must ask.

    Args:
        name: what the metric is called.
        metric: one that has been updated, or not (on a process that had nothing to do).

    Raises:
        NumericError: a value is NaN or infinite.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        found = metric.compute()
    named = found if isinstance(found, Mapping) else {"": found}
    values = {f"{name}_{part}" if part else name: float(value) for part, value in named.items()}
    bad = {part: value for part, value in values.items() if not torch.isfinite(torch.tensor(value))}
    if bad:
        raise NumericError(
            f"{bad} is no finite number", where=f"metric {name}", remedy="return {} where there is nothing to tell"
        )
    return values


def alone(metric: M) -> M:
    """The metric, as one that this process keeps for itself: it never waits for others."""
    metric.distributed_available_fn = _nobody_else
    return metric


def _arguments(kind: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor by name, defaults included."""
    signature = inspect.signature(kind)
    bound = signature.bind_partial(*args, **kwargs)
    bound.apply_defaults()
    extra = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    further = {key: value for name in extra for key, value in bound.arguments.pop(name, {}).items()}
    return {**bound.arguments, **further}


def _nobody_else() -> bool:
    return False
