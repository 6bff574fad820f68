"""The state of metrics as tensors by name: what a stage keeps, and what another process goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from alignkit.errors import DataError

FILE = "metrics.safetensors"
"""Beside the results of a stage."""


def states_of(metrics: Mapping[str, Metric]) -> dict[str, Tensor]:
    """Every state as one tensor, called `<metric>.<state>`; what grows by lists is put together.

    Args:
        metrics: by name.
    """
    out: dict[str, Tensor] = {}
    for name, metric in metrics.items():
        for state, value in metric.metric_state.items():
            out[f"{name}.{state}"] = _whole(value).detach().cpu().contiguous()
    return out


def _whole(value: Tensor | list[Tensor]) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return dim_zero_cat(value) if value else torch.zeros(0)


def restore(metrics: Mapping[str, Metric], states: Mapping[str, Tensor]) -> None:
    """Put states back into metrics made with the same arguments.

    Args:
        metrics: by name.
        states: as `states_of` gave them.

    Raises:
        DataError: a state is missing, or has another shape.
    """
    for name, metric in metrics.items():
        for state, now in metric.metric_state.items():
            found = states.get(f"{name}.{state}")
            if found is None or (isinstance(now, Tensor) and now.shape != found.shape):
                what = "is missing" if found is None else f"has the shape {list(found.shape)}"
                raise DataError(
                    f"the state {name}.{state} {what}", where="metrics", remedy="make the metric as it was made then"
                )
            grows = isinstance(now, list)
            setattr(metric, state, ([found] if len(found) else []) if grows else found.to(metric.device))
        metric._update_count = 1  # torchmetrics' own mark of a metric that was fed; nothing public sets it
        metric._computed = None


def save(folder: Path, states: Mapping[str, Tensor]) -> None:
    """Write states into a stage's folder; nothing where there are none."""
    from safetensors.torch import save_file

    if states:
        save_file(dict(states), folder / FILE)


def load(folder: Path) -> dict[str, Tensor]:
    """The states that a stage kept."""
    from safetensors.torch import load_file

    return load_file(folder / FILE) if (folder / FILE).exists() else {}
