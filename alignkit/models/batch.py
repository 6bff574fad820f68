"""From encoded groups to the one batch of the house: the prompt once, its responses beside one another (shared
prefix), and where attention goes piece by piece, all of it in one row without padding (packed), what all prompts begin
with, such as a system message, once for all of them, and what several groups hold, once for these."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alignkit.data.encode import EncodedGroup
from alignkit.models.attention import Piece

LEAST_SHARED = 8
"""Tokens that prompts must have in common, to be read once for all of them."""


def alike_at_first(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of these prompts begin with, at least one of each left over; 0 for fewer than `LEAST_SHARED`,
    or where there is one prompt alone."""
    most = min(map(len, prompts)) - 1
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    shared = min(sum(1 for _ in alike), most)
    return shared if shared >= LEAST_SHARED and len(prompts) > 1 else 0


@dataclass(frozen=True)
class MicroBatch:
    """Rows of groups that go through the model together.

    B rows, L tokens (padded on the right), R responses in all, T learned tokens of the longest response. In a row the
    prompt comes first (segment 0), then its responses (segments 1, 2, …), each starting at the position after the
    prompt; padding is segment -1. A packed batch is a single row, in which such rows stand one after another, and what
    all of their prompts begin with stands once, before them. Groups of one prompt, such as comparisons of several
    answers to it, stand there as one, each response once (Ouyang et al. 2022, arXiv 2203.02155, section 3.5).

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
        responses: [R] the number of each response in the whole round or data set, in order.
        groups: [R] the number of the group of each response in the whole round or data set.
        pieces: of a packed batch, in the order in which they stand in its row; of others empty.
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
    responses: Tensor
    groups: Tensor
    pieces: tuple[Piece, ...] = ()

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def group_order(self) -> list[int]:
        """The numbers of its groups, in the order in which their responses come."""
        return list(dict.fromkeys(self.groups.tolist()))

    @property
    def tokens(self) -> int:
        """Tokens of the rows, without their padding."""
        return int((self.segments >= 0).sum())

    @property
    def cells(self) -> int:
        """Tokens of the rows, with their padding."""
        return self.input_ids.numel()


@dataclass(frozen=True)
class _Learned:
    """What is learned of one response: the tokens, where the states stand that predict them, and its last place."""

    row: int
    targets: list[int]
    predict: list[int]
    last: int
    number: int
    group: int


@dataclass(frozen=True)
class _Row:
    """A prompt and the responses after it, which do not see one another."""

    prompt: list[int]
    trained: list[int]
    responses: list[list[int]]
    numbers: list[int]
    group: int

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(len(r) for r in self.responses)

    def ids(self) -> list[int]:
        return [*self.prompt, *(i for r in self.responses for i in r)]

    def positions(self, width: int) -> list[int]:
        start = len(self.prompt)
        own = [*range(start), *(start + t for r in self.responses for t in range(len(r)))]
        return [*own, *range(len(own), width)]

    def starts(self) -> list[int]:
        """Where each response begins."""
        return [*itertools.accumulate(map(len, self.responses[:-1]), initial=len(self.prompt))]

    def pieces(self, first: int, begun: int = 0) -> list[Piece]:
        """What attention goes by, where `first` is the number of the first one, and `begun` tokens of the prompt are
        the piece 0."""
        begins = 0 if begun else -1
        if len(self.responses) == 1:
            return [(self.length - begun, begins)]
        before = [(len(self.prompt) - begun, begins)] if self.prompt else []
        return before + [(len(r), first if before else -1) for r in self.responses if r]

    def segments(self) -> list[int]:
        return [0] * len(self.prompt) + [k for k, r in enumerate(self.responses, start=1) for _ in r]

    def learned(self, row: int, at: int = 0, begun: int = 0, starts: Sequence[int] | None = None) -> Iterator[_Learned]:
        """Of each response, in the batch's row `row`, where this one begins in place `at`, but for `begun` tokens of
        its prompt, which are the first of the batch's row. `starts` says where its responses do; None: as they come."""
        at -= begun
        for response, number, start in zip(self.responses, self.numbers, starts or self.starts(), strict=True):
            end = start + len(response)
            before = [len(self.prompt) - 1, *range(start, end - 1)][: len(response)]
            targets = [self.prompt[i] for i in self.trained] + response
            predict = [i if i < begun else at + i for i in [*(i - 1 for i in self.trained), *before]]
            yield _Learned(row, targets, predict, at + end - 1, number, self.group)


def row_length(group: EncodedGroup, shared: bool) -> int:
    """Tokens of the longest row that `group` makes."""
    lengths = [len(r) for r in group.responses]
    return len(group.prompt_ids) + (sum(lengths) if shared else max(lengths, default=0))


