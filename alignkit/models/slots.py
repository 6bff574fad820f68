"""The fast way to read sequences while they are written: a copy of the model with its products packed, and keys and
values in place.

The modelling code stays the family's own. What is replaced is the linear layers (`packed`), in some families whole
decoder layers (`lean`), the cache (`slot_cache`), and attention (`slot_attention`). Sequences stand in slots, of which
those in use come first, so that one that ends is replaced by the last one, and others may join at any time.
`alignkit.models.ways` compares what comes of it with the model's own logits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alignkit.models import forward, lower
from alignkit.models.batch import alike_at_first
from alignkit.models.handed_on import WAITING, Notes
from alignkit.models.lean import decoding_copy, detached
from alignkit.models.slot_attention import attend, in_one_call
from alignkit.models.together import Together, in_parts

ATTENTION = "alignkit_slots"
"""Name of the attention in the library's registry."""

TOGETHER = 4096
"""Tokens of prompts that are read in one row: what lies between the products stays near the processor."""

APART = 64
"""Tokens from which what all sequences begin with is kept once where attention is torch's kernel: a second call of it
costs about what it takes to look at half as many in every slot (benchmarks/results/sampling.md)."""

PADDING = 32
"""Tokens of padding among prompts that are read together on a processor: about what a pass of its own costs there, in
which all weights are fetched once more."""


