"""Runs: durable pipelines, and what can be said of those on disk."""

from alignkit.run.listing import compare_runs, free_run, list_runs, open_policy, version_name
from alignkit.run.push import push
from alignkit.run.recipes import evaluate_versions, run_recipe
from alignkit.run.run import Run
from alignkit.stages.handles import EvaluationHandle, GroupsHandle, Improved, PolicyHandle, RewardHandle

__all__ = [
    "EvaluationHandle",
    "GroupsHandle",
    "Improved",
    "PolicyHandle",
    "RewardHandle",
    "Run",
    "compare_runs",
    "evaluate_versions",
    "free_run",
    "list_runs",
    "open_policy",
    "push",
    "run_recipe",
    "version_name",
]