def parts_of(group: EncodedGroup, shared: bool, max_tokens: int) -> list[tuple[int, int]]:
    """Where a group's responses are parted, so that no part has more cells than a micro-batch may hold.

    Each part reads the prompt again, and a response alone may be longer than that.

    Args:
        group: with its responses.
        shared: whether the prompt is computed once for a part.
        max_tokens: cells that a micro-batch may hold.

    Returns:
        (first, end) of each part; one where the group fits.
    """
    prompt, sizes = len(group.prompt_ids), [len(r) for r in group.responses]
    parts, first, total, longest = [], 0, 0, 0
    for k, size in enumerate(sizes):
        total, longest = total + size, max(longest, size)
        cells = prompt + total if shared else (prompt + longest) * (k + 1 - first)
        if k > first and cells > max_tokens:
            parts.append((first, k))
            first, total, longest = k, size, size
    return [*parts, (first, len(sizes))]


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
    packed: bool = False,
) -> MicroBatch:
    """Lay groups out as one batch.

    Args:
        groups: encoded groups, each with at least one response.
        numbers: the number of each group in the whole round.
        first_responses: the number of each group's first response in the whole round.
        pad_id: any valid id; padding is never attended to.
        shared: one row per group (the prompt computed once), or one row per response.
        packed: these one after another in a single row, without padding.

    Returns:
        the batch, on the CPU.
    """
    rows = [
        row
        for group, n, first in zip(groups, numbers, first_responses, strict=True)
        for row in _rows(group, n, first, shared)
    ]
    if packed:
        return _packed(rows, pad_id)
    width = max(row.length for row in rows)
    return MicroBatch(
        input_ids=_padded([row.ids() for row in rows], width, pad_id),
        position_ids=torch.tensor([row.positions(width) for row in rows]),
        segments=_padded([row.segments() for row in rows], width, -1),
        shared=any(len(row.responses) > 1 for row in rows),
        **_of_responses([each for b, row in enumerate(rows) for each in row.learned(b)], pad_id),
    )


def _texts(rows: Sequence[_Row]) -> list[_Row]:
    """What a packed batch holds of these rows: those of one prompt as one, each of their responses once."""
    found = dict[tuple[int, ...], dict[tuple[int, ...], list[int]]]()
    for row in rows:
        found.setdefault(tuple(row.prompt), {}).update({tuple(each): each for each in row.responses})
    return [_Row([*prompt], [], [*responses.values()], [], -1) for prompt, responses in found.items()]


def _packed(rows: Sequence[_Row], pad_id: int) -> MicroBatch:
    texts = _texts(rows)
    begun = alike_at_first([text.prompt for text in texts])
    ids, positions, segments = texts[0].prompt[:begun], [*range(begun)], [0] * begun
    pieces = [(begun, -1)] if begun else list[Piece]()
    places = dict[tuple[int, ...], tuple[int, dict[tuple[int, ...], int]]]()
    for text in texts:
        places[tuple(text.prompt)] = len(ids), dict(zip(map(tuple, text.responses), text.starts(), strict=True))
        pieces += text.pieces(len(pieces), begun)
        ids += text.ids()[begun:]
        positions += text.positions(text.length)[begun:]
        segments += text.segments()[begun:]
    learned = list[_Learned]()
    for row in rows:
        at, starts = places[tuple(row.prompt)]
        learned += row.learned(0, at, begun, [starts[tuple(response)] for response in row.responses])
    return MicroBatch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        segments=torch.tensor([segments]),
        shared=any(len(text.responses) > 1 for text in texts),
        pieces=tuple(pieces),
        **_of_responses(learned, pad_id),
    )


def _of_responses(learned: Sequence[_Learned], pad_id: int) -> dict[str, Any]:
    """The fields of a batch that have an entry for each response."""
    longest = max(len(each.targets) for each in learned)
    return {
        "row": torch.tensor([each.row for each in learned]),
        "targets": _padded([each.targets for each in learned], longest, pad_id),
        "predict_index": _padded([each.predict for each in learned], longest, 0),
        "response_mask": _padded([[1] * len(each.targets) for each in learned], longest, 0).bool(),
        "last_index": torch.tensor([each.last for each in learned]),
        "responses": torch.tensor([each.number for each in learned]),
        "groups": torch.tensor([each.group for each in learned]),
    }


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
    """[rows, width] long, filled on the right."""
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)


def plan_micro_batches(
    lengths: Sequence[int], max_tokens: int, multiple_of: int = 1, packed: bool = False
) -> list[list[int]]:
    """Split the items of one optimizer step into micro-batches, of like lengths where these are padded.

    Args:
        lengths: tokens of each item's row (all its rows together, when prompts are not shared).
        max_tokens: cells that a micro-batch may hold, padding included; a single longer item gets one of its own.
        packed: there is no padding: each goes where it still fits.
        multiple_of: the number of micro-batches is a multiple of this (processes); the last ones may be empty.

    Returns:
        indices into `lengths`, longest first, so that the largest batch shows at once whether memory holds.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    room: list[int] = []
    for index in order if packed else ():
        place = next((b for b, left in enumerate(room) if lengths[index] <= left), len(batches))
        if place == len(batches):
            batches.append([])
            room.append(max_tokens)
        batches[place].append(index)
        room[place] -= lengths[index]
    for index in () if packed else order:
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
