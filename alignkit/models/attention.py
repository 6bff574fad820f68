"""Attention of texts that lie one after another in a single row, piece by piece: no padding, and no mask of the row.

A piece is a text, or a prompt that several responses share, or one of these responses, or what several prompts begin
with. Each attends to itself and to what it goes on from, a response to its prompt and to what that goes on from, in one
call whose mask is as small as the piece. It goes through transformers' registry of attentions, so that every family
profits whose attention is asked for there; `alignkit.models.forward` tries it before it is used. Layers get the pieces
in the place of their mask, which is what they hand on unread.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = "alignkit_pieces"
"""Name of the attention in the library's registry."""

HARMLESS = frozenset({"sliding_window", "is_causal", "position_ids", "cache_position", "use_cache", "dropout"})
"""What families pass to their attention that the masks (or nothing) stand for already."""

Piece = tuple[int, int]
"""(tokens, number of the piece that it goes on from, which stands before it; -1: none)."""


def mask_of_pieces(pieces: Sequence[Piece], window: int | None) -> Tensor:
    """[1, 1, P, 3], on the CPU whatever the model is on: the pieces, as a mask that passes through every layer.

    Args:
        pieces: in the order in which they stand in the row.
        window: how many tokens, itself included, a token looks back on; None: all.
    """
    return torch.tensor([(*piece, window or 0) for piece in pieces])[None, None]


AT_ONCE = 2**20
"""Scores of pieces, of one head, that are read in one call: eight responses of 48 tokens to a prompt of 120 take two
thirds of the time of eight calls (benchmarks/results/speed.md)."""

LEAST = 128
"""Tokens of a piece that count for that at the least: of shorter ones it is the keys that take memory."""

_within: list[Any] = []


@contextlib.contextmanager
def by_pieces(config: Any) -> Iterator[None]:
    """Within it a model of this configuration takes `mask_of_pieces` for its masks."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    _within.append(config)
    try:
        yield
    finally:
        _within.pop()
        config._attn_implementation = before


def as_now() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What brings the attention of now back when layers are computed again, in the backward pass."""
    if not _within:
        return contextlib.nullcontext
    return functools.partial(by_pieces, _within[-1])


def refuse_unknown(other: dict[str, Any]) -> None:
    """Raise where a family passes to its attention what is not computed here.

    Raises:
        NotImplementedError: naming it.
    """
    if more := sorted(k for k, v in other.items() if v is not None and v is not False and k not in HARMLESS):
        raise NotImplementedError(f"attention with {more}")


LONG = 384
"""Tokens from which attention is faster in bfloat16 on a processor with matrix units (AMX). Below, torch's kernel takes
two to ten times as long as in float32 for its gradient (benchmarks/results/speed.md)."""


@functools.cache
def has_matrix_units() -> bool:
    """Without, attention takes 1.5 to 2.2 times as long in bfloat16 as in float32 (`benchmarks/shared_prefix.py`)."""
    return torch.cpu._is_amx_tile_supported()


def _outer(query: Tensor) -> torch.dtype:
    """The type of what attention gives, as autocast would have it."""
    kind, device = query.dtype, query.device.type
    if kind is not torch.float64 and torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    return kind


def _inner(kind: torch.dtype, query: Tensor, tokens: int = 0) -> torch.dtype:
    """That type, or float32 where the processor is slow in it for a piece of so many tokens."""
    fast = query.device.type != "cpu" or (tokens >= LONG and has_matrix_units())
    return kind if fast or kind not in (torch.bfloat16, torch.float16) else torch.float32


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
    """Attention of each piece of a row.

    Args:
        module: the family's attention.
        query: [1, heads, tokens, H].
        key: [1, key heads, tokens, H].
        value: [1, key heads, tokens, H].
        attention_mask: see `mask_of_pieces`.
        scaling: of the products; None: one over the root of H.
        softcap: scores are kept below it by tanh (Gemma 2).
        s_aux: [heads], a score of nothing beside those of the keys (gpt-oss).
        other: what else a family passes.

    Returns:
        ([1, tokens, heads, H], None).

    Raises:
        NotImplementedError: the family's attention knows more than this.
    """
    refuse_unknown(other)
    runs = _runs(tuple(map(tuple, attention_mask[0, 0].tolist())))
    sizes = [size * alike for size, _, _, alike in runs]
    outer = _outer(query)
    # Split, not sliced: the gradients of the pieces are then put together once, and not padded to the row each.
    queries, keys, values = (each.to(_inner(outer, query)).split(sizes, 2) for each in (query, key, value))
    found, read = list[Tensor](), list[tuple[Tensor, Tensor]]()  # of each piece, keys and values from its beginning on
    with torch.autocast(query.device.type, enabled=False):
        for place, (size, before, window, alike) in enumerate(runs):
            q, k, v = (_apart(each[place], alike) for each in (queries, keys, values))
            if before >= 0:
                first = (each.expand(alike, -1, -1, -1) for each in read[before])
                k, v = (torch.cat(pair, 2) for pair in zip(first, (k, v), strict=True))
            read += [(k, v)] * alike
            inner = _inner(outer, query, size)
            q, k, v = (each.to(inner) for each in (q, k, v))
            own = _of_piece(q, k, v, window, scaling, softcap, s_aux).to(outer).transpose(1, 2)
            found.append(own.reshape(1, alike * size, *own.shape[2:]))
    return torch.cat(found, 1), None


