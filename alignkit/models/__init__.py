"""Policies and reward models: loading, adapters, named states, and the one forward pass."""

import warnings

from alignkit.models.digest import model_digest
from alignkit.models.logprobs import response_logprobs
from alignkit.models.lora import LoRA
from alignkit.models.policy import Policy
from alignkit.models.reward_model import RewardModel
from alignkit.models.tiny import is_tiny

# peft asks transformers for an attribute that is being renamed; nothing that a user of this library can change.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

__all__ = ["LoRA", "Policy", "RewardModel", "is_tiny", "model_digest", "response_logprobs"]
