"""The gradient of a method's first step by a second, plainer road: one response at a time, in float64.

Nothing of the engine is used: no padding, no micro-batch, no shared prompt, no counts over a step. What is the method's
own stays so: its losses, its terms, and what its `prepare` gave. So what is compared is all that lies between them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignkit.data.encode import encode_groups
from alignkit.groups import RATINGS, Groups
from alignkit.models import Policy
from alignkit.optimizers import Batch, PolicyOptimizer, Term
from alignkit.registry.records import BoundLoss
from alignkit.testing.conformance.outcome import skip
from alignkit.vocabulary import VOCABULARY, select

Tensors = dict[str, Tensor]

LIMIT = 4096
"""Tokens of the longest prompt and the longest response."""


@dataclass
class Reader:
    """What a policy and its reference say of single responses.

    Args:
        policy: learns; float64.
        reference: float64.
        temperature: of all log-probs.
        head: weight [H] and bias [1] of the values, as a fresh head has them: 0.
        known: what was read already, by (prompt, response).
    """

    policy: Policy
    reference: Policy
    temperature: float
    head: Tensors = field(default_factory=dict)
    known: dict[tuple[Any, Any], Tensors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        width = int(self.policy.config.hidden_size)
        self.head = {
            name: torch.zeros(size, dtype=torch.float64, requires_grad=True)
            for name, size in (("weight", width), ("bias", 1))
        }

    def read(self, prompt: Sequence[int], response: Sequence[int]) -> Tensors:
        """Every tensor of single tokens, [tokens] each; those of the policy and of the values have a gradient."""
        key = (tuple(prompt), tuple(response))
        if key not in self.known:
            found = self._passed(self.policy, prompt, response)
            found["values"] = found.pop("hidden") @ self.head["weight"] + self.head["bias"]
            with torch.no_grad():
                found["ref_logprobs"] = self._passed(self.reference, prompt, response)["logprobs"]
            found |= {f"old_{name}": found[name].detach() for name in ("logprobs", "values")}
            self.known[key] = found
        return self.known[key]

    def _passed(self, policy: Policy, prompt: Sequence[int], response: Sequence[int]) -> Tensors:
        """What one forward pass over one sequence gives."""
        out = policy.model(input_ids=torch.tensor([[*prompt, *response]]), output_hidden_states=True)
        here = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        each = torch.log_softmax(out.logits[0, here] / self.temperature, -1)
        return {
            "logprobs": each[torch.arange(len(response)), torch.tensor(response, dtype=torch.long)],
            "entropy": -(each.exp() * each).sum(-1),
            "mean_logprobs": each.mean(-1),
            "hidden": out.hidden_states[-1][0, here],
        }

    def gradients(self) -> dict[str, Tensor]:
        """By the engine's names of the weights; what has none is left out."""
        named = {f"model.{name}": weight.grad for name, weight in self.policy.model.named_parameters()}
        named |= {f"value_head.linear.{name}": weight.grad for name, weight in self.head.items()}
        return {name: gradient for name, gradient in named.items() if gradient is not None}


@dataclass(frozen=True)
class Said:
    """A response: its row in the groups, its prompt and its own ids, and what was said of it (1 good, 0 bad, -1)."""

    row: int
    prompt: list[int]
    ids: list[int]
    label: float


def said_in(groups: Groups, policy: Policy) -> list[Said]:
    """Every response of the groups, in order."""
    encoded, problems = encode_groups(groups, policy.chat, max_prompt_tokens=LIMIT, max_response_tokens=LIMIT)
    if problems or any(each.prompt_trained for each in encoded):
        skip("it learns from rows of which not every response can be read alone")
    return [
        Said(number, each.prompt_ids, ids, -1.0 if label is None else float(label))
        for number, (each, row) in enumerate(zip(encoded, groups, strict=True))
        for ids, label in zip(each.responses, row["labels"] or [None] * len(each.responses), strict=True)
    ]


