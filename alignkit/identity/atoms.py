"""Plain forms of what holds nothing else: numbers, arrays, what counts by its name; and the attributes of objects."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import hashlib
import inspect
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

SHOWN = (
    *("rich", "tqdm", "logging", "warnings", "loguru", "structlog", "wandb", "mlflow"),
    *("tensorboard", "tensorboardX", "IPython", "ipywidgets"),
)
"""Packages that show something and compute nothing: what they are set to changes no result."""

HANDLES = ("lock", "RLock", "ThreadPoolExecutor", "ProcessPoolExecutor")
"""Classes, not the user's own, of which nothing but the name counts: locks and pools."""

VOLATILE = frozenset(("_original_object_hash",))
"""Attributes that differ from process to process: transformers keeps Python's hash of a configuration."""

STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")


def number(value: Any, form: Callable[[Any], Any]) -> Any:
    """A number or bytes that JSON cannot hold as they are."""
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) is complex:
        return {"complex": repr(value)}
    if type(value) in (bytes, bytearray):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    return {"name": repr(value)} if value is Ellipsis or value is NotImplemented else None


def array(value: Any, form: Callable[[Any], Any]) -> Any:
    """A NumPy array or a tensor by type, shape and content."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and type(value) is numpy.ndarray:
        if value.dtype.hasobject:
            return {"array": form(value.tolist())}
        content = hashlib.sha256(numpy.ascontiguousarray(value).tobytes()).hexdigest()
        return {"array": str(value.dtype), "shape": list(value.shape), "bytes": content}
    if torch is not None and isinstance(value, torch.Tensor):
        return _tensor(value, torch)
    return None


def _tensor(value: Any, torch: Any) -> Any:
    shape = {"tensor": str(value.dtype), "shape": list(value.shape)}
    if value.is_meta:
        return shape
    dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
    raw = dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return {**shape, "bytes": hashlib.sha256(raw).hexdigest()}


def still(value: Any, own: bool) -> Any:
    """What counts by name alone: loggers, locks, the standard streams, the environment, typing's constructs."""
    kind = type(value)
    if isinstance(value, logging.Logger):
        return {"logger": value.name}
    if value is os.environ:
        return {"name": "os.environ"}
    stream = next((name for name in STREAMS if value is getattr(sys, name)), None)
    if stream:
        return {"name": f"sys.{stream.strip('_')}"}
    if kind.__module__ in ("typing", "types") and kind.__name__ not in ("SimpleNamespace", "GeneratorType"):
        return {"type": shown(value)}
    if not own and (kind.__module__.partition(".")[0] in SHOWN or kind.__name__ in HANDLES):
        return {"name": f"{kind.__module__}.{kind.__qualname__}"}
    return None


def in_context(variable: contextvars.ContextVar[Any]) -> Any:
    """What a variable of the context holds here; None where that is nothing."""
    try:
        return variable.get()  # given an argument, it would not say its own default
    except LookupError:
        return None


def shown(value: Any) -> str:
    """The `repr` of a construct, the same in every process and for a script and its import."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value)).replace("__main__.", "")


def asks_nothing(method: Callable[..., Any]) -> bool:
    """Whether a method can be called without arguments."""
    try:
        inspect.signature(method).bind()
    except TypeError:
        return False
    except ValueError:  # written in C: nothing is known of it
        return True
    return True


def vars_of(value: Any) -> Mapping[str, Any]:
    """The attributes of an object that are its own rather than its class's."""
    return getattr(value, "__dict__", {})


def fields_of(value: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The state of a dataclass, and what a frozen one notes in itself as it is used: attributes beside its fields, and
    fields that are not compared. None of one that is not frozen, whose attributes are anybody's to set."""
    fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    further = {k: v for k, v in lasting(value, vars_of(value)).items() if k not in fields}
    if not value.__dataclass_params__.frozen:
        return {**fields, **further}, None
    loose = {f.name: fields.pop(f.name) for f in dataclasses.fields(value) if not f.compare}
    return fields, {**loose, **further}


def lasting(value: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of an object that are its own doing: no cached property, no hash of the process."""
    cached = functools.cached_property
    kept = {k: v for k, v in state.items() if not isinstance(getattr(type(value), str(k), None), cached)}
    return {k: v for k, v in kept.items() if k not in VOLATILE}
