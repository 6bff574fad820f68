"""Keys and values of sequences in slots, written in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from alignkit.models.slot_attention import in_one_call
from alignkit.models.together import Together

STEP = 16
"""Widths are rounded up to this: kernels are prepared for each shape anew."""

AHEAD = 64
"""Tokens to be written that there is room for from the beginning, at the most."""


def rounded(width: int) -> int:
    """The next multiple of `STEP`."""
    return -(-width // STEP) * STEP


class Places:
    """Where the next token of each sequence belongs: of consecutive slots, from `first` on, the places `at` [live]."""

    def __init__(self, first: int, at: Tensor) -> None:
        self.first, self.at = first, at
        self.known: dict[tuple[int, int], Tensor] = {}

    def of(self, kept: Tensor) -> Tensor:
        """[live x heads], among the rows that keys or values [slots, heads, width, H] are: the same for most layers."""
        heads, wide = kept.shape[1:3]
        if (heads, wide) not in self.known:
            count = torch.arange(len(self.at) * heads, device=self.at.device).view(-1, heads)
            self.known[heads, wide] = ((self.first * heads + count) * wide + self.at[:, None]).flatten()
        return self.known[heads, wide]


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values [slots, heads, width, H].

    `expected` slots and tokens are in use once all prompts were read that are read next; `first`, `n` and `width` say
    where some of them belong, after the first `shared` tokens of the `beginning` (`begun`: as it is kept); `places`,
    where the next token of each sequence does, and `width` how far is looked back. The first `apart` tokens are the
    beginning of every sequence, and stand in no slot.

    Args:
        kind: what they are kept in; None: as they come.
    """

    def __init__(self, kind: torch.dtype | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.first = self.n = self.width = self.shared = self.apart = 0
        self.ahead = AHEAD
        self.expected = (0, 0)
        self.together: Together | None = None
        self.keeps_row = False
        self.row: tuple[Tensor, Tensor] | None = None
        self.beginning: tuple[Tensor, Tensor] | None = None
        self.begun: tuple[Tensor, Tensor] | None = None
        self.places: Places | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values [rows, heads, tokens, H]; what is attended to: of prompts, themselves; of tokens, what
        their slots hold, and before it what `kept_apart` gives."""
        if self.places is not None:
            stop, width = self.first + len(self.places.at), self.width - self.apart
            keys, values = self._room(stop, width, key_states, value_states)
            index = self.places.of(keys)
            for place, each in ((keys, key_states), (values, value_states)):
                place.view(-1, place.shape[-1]).index_copy_(0, index, each.to(place.dtype).reshape(-1, each.shape[-1]))
            seen = keys[self.first : stop, :, :width]
            # Beside the keys, which families hand on to their attention unread: they have no argument for it.
            seen.kept_apart = self.begun if self.apart else None  # type: ignore[attr-defined]
            return seen, values[self.first : stop, :, :width]
        value_states = value_states.to(key_states.dtype)
        if not self.n:
            self.beginning = key_states, value_states
            kind = self.kind or key_states.dtype
            self.begun = key_states.to(kind), value_states.to(kind)
            return key_states, value_states
        if self.keeps_row:
            self.row, self.keeps_row = (key_states, value_states), False
        if self.together is not None:
            key_states, value_states = self.together.spread(key_states), self.together.spread(value_states)
        whole = own = key_states, value_states
        if self.shared:
            assert self.beginning is not None
            key, value = (each.expand(len(key_states), -1, -1, -1) for each in self.beginning)
            whole = torch.cat([key, key_states], 2), torch.cat([value, value_states], 2)
        if not self.apart:
            own = whole
        end, tokens = self.first + len(key_states) * self.n, own[0].shape[2]
        keys, values = self._room(*self.expected, *own)
        for place, each in zip((keys, values), own, strict=True):
            place[self.first : end, :, :tokens].unflatten(0, (-1, self.n)).copy_(each.unsqueeze(1))
        whole[0].together = self.together  # type: ignore[attr-defined]
        return whole

    def _room(self, slots: int, width: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Room for so many sequences and tokens; half as much again, where there are more tokens than ever."""
        keys, values, wide = self.keys, self.values, self.wide
        had = 0 if keys is None else keys.shape[0]
        if keys is None or values is None or slots > had or width > wide:
            more = wide if width <= wide else rounded(max(width + self.ahead, wide * 3 // 2))
            count, kind = max(slots, had), self.kind or key.dtype
            self.keys = key.new_zeros(count, key.shape[1], more, key.shape[3], dtype=kind)
            self.values = value.new_zeros(count, value.shape[1], more, value.shape[3], dtype=kind)
            if keys is not None and values is not None:
                self.keys[:had, :, :wide], self.values[:had, :, :wide] = keys, values
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    @property
    def wide(self) -> int:
        """Tokens that a slot has room for."""
        return 0 if self.keys is None else self.keys.shape[2]

    def move(self, source: Tensor, target: Tensor) -> None:
        """Put the sequences of some slots into others."""
        if self.keys is not None and self.values is not None:
            self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def spread(self) -> None:
        """Put what is kept apart into each slot."""
        if self.apart and self.keys is not None and self.values is not None:
            assert self.begun is not None
            slots = len(self.keys)
            key, value = (each.expand(slots, -1, -1, -1) for each in self.begun)
            self.keys, self.values = torch.cat([key, self.keys], 2), torch.cat([value, self.values], 2)
        self.apart = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: room is made where it is needed."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.width, 0

    def get_seq_length(self) -> int:
        return self.width

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The layers of a model.

    Args:
        layers: how many there are.
        kind: what keys and values are kept in; None: as they come.
    """

    def __init__(self, layers: int, kind: torch.dtype | None = None) -> None:
        self.slots = [SlotLayer(kind) for _ in range(layers)]
        self.reserved = (0, 0)
        super().__init__(layers=list(self.slots))

    def place_beginning(self, width: int) -> None:
        """What prompts begin with is read next: one row, which has no slot."""
        for layer in self.slots:
            layer.n, layer.shared, layer.width, layer.places, layer.together = 0, 0, width, None, None

    @property
    def apart(self) -> int:
        """Tokens with which every sequence begins, and which are kept once."""
        return self.slots[0].apart

    def keep_apart(self, tokens: int) -> None:
        """No slot is in use. Those in use from now on all begin with so many tokens of the beginning that was read."""
        for layer in self.slots:
            layer.apart = tokens

    def spread(self) -> None:
        """Put what is kept apart into each slot, for others to join that begin otherwise."""
        for layer in self.slots:
            layer.spread()

    def reserve(self, slots: int, width: int, ahead: int = AHEAD) -> None:
        """Make room for so many slots and tokens when prompts are read first, and for so many to be written after
        them: to find more later costs a copy."""
        self.reserved = slots, width
        for layer in self.slots:
            layer.ahead = min(ahead, AHEAD)

    def expect(self, slots: int, width: int) -> None:
        """So many slots of so many tokens are in use once all prompts were read that are read next, part by part."""
        slots, width = max(slots, self.reserved[0]), max(width, self.reserved[1]) - self.apart
        for layer in self.slots:
            layer.expected = slots, width

    def place_prompts(self, first: int, n: int, shared: int, width: int, together: Together | None = None) -> None:
        """Prompts are read next, each for n sequences, the first of which has the slot `first`.

        Args:
            first: the slot.
            n: sequences of each.
            shared: tokens of the beginning that was read, which come before them; 0: they have none in common.
            width: of the rows.
            together: they are read as this row.
        """
        for layer in self.slots:
            layer.first, layer.n, layer.shared, layer.width, layer.places = first, n, shared, shared + width, None
            layer.together = together

    def place_tokens(self, at: Tensor, first: int = 0) -> int:
        """A token of each sequence is read next, at these places [live], the slot `first` being that of the first; the
        width that is looked at."""
        needed, wide = rounded(int(at.max()) + 1 - self.apart), self.slots[0].wide
        # A product of sixteen bits copies what does not lie together, which takes longer than to look at all of it.
        copies = self.slots[0].kind is not None and not in_one_call(at.device, self.slots[0].kind)
        width = self.apart + (wide if copies and needed <= wide and 4 * wide <= 7 * needed else needed)
        places = Places(first, at - self.apart)
        for layer in self.slots:
            layer.places, layer.width, layer.first = places, width, first
        return width

    def keep_rows(self, layers: int) -> None:
        """Keep the keys and values of the prompts that are read next, in so many layers from below."""
        for layer in self.slots[:layers]:
            layer.keeps_row = True

    def rows_kept(self) -> list[tuple[Tensor, Tensor]]:
        """Give out what was kept, [1, heads, tokens, H] each."""
        found = [layer.row for layer in self.slots if layer.row is not None]
        for layer in self.slots:
            layer.row = None
        return found

    def move(self, source: Tensor, target: Tensor) -> None:
        """Put the sequences of some slots into others."""
        for layer in self.slots:
            layer.move(source, target)


__all__ = ["SlotCache", "SlotLayer", "rounded"]
