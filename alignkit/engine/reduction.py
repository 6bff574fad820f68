"""From unreduced values to numbers, with counts over the whole optimizer step.

A mean of micro-means is not the mean: with 4 and 1 tokens it gives the lone token four times the weight. So every sum
is divided by a count taken over all micro-batches and processes of the step, and the parts simply add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.errors import ConfigError
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
    """

    masks: Mapping[str, Tensor]
    response_group: Tensor
    pair_group: Tensor
    groups: int
    ranked: Tensor | None = None


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


def _check_size(name: str, term: Tensor, level: str, layout: Layout) -> None:
    sizes = {"pair": len(layout.pair_group), "response": len(layout.response_group)}
    sizes |= dict.fromkeys(("group", "ranking"), layout.groups)
    wanted = (len(layout.response_group),) if level == "token" else (sizes[level],)
    if term.shape[:1] != wanted:
        raise ConfigError(
            f"term {name!r} has shape {list(term.shape)}, a {level} term here has {list(wanted)} as its first",
            where="loss",
            remedy="return unreduced values: one per token, response, pair or group",
        )


def _per_response(term: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Token means per response [R], and which responses have tokens [R]."""
    lengths = mask.sum(-1)
    return (term * mask).sum(-1) / lengths.clamp(min=1), lengths > 0


def _per_group(values: Tensor, present: Tensor, group: Tensor, groups: int) -> Tensor:
    """Means over the elements of each group [B]; a group without elements gives 0."""
    zeros = torch.zeros(groups, dtype=values.dtype, device=values.device)
    sums = zeros.index_add(0, group, values * present)
    counts = zeros.index_add(0, group, present.to(values.dtype))
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
        return _per_group(values, present, group.to(values.device), layout.groups).sum()
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
) -> tuple[Tensor | None, dict[str, float]]:
    """This micro-batch's share of the step's total and of each term.

    Args:
        terms: unreduced values by name.
        declared: weight and reduction by name.
        tensor_names: what the loss asks for.
        layout: whom elements belong to.
        count: the step's counts, see `denominator`.

    Returns:
        (weighted total to differentiate, or None where every weight is 0; {term: its share, detached}).

    Raises:
        ConfigError: terms that were not declared, or a wrong size.
    """
    if not set(terms) <= set(declared):
        raise ConfigError(
            f"the loss returned the terms {sorted(terms)}, declared are {sorted(declared)}",
            where="loss",
            remedy="declare every term in the optimizer's terms(); weight 0 makes it a diagnostic",
        )
    total: Tensor | None = None
    shares: dict[str, float] = {}
    for name, term in terms.items():
        how, level = declared[name], level_of(term, tensor_names)
        _check_size(name, term, level, layout)
        divisor = denominator(how, level, count)
        if divisor is None:  # a diagnostic of which the step has none: no number is made up
            continue
        share = local_sum(term if how.weight else term.detach(), how, level, layout) / divisor
        shares[name] = float(share.detach())
        if how.weight:
            total = how.weight * share if total is None else total + how.weight * share
    return total, shares