@dataclass(frozen=True)
class Element:
    """One value of a term: [tokens] with their weights, or one number; and the row that it belongs to."""

    row: int
    value: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """What the first step learns from: all of a batch.

    Args:
        reader: of its responses.
        batch: that `prepare` returned.
        said: its responses, in order.
    """

    reader: Reader
    batch: Batch
    said: list[Said]

    def total(self, method: PolicyOptimizer, build: Callable[[Any], BoundLoss]) -> Tensor:
        """What the step minimises.

        Args:
            method: whose terms are weighted and reduced.
            build: binds a loss.

        Raises:
            DoesNotApplyError: a loss that asks for what single responses do not have.
        """
        losses = {"loss": method.loss, **method.extra_losses()}
        declared, whole = method.terms(), torch.zeros((), dtype=torch.float64)
        for called, each in losses.items():
            for name, values in self.terms(build(each), called).items():
                if name in declared and declared[name].weight:
                    how = declared[name]
                    elements = [_element(*value, how) for value in values]
                    whole = whole + how.weight * reduced(elements, how)
        return whole

    def terms(self, loss: BoundLoss, called: str) -> dict[str, list[tuple[int, Tensors, Tensor]]]:
        """By term: (row, what the loss was given, what it returned) of each response or pair; it is called for one at a
        time."""
        units = self.pairs() if select(loss.tensor_names, level="pair") else self.responses()
        found: dict[str, list[tuple[int, Tensors, Tensor]]] = {}
        for row, tensors in units:
            missing = [name for name in loss.tensor_names if name not in tensors and name not in loss.optional]
            if missing:
                skip(f"its loss {loss.name} asks for {missing}, which no response has alone")
            # A copy, so that a loss that writes into what it is given spoils no other call.
            value = loss(**{name: tensors[name].clone() for name in loss.tensor_names if name in tensors})
            for name, term in (value if isinstance(value, Mapping) else {called: value}).items():
                found.setdefault(name, []).append((row, tensors, term))
        return found

    def responses(self) -> Iterator[tuple[int, Tensors]]:
        """(row, [1, tokens] and [1] by name) of each response."""
        for number, one in enumerate(self.said):
            read = self.reader.read(one.prompt, one.ids)
            tensors = {name: value.unsqueeze(0) for name, value in read.items()}
            tensors["response_mask"] = torch.ones(1, len(one.ids), dtype=torch.bool)
            tensors["labels"] = torch.tensor([one.label], dtype=torch.float64)
            for name, value in self.batch.tensors.items():
                mine = value[number : number + 1]
                mine = mine[:, : len(one.ids)] if mine.ndim == 2 else mine
                tensors[name] = mine.double() if mine.is_floating_point() else mine
            yield one.row, tensors

    def pairs(self) -> Iterator[tuple[int, Tensors]]:
        """(row of the better one, [1] by name) of each pair."""
        for chosen, rejected, told in self.compared():
            tensors = {name: torch.tensor([value]) for name, value in told.items()}
            for side, number in (("chosen", chosen), ("rejected", rejected)):
                one = self.said[number]
                read = self.reader.read(one.prompt, one.ids)
                tensors[f"{side}_logprobs"] = read["logprobs"].sum().unsqueeze(0)
                tensors[f"ref_{side}_logprobs"] = read["ref_logprobs"].sum().unsqueeze(0)
                tensors[f"{side}_lengths"] = torch.tensor([len(one.ids)])
            yield self.said[chosen].row, tensors

    def compared(self) -> Iterator[tuple[int, int, dict[str, float]]]:
        """(chosen, rejected, what is said of the two): those that `prepare` named, or else those of unequal rank."""
        blank = {"rating": -1, "margin": 0.0, "preference_prob": 1.0, "chosen_safe": -1.0, "rejected_safe": -1.0}
        if self.batch.pairs is not None:
            yield from ((chosen, rejected, blank) for chosen, rejected in self.batch.pairs)
            return
        first = 0
        for row in self.batch.groups:
            ranks, meta = row["ranks"] or [], json.loads(row["meta"]) if row["meta"] else {}
            told = {
                "rating": RATINGS.index(row["rating"]) if row["rating"] else -1,
                "margin": float(meta.get("margin") or 0.0),
                "preference_prob": 1.0 if row["preference_prob"] is None else row["preference_prob"],
            }
            safe = [-1.0 if flag is None else float(flag) for flag in meta.get("safe") or [None] * len(ranks)]
            for i, better in enumerate(ranks):
                for k, worse in enumerate(ranks):
                    if better < worse:
                        yield first + i, first + k, {**told, "chosen_safe": safe[i], "rejected_safe": safe[k]}
            first += len(row["responses"])


def _element(row: int, tensors: Tensors, term: Tensor, how: Term) -> Element:
    """A value with the weights of its tokens, under the mask that its term declares."""
    if term.ndim < 2:
        return Element(row, term[0])
    whole = torch.ones(term.shape[1], dtype=torch.float64)
    return Element(row, term[0], whole if how.mask is None else tensors[how.mask][0].double())


def reduced(elements: Sequence[Element], how: Term) -> Tensor:
    """A term as the number that `Term` says, by sums over lists.

    Args:
        elements: of the whole step.
        how: its reduction.
    """
    told = [each for each in elements if each.weights is None or float(each.weights.sum()) > 0]
    sums = [_sum(each) for each in told]
    if not told:
        return torch.zeros((), dtype=torch.float64)
    if how.reduction == "token" and told[0].weights is not None:
        return torch.stack(sums).sum() / sum(float(each.weights.sum()) for each in told if each.weights is not None)
    if how.reduction == "constant":
        return torch.stack(sums).sum() / (how.constant * len(told))
    means = [s / each.weights.sum() if each.weights is not None else s for s, each in zip(sums, told, strict=True)]
    if how.reduction != "group":
        return torch.stack(means).mean()
    members = {
        row: [m for m, each in zip(means, told, strict=True) if each.row == row] for row in {e.row for e in told}
    }
    of_rows = [torch.stack(each).mean() for each in members.values()]
    return torch.stack(of_rows).mean()  # rows without an element are no part of it


def _sum(each: Element) -> Tensor:
    return each.value if each.weights is None else (each.value * each.weights)[each.weights != 0].sum()


def far_apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[float, float, str]:
    """(largest difference, largest element of `other`, the weight where they differ most); what is missing is 0."""
    most, where = 0.0, ""
    for name in {*one, *other}:
        a, b = (each[name].double().flatten() if name in each else torch.zeros(1).double() for each in (one, other))
        apart = float((a - b).abs().max())
        if apart > most or math.isnan(apart):
            most, where = apart, name
    return most, max((float(each.abs().max()) for each in other.values()), default=0.0), where


def measured(reader: Reader, said: Sequence[Said], name: str, width: int) -> Tensor:
    """[responses, width] float64: what the engine should have measured before the first step, 0 beyond a response."""
    assert name in VOCABULARY
    rows = [reader.read(one.prompt, one.ids)[name].detach() for one in said]
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
