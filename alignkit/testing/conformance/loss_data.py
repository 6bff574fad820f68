"""Made-up tensors for losses, reproducible and awkward: unequal lengths, ties, unknown labels, padding that means
nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alignkit.engine.losses import call_loss
from alignkit.engine.reduction import Layout, level_of, reduce_terms
from alignkit.optimizers import Reduction, Term
from alignkit.registry.records import BoundLoss
from alignkit.vocabulary import VOCABULARY

ELEMENTS, TOKENS, CHOICES = 5, 6, 4
"""Responses, pairs and groups (as many of each, so that one index stands for one of them), tokens, K."""

LENGTHS = (6, 1, 4, 3, 6)
"""Learned tokens of each response, and responses of each group where they are fewer than K."""


def spec_of(name: str, provided: Mapping[str, str]) -> tuple[str, str]:
    """(level, source) of a tensor; of one that a method provides, by the shape that its text begins with."""
    if name in VOCABULARY:
        return VOCABULARY[name].level, VOCABULARY[name].source
    return ("token" if provided.get(name, "").startswith("[responses, tokens]") else "response"), "method"


@dataclass(frozen=True)
class Tensors:
    """What a loss is given.

    Args:
        values: by name.
        levels: by name.
        sources: by name.
        mask: [responses, tokens] of the tokens that count, whether or not the loss asks for it.
    """

    values: Mapping[str, Tensor]
    levels: Mapping[str, str]
    sources: Mapping[str, str]
    mask: Tensor

    def changed(self, change: Callable[[str, Tensor], Tensor]) -> Tensors:
        """The same with every tensor replaced by `change(name, tensor)`."""
        return replace(self, values={n: change(n, v) for n, v in self.values.items()})

    def but(self, **values: Tensor) -> Tensors:
        """The same with some tensors replaced; names that the loss does not ask for are passed over."""
        return replace(self, values={**self.values, **{n: v for n, v in values.items() if n in self.values}})

    def masked(self, mask: Tensor) -> Tensors:
        """The same under another mask [responses, tokens]."""
        return replace(self.but(response_mask=mask), mask=mask)

    def take(self, *elements: int) -> Tensors:
        """Only these responses, pairs and groups."""
        chosen = list(elements)
        return replace(self.changed(lambda _, value: value[chosen]), mask=self.mask[chosen])

    @property
    def count(self) -> int:
        """How many responses, pairs and groups."""
        return len(self.mask)

    def named(self, *, level: str = "", source: str = "") -> list[str]:
        """The tensors of a level, or a source."""
        return [n for n in self.values if level in ("", self.levels[n]) and source in ("", self.sources[n])]

    def to(self, dtype: torch.dtype) -> Tensors:
        """Floating-point tensors in this dtype."""
        return self.changed(lambda _, value: value.to(dtype) if value.is_floating_point() else value)

    @property
    def learned(self) -> list[str]:
        """The tensors that have a gradient in training."""
        return [n for n in self.values if self.sources[n] in ("policy", "value", "score")]

    def with_gradients(self) -> Tensors:
        """Fresh leaves, those that are learned through with a gradient to come."""
        return self.changed(lambda n, v: v.detach().clone().requires_grad_(n in self.learned))


def draw(names: tuple[str, ...], provided: Mapping[str, str], seed: int = 0) -> Tensors:
    """Tensors of these names, in float64."""
    specs = {name: spec_of(name, provided) for name in names}
    made = _everything(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, (level, _) in specs.items():
        if name not in made:
            size = (ELEMENTS, TOKENS) if level == "token" else (ELEMENTS,)
            made[name] = torch.rand(size, dtype=torch.float64, generator=generator)
    return Tensors(
        {name: made[name] for name in names},
        {name: level for name, (level, _) in specs.items()},
        {name: source for name, (_, source) in specs.items()},
        torch.arange(TOKENS) < torch.tensor(LENGTHS).unsqueeze(1),
    )


def _everything(seed: int) -> dict[str, Tensor]:
    """Every tensor of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, dtype=torch.float64, generator=generator)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=generator)

    n, lengths = ELEMENTS, torch.tensor(LENGTHS)
    wide = (n, TOKENS)
    logprobs, values = uniform(-3, -0.05, *wide), normal(*wide)
    chosen, rejected = uniform(-30, -2, n), uniform(-30, -2, n)
    ranks = torch.stack([torch.randperm(CHOICES, generator=generator) + 1 for _ in range(n)])
    made = {
        "logprobs": logprobs, "old_logprobs": logprobs + 0.3 * normal(*wide),
        "ref_logprobs": logprobs + 0.3 * normal(*wide), "advantages": normal(*wide), "values": values,
        "old_values": values + 0.3 * normal(*wide), "returns": values + normal(*wide),
        "entropy": uniform(0.5, 3, *wide), "mean_logprobs": uniform(-6, -3, *wide),
        "response_mask": torch.arange(TOKENS) < lengths.unsqueeze(1),
        "labels": torch.tensor([1, 0, 1, 0, 1]),
        "chosen_logprobs": chosen, "rejected_logprobs": rejected, "ref_chosen_logprobs": chosen + normal(n),
        "ref_rejected_logprobs": rejected + normal(n), "chosen_lengths": torch.tensor([7, 3, 12, 5, 9]),
        "rejected_lengths": torch.tensor([4, 8, 2, 11, 6]), "chosen_rewards": normal(n), "rejected_rewards": normal(n),
        "rating": torch.tensor([0, 1, 2, 3, -1]), "margin": uniform(0, 1, n), "preference_prob": torch.ones(n).double(),
        "chosen_safe": torch.tensor([True, False, True, False, True]),
        "rejected_safe": torch.tensor([False, True, True, False, False]),
        "rewards": normal(n, CHOICES), "ranks": ranks,
        "group_mask": torch.arange(CHOICES) < torch.tensor([4, 2, 3, 4, 2]).unsqueeze(1),
    }  # fmt: skip
    return made


