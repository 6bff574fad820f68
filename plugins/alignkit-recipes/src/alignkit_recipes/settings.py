"""What the recipes set for the two kinds of model that they know: an instruct model of 100 to 400 million parameters
with low-rank adapters ("small"), and the byte-level model of the tests, all of whose weights are trained ("tiny").

The papers' numbers, which are the optimizers' defaults, are for models a hundred times larger and for thousands of
steps; these were found by short runs on the embedded task. What a user writes goes before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit import PolicyHandle, Run
from alignkit.plugin import Component


@dataclass(frozen=True)
class Model:
    """How a kind of model is trained and sampled.

    Args:
        lora: rank of its adapter; 0 trains all weights.
        temperature: of sampling, for improvement and evaluation.
        reward_learning_rate: of a reward model that starts from it.
        reward_epochs: of that reward model.
        reward_batch_size: comparisons of a step of it.
        sft_learning_rate: of supervised fine-tuning.
        sft_epochs: of supervised fine-tuning.
        layers: how many of the last layers a loop of several models adapts; None: all. What lies below is then read
            once for a text, by policy and reward models together.
        used_at: the temperature at which such a model is used, and at which `llama2` evaluates its versions.
    """

    lora: int
    temperature: float
    reward_learning_rate: float
    reward_epochs: int
    reward_batch_size: int
    sft_learning_rate: float
    sft_epochs: int
    layers: int | None
    used_at: float


MODELS = {
    "small": Model(16, 0.8, 5e-4, 2, 8, 5e-4, 2, layers=8, used_at=0.2),
    "tiny": Model(0, 1.0, 2e-3, 6, 16, 5e-3, 3, layers=None, used_at=1.0),
}
"""SmolLM2's card samples at 0.2; it learns from samples at 0.8, where its answers to a prompt differ."""

_PAIRS_SMALL = {"batch_size": 8, "epochs": 2, "learning_rate": 3e-4, "weight_decay": 0.0}
_PAIRS_TINY = {"batch_size": 16, "epochs": 4, "learning_rate": 4e-3, "weight_decay": 0.0}
_GROUPS_SMALL = {
    "samples_per_prompt": 4,
    "rounds": 4,
    "prompts_per_round": 16,
    "batch_size": 8,
    "epochs": 1,
    "learning_rate": 5e-4,
    "weight_decay": 0.0,
}
_GROUPS_TINY = {
    "samples_per_prompt": 8,
    "rounds": 8,
    "prompts_per_round": 16,
    "batch_size": 8,
    "epochs": 1,
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
}

OPTIMIZERS: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "rejection_sampling": {
            "samples_per_prompt": 6,
            "batch_size": 16,
            # With two, what is declined is told by form: prompts that only sound unsafe are declined nearly as often.
            "epochs": 8,
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
        },
        "ppo": {
            "rounds": 3,
            "prompts_per_round": 72,
            "batch_size": 16,
            "epochs": 2,
            # At 5e-4 the first round moves by 0.3 nats a token, ten times what is meant, and on what is noise.
            "learning_rate": 2e-4,
            "value_learning_rate": 1e-3,
            "kl_coef": 0.02,
            "whiten_scores": True,
            "missing_eos_penalty": 1.0,
        },
        "dpo": _PAIRS_SMALL,
        "kto": _PAIRS_SMALL,
        "online_dpo": {**_GROUPS_SMALL, "samples_per_prompt": 2, "learning_rate": 3e-4},
        "grpo": _GROUPS_SMALL,
        "dapo": _GROUPS_SMALL,
        "rloo": _GROUPS_SMALL,
        "reinforce_pp": {**_GROUPS_SMALL, "samples_per_prompt": 1, "prompts_per_round": 32},
        "rest": {"samples_per_prompt": 6, "batch_size": 16, "learning_rate": 5e-4, "weight_decay": 0.0},
        "hir": {
            "batch_size": 16,
            "epochs": 2,
            "learning_rate": 3e-4,
            "weight_decay": 0.0,
            # A fifth of the mass on 49,152 tokens, in a few steps of a high rate, is noise at temperature 0.8.
            "loss": "label_smoothed_nll(label_smoothing=0.0)",
        },
    },
    "tiny": {
        "rejection_sampling": {
            "samples_per_prompt": 8,
            "batch_size": 16,
            "epochs": 3,
            "learning_rate": 5e-3,
            "weight_decay": 0.0,
        },
        "ppo": {
            "rounds": 4,
            "prompts_per_round": 32,
            "batch_size": 16,
            "epochs": 2,
            "learning_rate": 2e-3,
            "value_learning_rate": 1e-2,
            "kl_coef": 0.01,
            "whiten_scores": True,
        },
        "dpo": _PAIRS_TINY,
        "kto": {**_PAIRS_TINY, "batch_size": 8},
        "online_dpo": {**_GROUPS_TINY, "samples_per_prompt": 4},
        "grpo": _GROUPS_TINY,
        "dapo": _GROUPS_TINY,
        "rloo": _GROUPS_TINY,
        "reinforce_pp": {**_GROUPS_TINY, "samples_per_prompt": 2, "prompts_per_round": 64},
        "rest": {"samples_per_prompt": 16, "batch_size": 8, "epochs": 2, "learning_rate": 5e-3, "weight_decay": 0.0},
        "hir": {"batch_size": 16, "epochs": 3, "learning_rate": 3e-3, "weight_decay": 0.0},
    },
}
"""Kind of model -> optimizer -> its settings."""


def kind_of(policy: str) -> str:
    """Which kind a policy's name stands for; a single thread for the tiny model, on which two mostly wait."""
    if policy != "tiny":
        return "small"
    import torch  # a recipe is listed and explained without it

    torch.set_num_threads(1)
    return "tiny"


def open_policy(run: Run, policy: str, kind: str, rank: int | None = None, layers: int | None = None) -> PolicyHandle:
    """The policy, trained through an adapter of this rank, None takes the kind's, on so many of the last layers; an
    adapter's folder goes on with its own."""
    from alignkit import LoRA

    if rank is None and (Path(policy) / "adapter_config.json").is_file():
        return run.policy(policy)
    lora = MODELS[kind].lora if rank is None else rank
    return run.policy(policy, lora=LoRA(r=lora, layers=layers) if lora else None)


def configured(run: Run, optimizer: Component, kind: str, temperature: float) -> Component:
    """The optimizer with the settings for this kind of model, where the user gave none and it has such a field."""
    record = run.host.resolve("optimizer", optimizer)
    ours = {"temperature": temperature, **OPTIMIZERS[kind].get(record.name, {})}
    fitting = {name: value for name, value in ours.items() if name in record.hyperparameters}
    return Component(optimizer.name, {**fitting, **optimizer.params})
