"""Stages: each verb of a run as one declaration, a file each."""

from alignkit.stages.annotate import Annotate
from alignkit.stages.base import DERIVED, NO_EFFECT, Context, Cost, Made, Stage, component, rows_of
from alignkit.stages.evaluate import Evaluate
from alignkit.stages.export import Export
from alignkit.stages.groups import KeepGroups
from alignkit.stages.handles import EvaluationHandle, GroupsHandle, Handle, Improved, PolicyHandle, RewardHandle
from alignkit.stages.improve import Improve
from alignkit.stages.place import Place
from alignkit.stages.policy import ImportPolicy
from alignkit.stages.reward_model import ImportRewardModel
from alignkit.stages.sample import Sample
from alignkit.stages.score import Score
from alignkit.stages.sft import SFT
from alignkit.stages.train_reward import TrainReward
from alignkit.stages.transform import Transform, TransformContext

CORE = (
    ImportPolicy,
    SFT,
    Sample,
    Annotate,
    TrainReward,
    ImportRewardModel,
    Improve,
    Transform,
    Score,
    Evaluate,
    KeepGroups,
    Export,
)
"""The verbs of the core."""

__all__ = [
    "CORE",
    "DERIVED",
    "NO_EFFECT",
    "SFT",
    "Annotate",
    "Context",
    "Cost",
    "Evaluate",
    "EvaluationHandle",
    "Export",
    "GroupsHandle",
    "Handle",
    "ImportPolicy",
    "ImportRewardModel",
    "Improve",
    "Improved",
    "KeepGroups",
    "Made",
    "Place",
    "PolicyHandle",
    "RewardHandle",
    "Sample",
    "Score",
    "Stage",
    "TrainReward",
    "Transform",
    "TransformContext",
    "component",
    "rows_of",
]
