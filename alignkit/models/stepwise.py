"""Reading sequences while they are written, a token of each at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor


class Reader(Protocol):
    """Sequences that are being written, as a model reads them."""

    @classmethod
    def prefilled(cls, model: Any, prompts: Sequence[Sequence[int]], n: int, pad_id: int) -> tuple[Self, Tensor]:
        """(each prompt read once and repeated for its n sequences, their first logits [prompts x n, V])."""

    def keep(self, index: Tensor) -> None:
        """Go on with these alone."""

    def read(self, tokens: Tensor) -> Tensor:
        """Read one token [live] of each; the logits [live, V] of the next."""


def _padded_prompts(prompts: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[Tensor, Tensor]:
    """Left-padded ids and their mask, both [prompts, longest]."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@dataclass
class Cached:
    """With the keys and values of what was read kept.

    Args:
        model: the bare transformers model.
        cache: keys and values of what was read.
        mask: [live, width] of the attention.
        position: [live] of the last token read.
    """

    model: Any
    cache: Any
    mask: Tensor
    position: Tensor

    @classmethod
    def prefilled(cls, model: Any, prompts: Sequence[Sequence[int]], n: int, pad_id: int) -> tuple[Self, Tensor]:
        from transformers import DynamicCache

        ids, mask = _padded_prompts(prompts, pad_id, next(model.parameters()).device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        batch = cls(model, DynamicCache(config=model.config), mask, positions[:, -1])
        logits = batch._forward(ids, positions, logits_to_keep=1)
        batch.cache.batch_repeat_interleave(n)
        batch.mask = mask.repeat_interleave(n, 0)
        batch.position = batch.position.repeat_interleave(n, 0)
        return batch, logits.repeat_interleave(n, 0)

    def keep(self, index: Tensor) -> None:
        self.cache.batch_select_indices(index)
        self.mask, self.position = self.mask[index], self.position[index]

    def read(self, tokens: Tensor) -> Tensor:
        self.position = self.position + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        return self._forward(tokens.unsqueeze(1), self.position.unsqueeze(1))

    def _forward(self, ids: Tensor, positions: Tensor, **options: Any) -> Tensor:
        out = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **options,
        )
        logits: Tensor = out.logits[:, -1]
        return logits


@dataclass
class Anew:
    """Each sequence read from its start for every token: slow, and right for whatever a family carries along a row.

    Args:
        model: the bare transformers model.
        rows: what stands in each sequence so far.
        pad_id: for the right padding, which nothing before it sees.
    """

    model: Any
    rows: list[list[int]]
    pad_id: int

    @classmethod
    def prefilled(cls, model: Any, prompts: Sequence[Sequence[int]], n: int, pad_id: int) -> tuple[Self, Tensor]:
        batch = cls(model, [list(prompt) for prompt in prompts], pad_id)
        logits = batch._forward()
        batch.rows = [list(row) for row in batch.rows for _ in range(n)]
        return batch, logits.repeat_interleave(n, 0)

    def keep(self, index: Tensor) -> None:
        self.rows = [self.rows[place] for place in index.tolist()]

    def read(self, tokens: Tensor) -> Tensor:
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._forward()

    def _forward(self) -> Tensor:
        device, width = next(self.model.parameters()).device, max(map(len, self.rows))
        ids = torch.tensor([[*row, *[self.pad_id] * (width - len(row))] for row in self.rows], device=device)
        last = torch.tensor([len(row) - 1 for row in self.rows], device=device)
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits[torch.arange(len(last), device=device), last]


__all__ = ["Anew", "Cached", "Reader"]
