"""The fast way to read sequences while they are written: a copy of the model with its products packed, and keys and
values in place.

The modelling code stays the family's own. What is replaced is the linear layers (`packed`), the cache (`slot_cache`),
and attention. Sequences stand in slots, of which those in use come first, so that one that ends is replaced by the last
one, and others may join at any time. `alignkit.models.ways` compares what comes of it with the model's own logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alignkit.models import forward
from alignkit.models.attention import by_hand, refuse_unknown
from alignkit.models.batch import alike_at_first
from alignkit.models.packed import decoding_copy, detached

ATTENTION = "alignkit_slots"
"""Name of the attention in the library's registry."""

PADDING = 32
"""Tokens of padding among prompts that are read together on a processor: about what a pass of its own costs there, in
which all weights are fetched once more."""


class Slots:
    """Sequences in slots, of which [0, live) are in use.

    Args:
        model: the bare transformers model, adapters folded in. It may change afterwards. Under autocast, the products
            are in its type, and what lies between them in that of the weights.
        pad_id: for the right padding of shorter prompts, which nothing sees.
        packed: False leaves the linear layers as they are.
    """

    joins: ClassVar[bool] = True

    def __init__(self, model: Any, pad_id: int, packed: bool = True) -> None:
        from transformers import AttentionInterface

        self.pad_id, self.device = pad_id, next(model.parameters()).device
        kind = self.device.type
        mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self.model = decoding_copy(model, mixed) if packed else detached(model)
        AttentionInterface.register(ATTENTION, attend)
        self.model.set_attn_implementation(ATTENTION)
        self.empty()

    def empty(self) -> None:
        """Forget all sequences, and what they began with."""
        from alignkit.models.slot_cache import SlotCache

        self.cache = SlotCache(self.model.config.get_text_config().num_hidden_layers)
        self.lengths = torch.zeros(0, dtype=torch.long, device=self.device)
        self.beginning: list[int] = []

    def reserve(self, sequences: int, prompts: Sequence[Sequence[int]]) -> None:
        self.cache.reserve(sequences, max(map(len, prompts)))
        self._begin(prompts)

    def admit(self, prompts: Sequence[Sequence[int]], n: int) -> Tensor:
        shared = self._begin(prompts)
        if not len(self.lengths):
            self.cache.keep_apart(shared)
        rest = [prompt[shared:] for prompt in prompts]
        self.cache.expect(len(self.lengths) + len(rest) * n, shared + max(2, *map(len, rest)))
        found = []
        for few in _of_like_length(rest, PADDING) if self.device.type == "cpu" else [rest]:
            sizes = [len(each) for each in few]
            width = max(2, *sizes)  # one of a single token would be taken for a step
            ids = torch.tensor([[*each, *[self.pad_id] * (width - len(each))] for each in few])
            self.cache.place_prompts(len(self.lengths), n, shared, width)
            last = torch.tensor(sizes, device=self.device) - 1
            found.append(self._read_prompts(ids.to(self.device), shared, last))
            self.lengths = torch.cat([self.lengths, (shared + last + 1).repeat_interleave(n)])
        return torch.cat(found).repeat_interleave(n, 0)

    def _begin(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many tokens all of these prompts begin with, such as a system message: those are read once."""
        known, most = self.beginning, min(map(len, prompts)) - 1
        if known and len(known) <= most and all(list(prompt[: len(known)]) == known for prompt in prompts):
            return len(known)
        if len(self.lengths):
            self.cache.spread()
        shared = alike_at_first(prompts)
        if not shared:
            return 0
        self.beginning = list(prompts[0][:shared])
        self.cache.place_beginning(shared)
        self._read_prompts(torch.tensor([self.beginning], device=self.device), 0, torch.tensor([shared - 1]))
        return shared

    def _read_prompts(self, ids: Tensor, before: int, last: Tensor) -> Tensor:
        """Logits [rows, V] after the place `last` of each row of tokens, with so many before them."""
        places = torch.arange(before, before + ids.shape[1], device=self.device)
        back = places[:, None] - torch.arange(before + ids.shape[1], device=self.device)

        def seen(window: int | None) -> Tensor:
            return ((back >= 0) if window is None else (back >= 0) & (back < window))[None, None]

        return self._forward(ids, places.expand(len(ids), -1), seen, last.to(self.device))

    def keep(self, index: Tensor) -> None:
        target = torch.nonzero(index != torch.arange(len(index), device=index.device)).flatten()
        if len(target):
            self.cache.move(index[target], target)
        self.lengths = self.lengths[index]

    def read(self, tokens: Tensor) -> Tensor:
        at = self.lengths
        width = self.cache.place_tokens(at)
        back = at[:, None] - torch.arange(width, device=self.device)

        def added(window: int | None) -> Tensor:
            hidden = back < 0 if window is None else (back < 0) | (back >= window)
            return torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)[:, None, None]

        logits = self._forward(tokens[:, None], at[:, None], added, None)
        self.lengths = at + 1
        return logits

    def _forward(self, ids: Tensor, positions: Tensor, mask: forward.MaskOf, last: Tensor | None) -> Tensor:
        """Logits [rows, V] after one token of each row: of several, the one in its place `last`."""

        def narrowed(head: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if last is None:
                return states
            return (states[0][torch.arange(len(last), device=last.device), last].unsqueeze(1),)

        hook = self.model.get_output_embeddings().register_forward_pre_hook(narrowed)
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                out = self.model(
                    input_ids=ids,
                    attention_mask=forward.masks_of(self.model, mask),
                    position_ids=positions,
                    past_key_values=self.cache,
                    use_cache=True,
                )
        finally:
            hook.remove()
        logits: Tensor = out.logits[:, 0]
        return logits


def _of_like_length(rows: Sequence[Sequence[int]], padding: int) -> list[list[Sequence[int]]]:
    """The rows, in order, in parts that padding makes longer by so many tokens at most."""
    parts: list[list[Sequence[int]]] = []
    for row in rows:
        part = [*parts[-1], row] if parts else []
        if part and max(map(len, part)) * len(part) - sum(map(len, part)) <= padding:
            parts[-1] = part
        else:
            parts.append([row])
    return parts


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Attention of one token to what its slot holds, or of prompts to themselves.

    Queries that share a key head are read together, so that keys are not repeated.

    Args:
        module: the family's attention.
        query: [rows, heads, tokens, H].
        key: [rows, key heads, H, width], see `SlotLayer.update`; of prompts [rows, key heads, width, H], with their
            beginning before them.
        value: [rows, key heads, width, H].
        attention_mask: added [rows, 1, 1, width]; of prompts, what is seen [1, 1, tokens, width].
        scaling: of the products; None: one over the root of H.
        softcap: scores are kept below it by tanh (Gemma 2).
        s_aux: [heads], a score of nothing beside those of the keys (gpt-oss).
        other: what else a family passes.

    Returns:
        ([rows, tokens, heads, H], None).

    Raises:
        NotImplementedError: the family's attention knows more than this.
    """
    refuse_unknown(other)
    rows, heads, tokens, size = query.shape
    scaling = size**-0.5 if scaling is None else scaling
    query = query.to(key.dtype)
    if tokens > 1:
        key, value = (each.repeat_interleave(heads // each.shape[1], 1) for each in (key, value))
        if softcap is None and s_aux is None:
            found = nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=attention_mask, scale=scaling
            )
            return found.transpose(1, 2), None
        key = key.mT
        attention_mask = torch.zeros(attention_mask.shape, device=key.device).masked_fill_(~attention_mask, -torch.inf)
    grouped = (query * scaling).reshape(rows, key.shape[1], -1, size)
    nothing = None
    if s_aux is not None:
        nothing = s_aux.reshape(1, key.shape[1], -1, 1).expand(rows, -1, -1, tokens).flatten(2)
    found = by_hand(grouped, key, value, attention_mask, softcap, nothing, getattr(key, "kept_apart", None))
    return found.reshape(rows, heads, tokens, -1).transpose(1, 2), None


__all__ = ["Slots", "attend"]
