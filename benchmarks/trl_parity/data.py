"""The tensors that both sides see, and the model in which gradients are compared."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

VOCABULARY, PROMPT, LONGEST, PAIRS, EOS = 13, 3, 6, 5, 1


@dataclass(frozen=True)
class Data:
    """Pairs of responses; the first half of the rows are the chosen ones, the second half the rejected.

    Args:
        prompt: tokens of every prompt.
        ids: [rows, prompt + LONGEST], padded on the right with 0.
        mask: [rows, LONGEST], the tokens of the responses.
        weights: W [V, V] of the policy, the leaf of every gradient; `reference` and `old` [V, V] of the others.
        scores: [rows], raw rewards.
        advantages: [rows].
        kl_ids: `ids` with the responses moved on by one prompt (KTO's mismatched pairs); `kl_mask` of them.
    """

    prompt: int
    ids: Tensor
    mask: Tensor
    weights: Tensor
    reference: Tensor
    old: Tensor
    scores: Tensor
    advantages: Tensor
    kl_ids: Tensor
    kl_mask: Tensor

    @classmethod
    def draw(cls, dtype: torch.dtype, prompt: int = PROMPT, equally_long: bool = False) -> Data:
        """The same numbers in any dtype."""
        generator = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        rows = 2 * PAIRS
        lengths = torch.randint(1, LONGEST + 1, (rows,), generator=generator)
        lengths[0 if not equally_long else slice(None)] = LONGEST
        mask = torch.arange(LONGEST) < lengths.unsqueeze(1)
        prompts = torch.randint(2, VOCABULARY, (PAIRS, prompt), generator=generator).repeat(2, 1)
        responses = torch.randint(2, VOCABULARY, (rows, LONGEST), generator=generator).where(mask, 0)
        weights = normal(VOCABULARY, VOCABULARY)
        return cls(
            prompt,
            torch.cat([prompts, responses], 1),
            mask,
            weights.clone().requires_grad_(),
            weights + 0.8 * normal(VOCABULARY, VOCABULARY),
            weights + 0.5 * normal(VOCABULARY, VOCABULARY),
            normal(rows),
            normal(rows),
            torch.cat([prompts, responses.roll(1, 0)], 1),
            mask.roll(1, 0),
        )

    @property
    def rows(self) -> int:
        return len(self.ids)

    def logprobs(self, weights: Tensor, ids: Tensor | None = None) -> Tensor:
        """[rows, LONGEST], of the responses' tokens; what padding holds is a number like any other."""
        ids = self.ids if ids is None else ids
        every = weights[ids[:, :-1]].log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        return every[:, self.prompt - 1 :]

    @property
    def completion_mask(self) -> Tensor:
        """[rows, PROMPT + LONGEST], as TRL has it."""
        return torch.cat([torch.zeros(self.rows, self.prompt, dtype=torch.bool), self.mask], 1).long()

    @property
    def attention_mask(self) -> Tensor:
        return torch.cat([torch.ones(self.rows, self.prompt, dtype=torch.bool), self.mask], 1).long()


class Bigram(torch.nn.Module):
    """A model as TRL's trainers call it: with labels and a fused head for log-probs, or plainly for logits."""

    is_gradient_checkpointing = False

    def __init__(self, weights: Tensor):
        super().__init__()
        self.weights = weights

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> SimpleNamespace:
        logits = self.weights[input_ids]
        if labels is None:
            return SimpleNamespace(logits=logits)
        shown, all_logprobs = labels[:, 1:] != -100, logits[:, :-1].log_softmax(-1)
        taken = all_logprobs.gather(-1, input_ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        return SimpleNamespace(
            log_probs=taken.where(shown, 0),
            label_mask=shown,
            entropy=-(all_logprobs.exp() * all_logprobs).sum(-1).where(shown, 0),
            mean_logits=logits[:, :-1].mean(-1),
            is_top1=(all_logprobs.argmax(-1) == input_ids[:, 1:]) & shown,
        )
