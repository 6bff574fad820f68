"""What an optimizer step costs, known from lengths before it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignkit.engine.assemble import passes
from alignkit.engine.objectives import StreamData
from alignkit.engine.reference import Reference
from alignkit.engine.training_data import Step, TrainingData
from alignkit.meter import Meter
from alignkit.models import Policy, RewardModel
from alignkit.models.arithmetic import Flops
from alignkit.vocabulary import select


@dataclass(frozen=True)
class StepCost:
    """Of one step, over all processes.

    Args:
        counts: of the names of `alignkit.meter.COUNTS`.
        flops: of all its passes.
        reference: operations among them of the reference's pass.
    """

    counts: dict[str, int]
    flops: Flops
    reference: int = 0

    @property
    def amounts(self) -> dict[str, int]:
        """As a budget names them."""
        return {**self.counts, "flops": sum(self.flops)}

    def count(self, meter: Meter) -> None:
        """The step was taken."""
        for name in ("optimizer_steps", "trained_tokens"):
            meter.add(name, self.counts[name])
        meter.compute(self.flops.forward - self.reference, self.flops.backward)
        if self.reference:  # without a gradient, and timed as the reference's
            with meter.phase("reference"):
                meter.add("scored_tokens", self.counts["scored_tokens"])
                meter.compute(self.reference)


@dataclass(frozen=True)
class StepCosts:
    """Works out what steps cost.

    Args:
        model: what is trained.
        wanted: tensors that the losses and the metrics ask for.
        streams: second data streams, learned from beside every step.
        value_model: a separate value model, trained too.
        reference: gives reference log-probs during the step, where the rounds do not keep them.
    """

    model: Policy | RewardModel
    wanted: frozenset[str]
    streams: Sequence[StreamData] = ()
    value_model: Policy | None = None
    reference: Reference | None = None

    def of(self, data: TrainingData, step: Step, index: int) -> StepCost:
        """The cost of one step.

        Args:
            data: the round.
            step: of it.
            index: of the step, counted over the whole verb.
        """
        reading = data.reading(step.laid_out)
        found = passes(self.model, reading, self.wanted, self.value_model, gradient=True)
        trained, scored, reference = reading.learned, 0, 0
        kept = "ref_logprobs" in data.tensors or not select(self.wanted, source="reference")
        if self.reference is not None and not kept:
            reference = self.reference.flops(reading)
            found.append(Flops(reference, 0))
            scored = reading.tokens
        for stream in self.streams:
            beside = stream.data.reading(stream.step(index, 1).laid_out)
            wanted = frozenset(stream.objective.loss.tensor_names)
            found += passes(self.model, beside, wanted, gradient=True)
            trained += beside.learned
        counts = {"optimizer_steps": 1, "trained_tokens": trained, "scored_tokens": scored}
        return StepCost(counts, Flops(sum(f.forward for f in found), sum(f.backward for f in found)), reference)
