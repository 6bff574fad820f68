"""What was read while responses were written, handed on to whoever reads them next.

To score a response, to take its log-probs or to learn from it is to read what the sampler has just read, layer by
layer. Where the layers below are the same for all of them (see `alignkit.models.lower`), the states after these are
noted as tokens are read, and kept there for the texts that were written. What the sampler does not read is the token
with which a response ends; sequences that are over wait in their slots until some are read together, by the layers
below alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignkit.models import lower
from alignkit.models.attention import Piece

WAITING = 64
"""Sequences that are over and wait for their last token to be read: as many as make the pass worth its weights."""


@dataclass(frozen=True)
class _Admitted:
    """Prompts that were read together: what all begin with and its states [1, tokens, H], the ids after it and the
    states [prompts, longest, H]; the number of the first of their sequences, and how many each has."""

    beginning: list[int]
    begun: Tensor | None
    prompts: list[list[int]]
    states: Tensor
    first: int
    n: int


@dataclass
class Notes:
    """Of one reader.

    Args:
        key: by which the states are kept, see `lower.key_of`.
    """

    key: Any
    beginning: Tensor | None = None
    admitted: list[_Admitted] = field(default_factory=list)
    who: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    sequences: int = 0
    room: int = field(default_factory=lambda: lower.ROOM // 2)

    @property
    def open(self) -> bool:
        """Whether there was room for all that was read; where there was not, nothing is noted any more."""
        return self.room >= 0

    def begin(self, states: Tensor) -> None:
        """States [1, tokens, H] of what the prompts begin with that are read next."""
        self.beginning = states

    def admit(self, beginning: Sequence[int], prompts: Sequence[Sequence[int]], states: Tensor, n: int) -> Tensor:
        """Note prompts that were read, after this beginning; the numbers [prompts x n] of their sequences."""
        first = self.sequences
        self.sequences += len(prompts) * n
        if self._fits(states.shape[0] * states.shape[1], states):
            begun = self.beginning if len(beginning) else None
            self.admitted.append(_Admitted([*beginning], begun, [[*each] for each in prompts], states, first, n))
        return torch.arange(first, self.sequences)

    def read(self, who: Tensor, tokens: Tensor, states: Tensor) -> None:
        """Note a token [live] of each of these sequences, and its states [live, H]."""
        if self._fits(len(who), states):
            self.who.append(who)
            self.tokens.append(tokens)
            self.states.append(states)

    def _fits(self, tokens: int, states: Tensor) -> bool:
        """Whether there is room for so many more; where there is not, what was noted is given back."""
        self.room -= tokens * lower.cost_of(states)
        if not self.open:
            self._clear()
        return self.open

    def _clear(self) -> None:
        self.beginning = None
        self.admitted, self.who, self.tokens, self.states = [], [], [], []

    def hand_on(self) -> None:
        """Keep what was noted. Where there was no room for all of it, nothing is."""
        written = self._written()
        for each in self.admitted:
            ids, pieces, states = list[int](), list[Piece](), list[Tensor]()
            before = -1
            if each.begun is not None:
                ids, pieces, states, before = [*each.beginning], [(len(each.beginning), -1)], [each.begun[0]], 0
            for number, (prompt, low) in enumerate(zip(each.prompts, each.states, strict=True)):
                place = len(pieces)
                ids += prompt
                pieces.append((len(prompt), before))
                states.append(low[: len(prompt)])
                for sequence in range(each.first + number * each.n, each.first + (number + 1) * each.n):
                    tokens, read = written.get(sequence, ([], None))
                    if read is not None:
                        ids += tokens
                        pieces.append((len(tokens), place))
                        states.append(read)
            lower.keep(self.key, ids, pieces, torch.cat(states).unsqueeze(0))
        self._clear()

    def _written(self) -> dict[int, tuple[list[int], Tensor]]:
        """Of each sequence its tokens, in the order in which they were read, and their states [tokens, H]."""
        if not self.who:
            return {}
        who, tokens, states = torch.cat(self.who), torch.cat(self.tokens).cpu(), torch.cat(self.states)
        order = torch.argsort(who, stable=True)
        numbers, counts = torch.unique_consecutive(who[order], return_counts=True)
        parts = zip(tokens[order].split(counts.tolist()), states[order].split(counts.tolist()), strict=True)
        return {number: (ids.tolist(), low) for number, (ids, low) in zip(numbers.tolist(), parts, strict=True)}


__all__ = ["WAITING", "Notes"]
