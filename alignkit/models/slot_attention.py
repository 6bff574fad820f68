"""Attention of tokens to what their slots hold: in one call of torch's kernel, and one more for what all begin with.

A kernel says of each query how much it saw (the logarithm of the sum of its scores' exp), so that what two calls found
is put together without scores in memory: the way of flash attention (Dao et al. 2022, arXiv:2205.14135, section 3.1),
over two pieces. Where torch has no such kernel, or a family asks for more than it knows, it is done by hand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alignkit.models.attention import by_hand, has_matrix_units, refuse_unknown
from alignkit.models.together import Together


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
        query: [rows, heads, tokens, H]; [1, heads, tokens, H] of prompts that are read `Together`.
        key: [rows, key heads, width, H], see `SlotLayer.update`; of prompts with their beginning before them.
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
    together = getattr(key, "together", None)
    if together is not None:
        query = together.spread(query)
    rows, heads, tokens, size = query.shape
    scaling = size**-0.5 if scaling is None else scaling
    query, simple = query.to(key.dtype), softcap is None and s_aux is None
    if tokens > 1 or together is not None:
        if simple:
            # The queries of a key head stand beside one another, the head before each of them without a copy.
            grouped = query.reshape(rows * key.shape[1], -1, tokens, size)
            k, v = (each.flatten(0, 1).unsqueeze(1).expand(-1, grouped.shape[1], -1, -1) for each in (key, value))
            found = nn.functional.scaled_dot_product_attention(grouped, k, v, attn_mask=attention_mask, scale=scaling)
            return _laid_out(found.view(rows, heads, tokens, -1), together), None
        key, value = (each.repeat_interleave(heads // each.shape[1], 1) for each in (key, value))
        attention_mask = torch.zeros(attention_mask.shape, device=key.device).masked_fill_(~attention_mask, -torch.inf)
    grouped = query.reshape(rows, key.shape[1], -1, size)
    first = getattr(key, "kept_apart", None)
    if simple and tokens == 1 and in_one_call(key.device, key.dtype) and value.shape[-1] == size:
        found = _by_kernel(grouped, key, value, attention_mask, scaling, first)
    else:
        nothing = None
        if s_aux is not None:
            nothing = s_aux.reshape(1, key.shape[1], -1, 1).expand(rows, -1, -1, tokens).flatten(2)
        found = by_hand(grouped * scaling, key.mT, value, attention_mask, softcap, nothing, first)
    return _laid_out(found.reshape(rows, heads, tokens, -1), together), None


def in_one_call(device: torch.device, kind: torch.dtype | None) -> bool:
    """Whether torch's kernel is taken for tokens: on a processor, in sixteen bits where it has matrix units (keys are
    then read as they lie; others are slow at them: benchmarks/results/speed.md).

    Args:
        device: of the keys.
        kind: of the keys; None: not of sixteen bits.
    """
    return device.type == "cpu" and (kind not in (torch.bfloat16, torch.float16) or has_matrix_units())


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor, scaling: float, first: tuple[Tensor, Tensor] | None
) -> Tensor:
    """[rows, key heads, queries, H], of queries so laid out.

    Args:
        query: not scaled.
        key: [rows, key heads, width, H].
        value: [rows, key heads, width, H].
        added: [rows, 1, 1, width], or with what `first` has before that.
        scaling: of the products.
        first: keys and values [1, key heads, tokens, H] that stand before those of every row, and are seen by all.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if query.dtype is torch.float64:  # by a mask of another type it gives other numbers, and says nothing
        added = added.double()
    if first is None:
        own: Tensor = flash(query, key, value, attn_mask=added, scale=scaling)[0]
        return own
    rows, heads, queries, size = query.shape
    own, saw = flash(query, key, value, attn_mask=added[..., first[0].shape[2] :], scale=scaling)
    of_all = query.transpose(0, 1).reshape(1, heads, rows * queries, size)
    begun, saw_first = flash(of_all, *first, scale=scaling)
    begun = begun.view(heads, rows, queries, size).transpose(0, 1)
    saw_first = saw_first.reshape(heads, rows, queries).transpose(0, 1)
    share = torch.sigmoid(saw_first - saw).unsqueeze(-1).to(own.dtype)
    return torch.lerp(own, begun, share)


def _laid_out(found: Tensor, together: Together | None) -> Tensor:
    """[rows, heads, tokens, H] as a layer takes it: [rows, tokens, heads, H], or the row of prompts read together."""
    found = found.transpose(1, 2)
    return found if together is None else together.gather(found)


__all__ = ["attend", "in_one_call"]
