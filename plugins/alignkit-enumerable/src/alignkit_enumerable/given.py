"""The least value of a loss on given data over all tables: what a method that samples nothing makes for.

The loss is the registered one, in float64, given the tensors that it names; a pair, a ranking or a label weighs as the
optimizers weigh it: the mean over a row's pairs, then over rows; single labels by the mean over responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkit.plugin import Groups
from alignkit_enumerable.exact import tokens_of
from alignkit_enumerable.problem import Tree, listed

STEPS = 1500
"""Of Adam on the table."""


@dataclass(frozen=True)
class Given:
    """A loss on data.

    Args:
        tree: of the responses.
        loss_of: a loss of tensors by name, with `tensor_names`.
        reference: [prompts, states, tokens] log-probs.
        chosen: [pairs, 2] (prompt, response) of the better ones; of labelled responses all of them.
        rejected: [pairs, 2] of the worse ones; empty for labels.
        weights: [pairs], summing to 1.
        said: [pairs] the soft label, or of labels 1 and 0.
    """

    tree: Tree
    loss_of: Any
    reference: Tensor
    chosen: Tensor
    rejected: Tensor
    weights: Tensor
    said: Tensor

    @classmethod
    def of(cls, data: Groups, tree: Tree, loss: Any, reference: Tensor) -> Given:
        """Of the rows that a method was given: labels where its loss asks for them, else pairs."""
        labelled = "labels" in loss.tensor_names
        rows = [_labels(row, tree) if labelled else _pairs(row, tree) for row in data]
        flat = [(*entry, 1 / len(row)) for row in rows for entry in row]
        chosen, rejected = (torch.tensor([entry[side] for entry in flat]) for side in (0, 1))
        said, share = (torch.tensor([entry[i] for entry in flat], dtype=torch.float64) for i in (2, 3))
        weights = torch.full_like(share, 1 / len(flat)) if labelled else share / len(rows)
        return cls(tree, loss, reference, chosen, rejected, weights, said)

    def loss(self, logprobs: Tensor) -> float:
        """The loss of a table [prompts, states, tokens]."""
        with torch.no_grad():
            return float(self._loss(logprobs))

    def _loss(self, logprobs: Tensor) -> Tensor:
        now, ref = (tokens_of(table, self.tree) for table in (logprobs, self.reference))
        offered = self._labelled(now, ref) if self.by_labels else self._paired(now, ref)
        return (self.weights * self.loss_of(**{name: offered[name] for name in self.loss_of.tensor_names})).sum()

    @property
    def by_labels(self) -> bool:
        """Whether it learns from labels of single responses."""
        return "labels" in self.loss_of.tensor_names

    def _paired(self, now: Tensor, ref: Tensor) -> dict[str, Tensor]:
        lengths = self.tree.mask.sum(-1)
        sides = {"chosen": self.chosen, "rejected": self.rejected}
        offered: dict[str, Tensor] = {"preference_prob": self.said}
        for side, (prompt, response) in ((name, where.unbind(1)) for name, where in sides.items()):
            offered[f"{side}_logprobs"] = now.sum(-1)[prompt, response]
            offered[f"ref_{side}_logprobs"] = ref.sum(-1)[prompt, response]
            offered[f"{side}_lengths"] = lengths[response]
        return offered

    def _labelled(self, now: Tensor, ref: Tensor) -> dict[str, Tensor]:
        prompt, response = self.chosen.unbind(1)
        # Responses to the other prompt, as the baseline is measured on: a prompt's are those of the one after it.
        apart = (now - ref).sum(-1)[(prompt + 1) % len(now), response].mean().clamp(min=0).detach()
        return {
            "logprobs": now[prompt, response],
            "ref_logprobs": ref[prompt, response],
            "response_mask": self.tree.mask[response],
            "labels": self.said,
            "kl_baseline": apart.expand(len(self.said)),
        }

    def least(self) -> Tensor:
        """[prompts, states, tokens] log-probs of the table with the least loss that is found from the reference: by
        L-BFGS; of labels, whose baseline is held fixed while it is differentiated, by Adam."""
        logits = self.reference.clone().requires_grad_(True)
        best, value = self.reference, float("inf")

        def closure() -> float:
            nonlocal best, value
            logits.grad = None
            loss = self._loss(torch.log_softmax(logits, -1))
            if loss.item() < value:
                best, value = torch.log_softmax(logits.detach(), -1), loss.item()
            torch.autograd.backward(loss)
            return loss.item()

        if not self.by_labels:
            search = torch.optim.LBFGS(
                [logits], max_iter=1000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
            )
            search.step(closure)
            return best
        steps = torch.optim.Adam([logits], lr=0.1)
        for step in range(STEPS):
            steps.param_groups[0]["lr"] = 0.1 * (1 - step / STEPS) + 1e-4
            closure()
            steps.step()
        return best


Entry = tuple[tuple[int, int], tuple[int, int], float]


def _places(row: dict[str, Any], tree: Tree) -> list[tuple[int, int]]:
    prompt = listed(row["prompt"][-1]["content"])
    return [(prompt, tree.number(ids)) for ids in row["response_ids"]]


def _pairs(row: dict[str, Any], tree: Tree) -> list[Entry]:
    """Every two responses whose ranks differ, better first."""
    places, ranks = _places(row, tree), row["ranks"]
    said = 1.0 if row["preference_prob"] is None else row["preference_prob"]
    every = range(len(ranks))
    return [(places[a], places[b], said) for a in every for b in every if ranks[a] < ranks[b]]


def _labels(row: dict[str, Any], tree: Tree) -> list[Entry]:
    return [(place, place, float(good)) for place, good in zip(_places(row, tree), row["labels"], strict=True)]
