"""alignkit: align language models with methods that are plugins.

Importing this package imports no torch: every public name is resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alignkit.plugins.hookspecs import hookimpl

__version__ = "0.1.0"

_LAZY = {
    "AlignkitError": "alignkit.errors",
    "ConfigError": "alignkit.errors",
    "DataError": "alignkit.errors",
    "NumericError": "alignkit.errors",
    "PluginError": "alignkit.errors",
    "use": "alignkit.plugins.grammar",
    "Groups": "alignkit.types",
    "Message": "alignkit.types",
    "Batch": "alignkit.types",
    "read_groups": "alignkit.data",
    "Policy": "alignkit.models",
    "RewardModel": "alignkit.models",
    "LoRA": "alignkit.models",
    "Sampler": "alignkit.sampling",
    "PolicyOptimizer": "alignkit.optimizers",
    "Term": "alignkit.optimizers",
    "Stream": "alignkit.optimizers",
    "Reward": "alignkit.rewards",
    "Piecewise": "alignkit.rewards",
    "WeightedSum": "alignkit.rewards",
    "Run": "alignkit.run",
}

__all__ = ["__version__", "hookimpl", *sorted(_LAZY)]

if TYPE_CHECKING:
    from alignkit.data import read_groups
    from alignkit.errors import AlignkitError, ConfigError, DataError, NumericError, PluginError
    from alignkit.models import LoRA, Policy, RewardModel
    from alignkit.optimizers import PolicyOptimizer, Stream, Term
    from alignkit.plugins.grammar import use
    from alignkit.rewards import Piecewise, Reward, WeightedSum
    from alignkit.run import Run
    from alignkit.sampling import Sampler
    from alignkit.types import Batch, Groups, Message


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
