"""From encoded groups to the one batch of the house: the prompt once, its responses beside one another (shared
prefix)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alignkit.data.encode import EncodedGroup


@dataclass(frozen=True)
class MicroBatch:
    """Rows of groups that go through the model together.

    B rows, L tokens (padded on the right), R responses in all, T learned tokens of the longest response. In a row the
    prompt comes first (segment 0), then its responses (segments 1, 2, …), each starting at the position after the
    prompt; padding is segment -1.

    Args:
        input_ids: [B, L].
        position_ids: [B, L].
        segments: [B, L].
        shared: whether some row holds more than one response, so that attention needs the segment mask.
        row: [R] the row of each response.
        targets: [R, T] ids of the learned tokens: trained tokens of the prompt first, then the response.
        predict_index: [R, T] where in the row the hidden state stands that predicts the token.
        response_mask: [R, T] bool, which targets are real.
        last_index: [R] where in the row the last token of the response stands.
        response_lengths: [R] tokens of the response.
        group_sizes: responses of each group (a group may span rows when prompts are not shared).
        responses: [R] the number of each response in the whole round or data set, in order.
        groups: [R] the number of the group of each response in the whole round or data set.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    shared: bool
    row: Tensor
    targets: Tensor
    predict_index: Tensor
    response_mask: Tensor
    last_index: Tensor
    response_lengths: Tensor
    group_sizes: list[int]
    responses: Tensor
    groups: Tensor

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def num_tokens(self) -> int:
        """Cells of the padded batch: what the forward pass costs."""
        return self.input_ids.numel()


@dataclass(frozen=True)
class _Row:
    prompt: list[int]
    trained: list[int]
    responses: list[list[int]]
    numbers: list[int]
    group: int

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(len(r) for r in self.responses)


def row_length(group: EncodedGroup, shared: bool) -> int:
    """Tokens of the longest row that `group` makes."""
    lengths = [len(r) for r in group.responses]
    return len(group.prompt_ids) + (sum(lengths) if shared else max(lengths, default=0))


def _rows(group: EncodedGroup, number: int, first_response: int, shared: bool) -> list[_Row]:
    trained = [i for i, flag in enumerate(group.prompt_trained or []) if flag and i > 0]
    numbers = list(range(first_response, first_response + len(group.responses)))
    if shared:
        return [_Row(group.prompt_ids, trained, group.responses, numbers, number)]
    return [_Row(group.prompt_ids, trained, [r], [n], number) for r, n in zip(group.responses, numbers, strict=True)]


def collate(
    groups: Sequence[EncodedGroup],
    numbers: Sequence[int],
    first_responses: Sequence[int],
    *,
    pad_id: int,
    shared: bool = True,
) -> MicroBatch:
    """Lay groups out as one padded batch.

    Args:
        groups: encoded groups, each with at least one response.
        numbers: the number of each group in the whole round.
        first_responses: the number of each group's first response in the whole round.
        pad_id: any valid id; padding is never attended to.
        shared: one row per group (the prompt computed once), or one row per response.

    Returns:
        the batch, on the CPU.
    """
    rows = [
        row
        for group, n, first in zip(groups, numbers, first_responses, strict=True)
        for row in _rows(group, n, first, shared)
    ]
    width = max(row.length for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    positions = torch.arange(width).repeat(len(rows), 1)
    segments = torch.full((len(rows), width), -1, dtype=torch.long)
    items: list[tuple[int, list[int], list[int], int, int, int, int]] = []
    for b, row in enumerate(rows):
        start = len(row.prompt)
        ids[b, :start] = torch.tensor(row.prompt)
        segments[b, :start] = 0
        for k, (response, number) in enumerate(zip(row.responses, row.numbers, strict=True)):
            end = start + len(response)
            ids[b, start:end] = torch.tensor(response)
            positions[b, start:end] = torch.arange(len(row.prompt), len(row.prompt) + len(response))
            segments[b, start:end] = k + 1
            before = [len(row.prompt) - 1, *range(start, end - 1)][: len(response)]
            targets = [row.prompt[i] for i in row.trained] + response
            predict = [i - 1 for i in row.trained] + before
            items.append((b, targets, predict, end - 1, len(response), number, row.group))
            start = end
    longest = max(len(item[1]) for item in items)
    targets_t = torch.full((len(items), longest), pad_id, dtype=torch.long)
    predict_t = torch.zeros((len(items), longest), dtype=torch.long)
    mask = torch.zeros((len(items), longest), dtype=torch.bool)
    for r, item in enumerate(items):
        count = len(item[1])
        targets_t[r, :count] = torch.tensor(item[1])
        predict_t[r, :count] = torch.tensor(item[2])
        mask[r, :count] = True
    return MicroBatch(
        input_ids=ids,
        position_ids=positions,
        segments=segments,
        shared=any(len(row.responses) > 1 for row in rows),
        row=torch.tensor([item[0] for item in items]),
        targets=targets_t,
        predict_index=predict_t,
        response_mask=mask,
        last_index=torch.tensor([item[3] for item in items]),
        response_lengths=torch.tensor([item[4] for item in items]),
        group_sizes=[len(group.responses) for group in groups],
        responses=torch.tensor([item[5] for item in items]),
        groups=torch.tensor([item[6] for item in items]),
    )


def plan_micro_batches(lengths: Sequence[int], max_tokens: int, multiple_of: int = 1) -> list[list[int]]:
    """Split the items of one optimizer step into micro-batches of like lengths.

    Args:
        lengths: tokens of each item's row (all its rows together, when prompts are not shared).
        max_tokens: padded cells that a micro-batch may hold; a single longer item gets one of its own.
        multiple_of: the number of micro-batches is a multiple of this (processes); the last ones may be empty.

    Returns:
        indices into `lengths`, longest first, so that the largest batch shows at once whether memory holds.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    while len(batches) % multiple_of:
        widest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batch = batches[widest]
        half = (len(batch) + 1) // 2
        batches[widest] = batch[:half]
        batches.insert(widest + 1, batch[half:])
    return batches
