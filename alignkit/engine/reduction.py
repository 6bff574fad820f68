"""From unreduced values to numbers, with counts over the whole optimizer step.

A mean of micro-means is not the mean: with 4 and 1 tokens it gives the lone token four times the weight. So every sum
is divided by a count taken over all micro-batches and processes of the step, and the parts simply add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.errors import ConfigError, PluginError
from alignkit.optimizers import Term
from alignkit.vocabulary import select


@dataclass(frozen=True)
class Layout:
    """Whom the elements of a micro-batch belong to.

    Args:
        masks: token masks [R, T] by name.
        response_group: [R] group of each response, numbered within the micro-batch.
        pair_group: [P] group of each pair, likewise.
        groups: how many groups.
        ranked: [B] bool, the groups in which some rank differs from another; None: all.
        counts: where some group has only a part of its responses here: `(level, mask)` gives of each group [B] how many
            elements it has in all; None where all are here.
    """

    masks: Mapping[str, Tensor]
    response_group: Tensor
    pair_group: Tensor
    groups: int
    ranked: Tensor | None = None
    counts: Callable[[str, str | None], Tensor] | None = None


def level_of(term: Tensor, tensor_names: tuple[str, ...]) -> str:
    """What one element of a term is: "token", or as `level_named` says. Told by the loss's signature, not by sizes."""
    return "token" if term.ndim == 2 else level_named(tensor_names)


def level_named(tensor_names: Iterable[str]) -> str:
    """What one element of a term without tokens is: "pair", "ranking" (a group by its ranks: where none differs from
    another there is no element), "group" or "response"."""
    if select(tensor_names, level="pair"):
        return "pair"
    if select(tensor_names, level="group"):
        return "ranking" if "ranks" in tensor_names else "group"
    return "response"


def joins(tensor_names: Iterable[str]) -> bool:
    """Whether one of these tensors says something of several responses of a group, which then stay together."""
    return bool(select(tensor_names, level="pair") or select(tensor_names, level="group"))


def _check_size(name: str, term: Tensor, how: Term, level: str, layout: Layout, where: str) -> None:
    """Refuse a term whose elements are not those of the micro-batch."""
    sizes = {"pair": len(layout.pair_group), "response": len(layout.response_group)}
    sizes |= dict.fromkeys(("group", "ranking"), layout.groups)
    mask = layout.masks.get(how.mask or "response_mask")
    wanted = [sizes[level]] if level != "token" else [sizes["response"]] if mask is None else list(mask.shape)
    shape = list(term.shape[: len(wanted)] if level == "token" else term.shape)
    alike = level == "token" and shape == [sizes["response"], 1]  # one number for all tokens of a response
    if shape != wanted and not alike:
        what = f"term {name!r} has shape {list(term.shape)}, a {level} term here has {wanted}"
        raise PluginError(what, where=where, remedy="return unreduced values: one per token, response, pair or group")
    if mask is not None and term.device != mask.device:
        what = f"term {name!r} is on {term.device}, the tensors that the loss was given on {mask.device}"
        raise PluginError(what, where=where, remedy="make new tensors on the device of those that are given")


def _per_response(term: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Token means per response [R], and which responses have tokens [R]."""
    lengths = mask.sum(-1)
    return (term * mask).sum(-1) / lengths.clamp(min=1), lengths > 0


def _per_group(values: Tensor, present: Tensor, group: Tensor, groups: int, counts: Tensor | None) -> Tensor:
    """This micro-batch's part of the mean over the elements of each group [B]; a group without elements gives 0.

    Args:
        values: [elements].
        present: [elements], which of them count.
        group: [elements], of each.
        groups: B.
        counts: [B] elements of each group in all; None: they are all here.
    """
    zeros = torch.zeros(groups, dtype=values.dtype, device=values.device)
    sums = zeros.index_add(0, group, values * present)
    counts = zeros.index_add(0, group, present.to(values.dtype)) if counts is None else counts.to(values.dtype)
    return sums / counts.clamp(min=1)


def local_sum(term: Tensor, how: Term, level: str, layout: Layout) -> Tensor:
    """The numerator that one micro-batch contributes (a scalar)."""
    if level == "token":
        mask = layout.masks[how.mask] if how.mask else torch.ones_like(term)
        # Where the mask is 0 the value may be anything, NaN included, and must not reach the sum or the gradient.
        term = torch.where(mask.bool(), term, torch.zeros_like(term))
        if how.reduction in ("token", "constant"):
            return (term * mask).sum()
        values, present = _per_response(term, mask.to(term.dtype))
        group = layout.response_group
    elif level == "ranking":
        return term.sum() if layout.ranked is None else term.where(layout.ranked, 0).sum()
    else:
        values, present = term, torch.ones_like(term, dtype=torch.bool)
        group = {"pair": layout.pair_group, "response": layout.response_group}.get(level, torch.arange(len(term)))
    if how.reduction == "group" and level != "group":
        counts = None if layout.counts is None else layout.counts(level, how.mask)
        return _per_group(values, present, group.to(values.device), layout.groups, counts).sum()
    return (values * present).sum()


def denominator(how: Term, level: str, count: Callable[[str, str | None], float]) -> float | None:
    """The divisor of a term over the whole step; None for a diagnostic of which the step has no element.

    Args:
        how: the term's reduction.
        level: its level.
        count: gives the step's number of "token" (under a mask), "sequence" (responses with tokens), "token_group"
            (groups with such a response), "response", "pair", "group", "pair_group" (groups with a pair) or "ranking"
            (groups in which ranks differ).
    """
    if level == "token":
        kind = {"token": "token", "sequence": "sequence", "constant": "sequence", "group": "token_group"}[how.reduction]
    elif level == "ranking":
        kind = level
    elif how.reduction == "group":
        kind = "pair_group" if level == "pair" else "group"
    else:
        kind = level
    elements = count(kind, how.mask)
    if not elements and not how.weight:
        return None
    return max(elements, 1.0) * (how.constant if how.reduction == "constant" else 1.0)


def reduce_terms(
    terms: Mapping[str, Tensor],
    declared: Mapping[str, Term],
    tensor_names: tuple[str, ...],
    layout: Layout,
    count: Callable[[str, str | None], float],
    where: str = "loss",
) -> tuple[Tensor | None, dict[str, float]]:
    """This micro-batch's share of the step's total and of each term.

    Args:
        terms: unreduced values by name.
        declared: weight and reduction by name.
        tensor_names: what the loss asks for.
        layout: whom elements belong to.
        count: the step's counts, see `denominator`.
        where: the loss, for errors.

    Returns:
        (weighted total to differentiate, or None where every weight is 0; {term: its share, detached}).

    Raises:
        ConfigError: terms that were not declared.
        PluginError: a term of a wrong shape, or on another device.
    """
    if not set(terms) <= set(declared):
        raise ConfigError(
            f"the loss returned the terms {sorted(terms)}, declared are {sorted(declared)}",
            where=where,
            remedy="declare every term in the optimizer's terms(); weight 0 makes it a diagnostic",
        )
    total: Tensor | None = None
    shares: dict[str, float] = {}
    for name, term in terms.items():
        how, level = declared[name], level_of(term, tensor_names)
        _check_size(name, term, how, level, layout, where)
        divisor = denominator(how, level, count)
        if divisor is None:  # a diagnostic of which the step has none: no number is made up
            continue
        share = local_sum(term if how.weight else term.detach(), how, level, layout) / divisor
        shares[name] = float(share.detach())
        if how.weight:
            total = how.weight * share if total is None else total + how.weight * share
    return total, shares
