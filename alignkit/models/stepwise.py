"""Reading sequences while they are written, a token of each at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class Reader(Protocol):
    """Sequences that are being written, as a model reads them; at first there are none."""

    joins: ClassVar[bool]
    """Whether sequences may be admitted beside others that are under way."""

    def __init__(self, model: Any, pad_id: int) -> None:
        """Of a bare transformers model; the id pads rows."""

    def reserve(self, sequences: int, prompts: Sequence[Sequence[int]], most: int) -> None:
        """These prompts are going to be admitted, at most so many sequences side by side, and at most `most` tokens are
        written to each."""

    def admit(self, prompts: Sequence[Sequence[int]], n: int) -> Tensor:
        """Read each prompt once, and go on with n sequences of it, after those that are there; their first logits
        [prompts x n, V]."""

    def keep(self, index: Tensor, last: Tensor | None = None) -> None:
        """Go on with these alone, in this order; of all, `last` [live] is the token that was chosen and not read yet,
        where the others are over and not given up."""

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


class Cached:
    """With the keys and values of what was read kept, by the library's own cache.

    Args:
        model: the bare transformers model.
        pad_id: for the left padding of shorter prompts, which nothing attends to.
    """

    joins: ClassVar[bool] = False

    def __init__(self, model: Any, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self.cache: Any = None
        self.mask = self.position = torch.empty(0)

    def reserve(self, sequences: int, prompts: Sequence[Sequence[int]], most: int) -> None:
        """The library's cache makes its own room."""

    def admit(self, prompts: Sequence[Sequence[int]], n: int) -> Tensor:
        from transformers import DynamicCache

        ids, self.mask = _padded_prompts(prompts, self.pad_id, next(self.model.parameters()).device)
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=self.model.config)
        logits = self._forward(ids, positions, logits_to_keep=1)
        self.cache.batch_repeat_interleave(n)
        self.mask = self.mask.repeat_interleave(n, 0)
        self.position = positions[:, -1].repeat_interleave(n, 0)
        return logits.repeat_interleave(n, 0)

    def keep(self, index: Tensor, last: Tensor | None = None) -> None:
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
        pad_id: for the right padding, which nothing before it sees.
        rows: what stands in each sequence so far.
    """

    joins: ClassVar[bool] = True
    model: Any
    pad_id: int
    rows: list[list[int]] = field(default_factory=list)

    def reserve(self, sequences: int, prompts: Sequence[Sequence[int]], most: int) -> None:
        """Nothing is kept."""

    def admit(self, prompts: Sequence[Sequence[int]], n: int) -> Tensor:
        logits = self._forward(prompts)
        self.rows += [list(prompt) for prompt in prompts for _ in range(n)]
        return logits.repeat_interleave(n, 0)

    def keep(self, index: Tensor, last: Tensor | None = None) -> None:
        self.rows = [self.rows[place] for place in index.tolist()]

    def read(self, tokens: Tensor) -> Tensor:
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._forward(self.rows)

    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        device, width = next(self.model.parameters()).device, max(map(len, rows))
        ids = torch.tensor([[*row, *[self.pad_id] * (width - len(row))] for row in rows], device=device)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits[torch.arange(len(last), device=device), last]


__all__ = ["Anew", "Cached", "Reader"]