class Slots:
    """Sequences in slots, of which [0, live) are in use.

    Args:
        model: the bare transformers model, adapters folded in. It may change afterwards. Under autocast, the products
            are in its type, and so are the keys and values that tokens attend to; what lies between is as the weights.
        pad_id: for the right padding of shorter prompts, which nothing sees.
        packed: False leaves the layers as they are, but for their attention.
        upper: of a model without adapters, how many of the last layers others on the same base adapt; None: none.
        hand_on: whether what is read below the first adapted layer, on a processor, is kept for the next who reads it.
    """

    joins: ClassVar[bool] = True

    def __init__(
        self, model: Any, pad_id: int, packed: bool = True, upper: int | None = None, hand_on: bool = True
    ) -> None:
        from transformers import AttentionInterface

        self.pad_id, self.device = pad_id, next(model.parameters()).device
        kind = self.device.type
        mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self.kind = mixed if packed else None
        self.model = decoding_copy(model, mixed) if packed else detached(model)
        AttentionInterface.register(ATTENTION, attend)
        self.model.set_attn_implementation(ATTENTION)
        self.body = forward.body_of(self.model)
        self.together = lower.parts(self.body.config)
        self.apart_from = APART
        self.windowed = forward.window_of(self.body.config) is not None
        below = lower.layers_below(forward.body_of(model), upper) if hand_on and packed and kind == "cpu" else []
        self.below, self.low = len(below), list[Tensor]()
        self.key = lower.key_of(forward.body_of(model), below) if below else None
        if below:  # by a list, and not by this reader: a circle would keep the copy after its use
            self.body.layers[self.below - 1].register_forward_hook(functools.partial(_put, self.low))
        self.empty()

    def empty(self) -> None:
        """Forget all sequences, and what they began with."""
        from alignkit.models.slot_cache import SlotCache

        self.cache = SlotCache(self.model.config.get_text_config().num_hidden_layers, self.kind)
        self.lengths = torch.zeros(0, dtype=torch.long, device=self.device)
        self.beginning: list[int] = []
        nobody = self.lengths
        self.notes = Notes(self.key) if self.below else None
        self.low.clear()
        self.who, self.over = nobody, (nobody, nobody, nobody)

    def reserve(self, sequences: int, prompts: Sequence[Sequence[int]], most: int) -> None:
        self.cache.reserve(sequences, max(map(len, prompts)), most)
        self._begin(prompts)

    def admit(self, prompts: Sequence[Sequence[int]], n: int) -> Tensor:
        self.read_over()
        shared = self._begin(prompts)
        if not len(self.lengths):
            self.cache.keep_apart(shared if self._apart_pays(shared) else 0)
        rest = [prompt[shared:] for prompt in prompts]
        self.cache.expect(len(self.lengths) + len(rest) * n, shared + max(2, *map(len, rest)))
        read = self._read_together if self.together else self._read_padded
        found = read(rest, shared, n)
        sizes = torch.tensor([*map(len, rest)], device=self.device)
        self.lengths = torch.cat([self.lengths, (shared + sizes).repeat_interleave(n)])
        return found.repeat_interleave(n, 0)

    def _read_padded(self, rest: Sequence[Sequence[int]], shared: int, n: int) -> Tensor:
        """Logits [prompts, V] after prompts, of which the first `shared` tokens were read, those of like length at a
        time."""
        found, first = [], len(self.lengths)
        for few in _of_like_length(rest, PADDING) if self.device.type == "cpu" else [rest]:
            sizes = [len(each) for each in few]
            width = max(2, *sizes)  # one of a single token would be taken for a step
            ids = torch.tensor([[*each, *[self.pad_id] * (width - len(each))] for each in few])
            self.cache.place_prompts(first, n, shared, width)
            last = torch.tensor(sizes, device=self.device) - 1
            found.append(self._read_prompts(ids.to(self.device), shared, last))
            first += len(few) * n
        return torch.cat(found)

    def _read_together(self, rest: Sequence[Sequence[int]], shared: int, n: int) -> Tensor:
        """The same, in rows without padding, in which what several prompts begin with is read once."""
        found, first = [], len(self.lengths)
        for start, stop in in_parts([*map(len, rest)], TOGETHER):
            few = rest[start:stop]
            row = Together.of(few, self.device)
            self.cache.place_prompts(first, n, shared, row.index.shape[1], row)
            low = None
            if self.notes is not None:
                low = self._read_below(row, shared, (tuple(self.beginning[:shared]), tuple(map(tuple, few))))
                self.who = torch.cat([self.who, self.notes.admit(self.beginning[:shared], few, low[0][row.index], n)])
            last = self._part(row, shared, low)[:, row.last]
            with torch.autocast(self.device.type, enabled=False):
                found.append(self.model.get_output_embeddings()(last)[0])
            first += len(few) * n
        return torch.cat(found)

    def _read_below(self, row: Together, shared: int, known_by: Any) -> Tensor:
        """States [1, tokens, H] after the layers below, which are read where no other reader has."""
        known = lower.prompts_read(self.key, known_by)
        if known is None:
            self.cache.keep_rows(self.below)
            low = self._part(row, shared, None, self.below)
            known = lower.Prompts(self.cache.rows_kept(), low)
            lower.keep_prompts(self.key, known_by, known)
        else:
            for layer, (keys, values) in enumerate(known.rows):
                self.cache.update(keys, values, layer)
        return known.states

    def _part(self, row: Together, shared: int, low: Tensor | None, below: int | None = None) -> Tensor:
        """States [1, tokens, H] after the first `below` layers (None: all and the norm) of prompts in a row, from those
        after the layers below on, where these are given."""
        layers = slice(self.below if low is not None else 0, below)
        given = {"input_ids": row.ids} if low is None else {"inputs_embeds": low}
        return self._through(layers, given, shared + row.depths, self._seen(shared, row.index.shape[1]))

    def _through(self, layers: slice, given: dict[str, Tensor], positions: Tensor, mask: forward.MaskOf) -> Tensor:
        """States after these layers alone, and the norm after the last one of all."""
        norm = self.body.norm if layers.stop is None else nn.Identity()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            states: Tensor = lower.part(self.body, self.body.layers[layers], norm)(
                **given,
                position_ids=positions,
                attention_mask=forward.masks_of(self.model, mask),
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
        return states

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
        self.read_over()  # it goes on from the beginning that was
        self.beginning = list(prompts[0][:shared])
        self.cache.place_beginning(shared)
        self._read_prompts(torch.tensor([self.beginning], device=self.device), 0, torch.tensor([shared - 1]))
        if self.notes is not None:
            self.notes.begin(self.low[0])
        return shared

    def _apart_pays(self, shared: int) -> bool:
        """Whether tokens that all begin with are kept once, and not in each slot: by torch's kernel that is a call
        more, which has no mask for what a window hides of them from some."""
        return not in_one_call(self.device, self.kind) or (shared >= self.apart_from and not self.windowed)

    def _seen(self, before: int, width: int) -> forward.MaskOf:
        """Which tokens prompts of so many tokens see, with so many before them: [1, 1, width, before + width]."""
        places = torch.arange(before, before + width, device=self.device)
        back = places[:, None] - torch.arange(before + width, device=self.device)

        def seen(window: int | None) -> Tensor:
            return ((back >= 0) if window is None else (back >= 0) & (back < window))[None, None]

        return seen

    def _read_prompts(self, ids: Tensor, before: int, last: Tensor) -> Tensor:
        """Logits [rows, V] after the place `last` of each row of tokens, with so many before them."""
        places = torch.arange(before, before + ids.shape[1], device=self.device)
        seen = self._seen(before, ids.shape[1])
        return self._forward(ids, places.expand(len(ids), -1), seen, last.to(self.device))

    def keep(self, index: Tensor, last: Tensor | None = None) -> None:
        live = torch.arange(len(self.lengths), device=index.device)
        order, gone = index, live[:0]
        if last is None:
            self.read_over()
        elif self.notes is not None and self.notes.open:
            gone = live[~torch.isin(live, index)]
            order = torch.cat([index, gone])  # those that are over stand last, until their last token is read
            over = self.lengths[gone], self.who[gone], last[gone]
            self.over = tuple(torch.cat(both) for both in zip(over, self.over, strict=True))  # type: ignore[assignment]
        target = torch.nonzero(order != live[: len(order)]).flatten()
        if len(target):
            self.cache.move(order[target], target)
        self.lengths = self.lengths[index]
        if self.notes is not None:
            self.who = self.who[index]
        if len(self.over[0]) >= WAITING:
            self.read_over()

    def read_over(self) -> None:
        """Read the last token of sequences that are over, by the layers below alone: no more is kept of it."""
        at, who, tokens = self.over
        self.over = at[:0], who[:0], tokens[:0]
        if self.notes is None or not self.notes.open or not len(at):
            return
        width = self.cache.place_tokens(at, len(self.lengths))
        given = {"input_ids": tokens[:, None]}
        low = self._through(slice(self.below), given, at[:, None], self._added(at, width))
        self.notes.read(who, tokens, low[:, 0])

    def hand_on(self) -> None:
        """Keep what was read for the next who reads it."""
        if self.notes is not None:
            self.read_over()
            self.notes.hand_on()

    def _added(self, at: Tensor, width: int) -> forward.MaskOf:
        """What is added to the scores of tokens in these places [live], of so many keys: [live, 1, 1, width]."""
        back = at[:, None] - torch.arange(width, device=self.device)

        def added(window: int | None) -> Tensor:
            hidden = back < 0 if window is None else (back < 0) | (back >= window)
            return torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)[:, None, None]

        return added

    def read(self, tokens: Tensor) -> Tensor:
        at = self.lengths
        width = self.cache.place_tokens(at)
        logits = self._forward(tokens[:, None], at[:, None], self._added(at, width), None)
        if self.notes is not None:
            self.notes.read(self.who, tokens, self.low[0][:, 0])
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


def _put(place: list[Tensor], _layer: Any, _given: Any, states: Tensor) -> None:
    """Keep the states [rows, tokens, H] that a layer gave last."""
    place[:] = [states]


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


__all__ = ["APART", "Slots"]