def terms_of(loss: BoundLoss, tensors: Tensors) -> dict[str, Tensor]:
    """The unreduced values by the names of their terms."""
    return call_loss(loss, tensors.values)


def total(
    loss: BoundLoss,
    parts: list[Tensors],
    reduction: Reduction = "sequence",
) -> Tensor | None:
    """The loss of one optimizer step, reduced over its micro-batches as the engine does; None without a gradient.

    Args:
        loss: the loss.
        parts: its micro-batches.
        reduction: of every term.
    """
    masks, sizes = [part.mask for part in parts], [part.count for part in parts]
    counts = {
        "token": float(sum(int(mask.sum()) for mask in masks)),
        "sequence": float(sum(int((mask.sum(-1) > 0).sum()) for mask in masks)),
        **{kind: float(sum(sizes)) for kind in ("response", "pair", "group", "pair_group", "token_group", "ranking")},
    }
    whole: Tensor | None = None
    for part, mask, size in zip(parts, masks, sizes, strict=True):
        terms = terms_of(loss, part)
        declared = {name: Term(reduction=reduction) for name in terms}
        each = torch.arange(size)
        layout = Layout({"response_mask": mask}, each, each, size)
        found, _ = reduce_terms(terms, declared, loss.tensor_names, layout, lambda kind, _: counts[kind])
        whole = found if whole is None or found is None else whole + found
    return whole


def shown(term: Tensor, mask: Tensor) -> Tensor:
    """The values that count: token values under the mask; those of a method's own mask, as wide as that, all."""
    return term[mask] if term.ndim == 2 and term.shape == mask.shape else term


def level(loss: BoundLoss, term: Tensor) -> str:
    """What one element of a term is; a ranking is a group."""
    return {"ranking": "group"}.get(found := level_of(term, loss.tensor_names), found)


def gradients(value: Tensor | None, tensors: Tensors) -> dict[str, Tensor]:
    """The gradient of a number in every learned tensor, zeros where there is none."""
    leaves: dict[str, Any] = {n: tensors.values[n] for n in tensors.learned}
    if value is None or not value.requires_grad:
        return {n: torch.zeros_like(v) for n, v in leaves.items()}
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(leaves, found, strict=True)}
