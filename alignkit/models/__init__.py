"""Policies and reward models: loading, adapters, named states, and the one forward pass."""

from alignkit.models.lora import LoRA
from alignkit.models.policy import Policy
from alignkit.models.reward_model import RewardModel

__all__ = ["LoRA", "Policy", "RewardModel"]
