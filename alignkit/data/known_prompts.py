"""Prompts in token ids, remembered: a stage reads the same ones every round, several times over."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownPrompt:
    """An encoded prompt.

    Args:
        ids: [P].
        trained: [P] which of them are learned from, or None.
        notes: what was noted while it was encoded, as often.
    """

    ids: array[int]
    trained: tuple[bool, ...] | None
    notes: tuple[str, ...]

    def copies(self) -> tuple[list[int], list[bool] | None]:
        """(ids, trained) for a caller to keep."""
        return self.ids.tolist(), None if self.trained is None else list(self.trained)


class KnownPrompts:
    """The prompts that were asked for last.

    Args:
        most: tokens of all of them together.
    """

    def __init__(self, most: int = 1 << 20) -> None:
        self.most, self.tokens = most, 0
        self._known: OrderedDict[Hashable, KnownPrompt] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, asked: Hashable) -> KnownPrompt | None:
        """The prompt, if it is remembered."""
        found = self._known.get(asked)
        if found is not None:
            self._known.move_to_end(asked)
        return found

    def keep(self, asked: Hashable, ids: Sequence[int], trained: Sequence[bool] | None, notes: Sequence[str]) -> None:
        """Remember a prompt that is not known yet; those that nobody asked for the longest time are forgotten."""
        self._known[asked] = KnownPrompt(array("i", ids), None if trained is None else tuple(trained), tuple(notes))
        self.tokens += len(ids)
        while self.tokens > self.most:
            _, oldest = self._known.popitem(last=False)
            self.tokens -= len(oldest.ids)
