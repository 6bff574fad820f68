"""Policies and reward models: loading, adapters, named states, and the one forward pass."""

import warnings

from alignkit.models.lora import LoRA
from alignkit.models.policy import Policy
from alignkit.models.reward_model import RewardModel

# peft asks transformers for an attribute that is being renamed; nothing that a user of this library can change.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

__all__ = ["LoRA", "Policy", "RewardModel"]
