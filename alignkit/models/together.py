"""Prompts that are read together: all of them in one row without padding, what several begin with once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Together:
    """A tree of prompts, laid out as one row of U tokens.

    Args:
        ids: [1, U].
        depths: [1, U] how far each token stands from the beginning of its prompts.
        index: [prompts, longest] where in the row each token of each prompt stands; padding repeats the last one.
        back: [U] where in the flattened `index` each token of the row is found, in one of its prompts.
        last: [prompts] where in the row the last token of each prompt stands.
    """

    ids: Tensor
    depths: Tensor
    index: Tensor
    back: Tensor
    last: Tensor

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Together:
        """Lay prompts out.

        Args:
            prompts: ids of each, none empty.
            device: where the tensors are.
        """
        width = max(map(len, prompts))
        places = dict[tuple[int, int], int]()
        ids, depths, back, index = list[int](), list[int](), list[int](), list[list[int]]()
        for number, prompt in enumerate(prompts):
            row, node = list[int](), -1
            for depth, token in enumerate(prompt):
                found = places.setdefault((node, token), len(ids))
                if found == len(ids):
                    ids.append(token)
                    depths.append(depth)
                    back.append(number * width + depth)
                row.append(node := found)
            index.append(row + [node] * (width - len(row)))

        def tensor(values: Sequence[object]) -> Tensor:
            return torch.tensor(values, device=device)

        last = [row[-1] for row in index]
        return cls(tensor([ids]), tensor([depths]), tensor(index), tensor(back), tensor(last))

    def spread(self, states: Tensor) -> Tensor:
        """[1, heads, U, H] of the row -> [prompts, heads, longest, H]."""
        rows, width = self.index.shape
        found = states[0].index_select(1, self.index.flatten())
        return found.view(len(found), rows, width, -1).transpose(0, 1)

    def gather(self, states: Tensor) -> Tensor:
        """[prompts, longest, …] -> [1, U, …]: each token of the row as one of its prompts has it."""
        return states.flatten(0, 1)[self.back].unsqueeze(0)


def in_parts(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """(first, stop) of prompts of these sizes that are read together, at most so many tokens; a longer one has a part
    of its own."""
    parts, first, size = list[tuple[int, int]](), 0, 0
    for number, each in enumerate(sizes):
        if number > first and size + each > most:
            parts.append((first, number))
            first, size = number, 0
        size += each
    return [*parts, (first, len(sizes))]


__all__ = ["Together", "in_parts"]
