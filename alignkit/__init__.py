"""alignkit: align language models with methods that are plugins.

This face is for those who compose pipelines: runs, data, policies, rewards, what a run hands back, errors; and what a
method that starts its life in a script derives from. Those who write a plugin import from `alignkit.plugin`. The names
of these two, and of `alignkit.testing`, are what stays as it is; every other module may change.

Importing this package imports no torch: every name is resolved when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit._lazy import face
from alignkit._version import __version__ as __version__

_HOMES = {
    "alignkit.errors": "AlignkitError ConfigError DataError PluginError",
    "alignkit.groups": "Groups Message",
    "alignkit.registry.grammar": "use",
    "alignkit.registry.hookspecs": "hookimpl",
    "alignkit.data": "read_groups",
    "alignkit.models": "LoRA Policy RewardModel",
    "alignkit.sampling": "Sampler",
    "alignkit.rewards": "FunctionReward Piecewise Reward WeightedSum",
    "alignkit.annotators": "Annotator",
    "alignkit.optimizers": "Batch PolicyOptimizer Term",
    "alignkit.stages": "EvaluationHandle GroupsHandle Improved PolicyHandle RewardHandle",
    "alignkit.comparison": "Comparison compare merge_comparisons",
    "alignkit.run": "Run compare_runs evaluate_versions free_run list_runs open_policy run_recipe",
}

if TYPE_CHECKING:  # written out for editors and type checkers, `as` marks what is handed on
    from alignkit.annotators import Annotator as Annotator
    from alignkit.comparison import Comparison as Comparison
    from alignkit.comparison import compare as compare
    from alignkit.comparison import merge_comparisons as merge_comparisons
    from alignkit.data import read_groups as read_groups
    from alignkit.errors import AlignkitError as AlignkitError
    from alignkit.errors import ConfigError as ConfigError
    from alignkit.errors import DataError as DataError
    from alignkit.errors import PluginError as PluginError
    from alignkit.groups import Groups as Groups
    from alignkit.groups import Message as Message
    from alignkit.models import LoRA as LoRA
    from alignkit.models import Policy as Policy
    from alignkit.models import RewardModel as RewardModel
    from alignkit.optimizers import Batch as Batch
    from alignkit.optimizers import PolicyOptimizer as PolicyOptimizer
    from alignkit.optimizers import Term as Term
    from alignkit.registry.grammar import use as use
    from alignkit.registry.hookspecs import hookimpl as hookimpl
    from alignkit.rewards import FunctionReward as FunctionReward
    from alignkit.rewards import Piecewise as Piecewise
    from alignkit.rewards import Reward as Reward
    from alignkit.rewards import WeightedSum as WeightedSum
    from alignkit.run import Run as Run
    from alignkit.run import compare_runs as compare_runs
    from alignkit.run import evaluate_versions as evaluate_versions
    from alignkit.run import free_run as free_run
    from alignkit.run import list_runs as list_runs
    from alignkit.run import open_policy as open_policy
    from alignkit.run import run_recipe as run_recipe
    from alignkit.sampling import Sampler as Sampler
    from alignkit.stages import EvaluationHandle as EvaluationHandle
    from alignkit.stages import GroupsHandle as GroupsHandle
    from alignkit.stages import Improved as Improved
    from alignkit.stages import PolicyHandle as PolicyHandle
    from alignkit.stages import RewardHandle as RewardHandle
else:  # hidden from them, since a `__getattr__` would make any misspelled name a name
    __getattr__, __dir__ = face(__name__, _HOMES)
    __all__ = ["__version__", *__dir__()]