@functools.lru_cache(128)
def _runs(pieces: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int, int, int]]:
    """(tokens, number of the piece that it goes on from, window, how many such pieces stand one after another): those
    that nothing goes on from are read in one call, of so many scores at the most.

    Args:
        pieces: (tokens, number of the piece that it goes on from, window).
    """
    read, found = {before for _, before, _ in pieces}, list[tuple[int, int, int, int]]()
    widths, last = list[int](), False  # whether the piece before is such a one
    for number, piece in enumerate(pieces):
        size, before, _ = piece
        widths.append(size + (widths[before] if before >= 0 else 0))
        leaf = before >= 0 and number not in read
        if leaf and last and found[-1][:3] == piece and (found[-1][3] + 1) * max(size, LEAST) * widths[-1] <= AT_ONCE:
            found[-1] = (*piece, found[-1][3] + 1)
        else:
            found.append((*piece, 1))
        last = leaf
    return found


def _apart(states: Tensor, pieces: int) -> Tensor:
    """[1, heads, tokens, H] of pieces of one length as [pieces, heads, tokens of a piece, H]."""
    return states if pieces == 1 else states.unflatten(2, (pieces, -1))[0].transpose(0, 1)


def _of_piece(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """[texts, heads, tokens, H] of the last tokens of texts of one length, which see the keys before them; 0 is no
    window."""
    tokens, width = query.shape[2], key.shape[2]
    simple = softcap is None and s_aux is None
    causal = tokens == width and (not window or width <= window)
    seen = None if simple and causal else _seen(tokens, width, window, query.device)
    if simple:
        return nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=seen,
            is_causal=causal,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    assert seen is not None
    heads = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(heads, 1) for each in (key, value))
    scaled = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    nothing = None if s_aux is None else s_aux.reshape(1, -1, 1).expand(len(query), -1, tokens)
    added = torch.zeros(seen.shape, dtype=key.dtype, device=key.device).masked_fill_(~seen, -torch.inf)
    return by_hand(scaled, key.mT, value, added, softcap, nothing)


@functools.lru_cache(128)
def _seen(tokens: int, width: int, window: int, device: torch.device) -> Tensor:
    """[tokens, width] bool: which keys the last tokens of a text see."""
    back = torch.arange(width - tokens, width, device=device)[:, None] - torch.arange(width, device=device)
    return (back >= 0) & (back < window) if window else back >= 0


def by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    added: Tensor,
    softcap: float | None,
    nothing: Tensor | None,
    first: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention as no kernel has it, at the least in float32 between the two products.

    Args:
        query: [rows, heads, queries, H], scaled.
        key: [rows, heads, H, width].
        value: [rows, heads, width, H].
        added: to the scores, of a shape that broadcasts to [rows, heads, queries, width].
        softcap: scores are kept below it by tanh; None: they are not.
        nothing: [rows, heads, queries], the score of seeing nothing; None: there is none.
        first: keys and values [1, heads, tokens, H] that stand before those of every row, `added` says of them too.

    Returns:
        [rows, heads, queries, H].
    """
    scores = torch.matmul(query, key)
    if first is not None:
        scores = torch.cat([_with_one(query, first[0].mT), scores], -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + added
    if nothing is not None:
        scores = torch.cat([scores, nothing.to(scores.dtype).unsqueeze(-1)], -1)
    before = 0 if first is None else first[1].shape[2]
    weights = scores.softmax(-1)[..., : before + key.shape[-1]].to(value.dtype)
    found = torch.matmul(weights[..., before:], value)
    return found if first is None else _with_one(weights[..., :before], first[1]) + found


def _with_one(rows: Tensor, matrix: Tensor) -> Tensor:
    """The product of [rows, heads, n, a] with the one [1, heads, a, b] that all rows share, read once for all of them:
    [rows, heads, n, b]."""
    size, heads, n, _ = rows.shape
    found = torch.matmul(rows.transpose(0, 1).flatten(1, 2), matrix[0])
    return found.view(heads, size, n, -1).transpose(0, 1)


__all__ = ["Piece", "as_now", "by_hand", "by_pieces", "has_matrix_units", "mask_of_pieces", "refuse_unknown"]
