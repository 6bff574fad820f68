"""alignkit: align language models with methods that are plugins.

Importing this package imports no torch: every public name is resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alignkit._version import __version__
from alignkit.registry.hookspecs import hookimpl

_LAZY = {
    "AlignkitError": "alignkit.errors",
    "ConfigError": "alignkit.errors",
    "DataError": "alignkit.errors",
    "NumericError": "alignkit.errors",
    "PluginError": "alignkit.errors",
    "use": "alignkit.registry.grammar",
    "Groups": "alignkit.groups",
    "Message": "alignkit.groups",
    "Batch": "alignkit.optimizers",
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
    from alignkit.groups import Groups, Message
    from alignkit.models import LoRA, Policy, RewardModel
    from alignkit.optimizers import Batch, PolicyOptimizer, Stream, Term
    from alignkit.registry.grammar import use
    from alignkit.rewards import Piecewise, Reward, WeightedSum
    from alignkit.run import Run
    from alignkit.sampling import Sampler


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
