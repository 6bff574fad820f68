"""Metrics of tokens: in training on the tensors of a step, in an evaluation on the answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignkit.metrics.base import Ratio
from alignkit.metrics.specs import ASKED, ROUNDS


class Entropy(Ratio):
    """Entropy of the next-token distribution, nats per token."""

    spec = ROUNDS["entropy"]

    def update(self, entropy: Tensor, response_mask: Tensor) -> None:
        """[responses, tokens] each."""
        self.add(entropy, response_mask)


class Perplexity(Ratio):
    """exp of the mean negative log-likelihood per token. (The library's own wants all logits, which are never kept.)"""

    spec = ASKED["perplexity"]

    def update(self, logprobs: Tensor, response_mask: Tensor) -> None:
        """[responses, tokens] each; nats."""
        self.add(-logprobs.double(), response_mask)

    def compute(self) -> Any:
        return torch.exp(self.total / self.count) if self.count else {}
