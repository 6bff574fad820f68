"""What a step minimises: a loss with its declared terms, on the round's data or on a second stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.calls import whose
from alignkit.engine.losses import call_loss
from alignkit.engine.reduction import Layout, joins, reduce_terms
from alignkit.engine.training_data import Step, TrainingData
from alignkit.errors import PluginError
from alignkit.optimizers import Term
from alignkit.randomness import permutation
from alignkit.registry.records import BoundLoss

DIAGNOSTIC = Term(weight=0.0)


@dataclass(frozen=True)
class Objective:
    """A loss and how its terms become numbers.

    Args:
        loss: bound.
        terms: declared terms by name.
        name: what the term of a loss that returns one tensor is called.
        open: a term that is not declared is a diagnostic, rather than a mistake.
    """

    loss: BoundLoss
    terms: Mapping[str, Term]
    name: str = "loss"
    open: bool = False

    def __call__(
        self, tensors: Mapping[str, Tensor], layout: Layout, count: Callable[[str, str | None], float]
    ) -> tuple[Tensor | None, dict[str, float]]:
        """One micro-batch's share of the step, see `reduce_terms`.

        Raises:
            PluginError: a term that its weight would have learned from, and that has no gradient.
        """
        found = call_loss(self.loss, tensors, self.name)
        # What cannot be differentiated can only be for the eye, whoever returned it.
        free = [name for name, term in found.items() if not term.requires_grad]
        shown = list(found) if self.open else free
        declared = {**dict.fromkeys(shown, DIAGNOSTIC), **self.terms}
        for name in free if torch.is_grad_enabled() else ():
            if declared[name].weight and bool(found[name].detach().any()):
                raise PluginError(
                    f"term {name!r} has weight {declared[name].weight} and no gradient",
                    where=whose(self.loss),
                    effect="Nothing would be learned from it.",
                    remedy="detach no tensor that it is to change; for a number to look at declare weight 0",
                )
        return reduce_terms(found, declared, self.loss.tensor_names, layout, count, whose(self.loss))


def extra_objectives(losses: Mapping[str, BoundLoss], terms: Mapping[str, Term]) -> list[Objective]:
    """The objectives of an optimizer's extra losses, by name."""
    return [Objective(loss, terms, name, open=True) for name, loss in losses.items()]


def weighted(main: BoundLoss, extras: Iterable[tuple[str, BoundLoss]], terms: Mapping[str, Term]) -> list[BoundLoss]:
    """The loss, and of the extra losses those whose term has a weight: what is learned from.

    Args:
        main: the loss.
        extras: the others by name.
        terms: declared ones.
    """
    return [main, *(loss for name, loss in extras if name in terms and terms[name].weight)]


@dataclass
class StreamData:
    """The encoded rows of a second stream, drawn in an order of their own.

    Args:
        name: of the stream, and of its term.
        data: its rows.
        objective: what is learned from them.
        batch_size: groups per optimizer step.
        max_tokens: cells of a micro-batch.
        seed: path of the order's random numbers.
    """

    name: str
    data: TrainingData
    objective: Objective
    batch_size: int
    max_tokens: int
    seed: Sequence[int | str]
    _order: tuple[int, list[int]] = (-1, [])

    def step(self, index: int, world: int) -> Step:
        """The rows of optimizer step `index` (counted over the whole verb), lap after lap, each in an order of its own.

        Every batch is full: what is left over at the end of a lap waits for the next one.
        """
        rows = len(self.data.encoded)
        size = min(self.batch_size, rows)
        lap, place = divmod(index, rows // size)
        if self._order[0] != lap:
            self._order = lap, permutation(rows, *self.seed, lap)
        numbers = self._order[1][place * size : (place + 1) * size]
        together = joins(self.objective.loss.tensor_names)
        return Step(self.data.micro_batches(numbers, self.max_tokens, world, together), numbers)
