"""What tests start from: a host of the core alone, tiny models, a few groups, a reward and a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.data.chat import ChatFormat
from alignkit.functional import logistic_ranking
from alignkit.groups import Groups
from alignkit.models import LoRA, Policy
from alignkit.models.tiny import tiny_model
from alignkit.models.tiny_tokenizer import tiny_tokenizer
from alignkit.registry.grammar import Component
from alignkit.registry.host import PluginHost, default_host
from alignkit.registry.records import BoundLoss

DEMOS = Groups.from_rows(
    {"prompt": f"prompt {i}", "responses": ["x" * (1 + 5 * (i % 4))] * (1 + i % 2)} for i in range(7)
)
"""Seven groups of one or two responses of unequal length: a mean of means over them is not their mean."""
TEXTS = Groups.from_rows({"prompt": f"text {i}", "responses": ["abc" * (i + 1)]} for i in range(5))
"""Five demonstrations, each longer than the one before."""
PAIRS = Groups.from_rows(
    {"prompt": f"p{i}", "responses": ["yes" * (i + 1), "no" * (4 - i)], "ranks": [1, 2], "rating": "better"}
    for i in range(4)
)
"""Four comparisons."""
PROMPTS = Groups.from_prompts([f"prompt number {i}" for i in range(5)])
"""Five prompts."""


def isolated_host() -> PluginHost:
    """A host that knows what the core registers and no installed plugin."""
    return PluginHost(allow=())


def bound(loss: Any) -> BoundLoss:
    """A loss with its hyper-parameters, as the engine calls it: a function, or a registered name."""
    host = default_host() if isinstance(loss, (str, Component)) else isolated_host()
    built: BoundLoss = host.build("loss", loss)
    return built


def letters(response: str) -> float:
    """A reward to learn by: the share of the letters a to z in a response."""
    return sum("a" <= c <= "z" for c in response) / max(len(response), 1)


def ranking(chosen_logprobs: Tensor, rejected_logprobs: Tensor) -> Tensor:
    """A loss of comparisons: the logistic ranking loss of the log-probs at a tenth."""
    return logistic_ranking(0.1 * (chosen_logprobs - rejected_logprobs))


def tiny_policy(trainable: bool = True, seed: int = 0) -> Policy:
    """The tiny model (two layers, one token per byte); equal seeds give equal weights."""
    policy = Policy(*tiny_model(seed))
    policy.requires_grad_(trainable)
    return policy


def tiny_chat() -> ChatFormat:
    """How the tiny model reads a conversation: one token per byte, one before each message and one after it."""
    return ChatFormat(tiny_tokenizer())


def save_states(folder: Path) -> Path:
    """Write `folder/base`, the tiny model, and `folder/sft`, an adapter on it that changes what it says."""
    Policy.load("tiny").save(folder / "base")
    adapted = Policy.load(folder / "base", lora=LoRA(r=4), trainable=True)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    adapted.save(folder / "sft")
    return folder
