"""The work of each verb: given a folder to write into, do it and return the small results."""

from alignkit.run.verbs.data import TransformContext, annotate, keep_groups, sample, transform
from alignkit.run.verbs.evaluation import evaluate
from alignkit.run.verbs.improve import ImproveRequest, improve
from alignkit.run.verbs.models import (
    export,
    guess_parameters,
    import_policy,
    import_reward_model,
    reward_identity,
)
from alignkit.run.verbs.saying import command, summary
from alignkit.run.verbs.training import sft, train_reward

__all__ = [
    "ImproveRequest",
    "TransformContext",
    "annotate",
    "command",
    "evaluate",
    "export",
    "guess_parameters",
    "import_policy",
    "import_reward_model",
    "improve",
    "keep_groups",
    "reward_identity",
    "sample",
    "sft",
    "summary",
    "train_reward",
    "transform",
]
