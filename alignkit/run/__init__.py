"""Runs: durable pipelines, and what can be said of those on disk."""

from alignkit.run.handles import EvaluationHandle, GroupsHandle, Improved, PolicyHandle, RewardHandle
from alignkit.run.listing import compare_runs, free_run, list_runs, open_policy
from alignkit.run.recipes import evaluate_versions, run_recipe
from alignkit.run.run import Run

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
    "run_recipe",
]
