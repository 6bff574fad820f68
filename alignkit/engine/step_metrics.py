"""What is measured of each optimizer step, and its means over a round: torchmetrics keep the counts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from alignkit.calls import calling
from alignkit.engine.sampler_gap import SAMPLER, SamplerGap
from alignkit.errors import ConfigError
from alignkit.metrics import Accuracy, Entropy, Metric, values_of
from alignkit.metrics.states import restore, states_of
from alignkit.models.batch import MicroBatch


def usual_metrics(*, rewards: bool) -> dict[str, Metric]:
    """What is measured of a step whatever the method.

    Args:
        rewards: whether a reward model learns, or a policy.
    """
    return {"accuracy": Accuracy()} if rewards else {"entropy": Entropy()}


class StepMetrics(nn.Module):
    """The metrics of one optimizer step, as a part of the learner: they live on its device and in its state.

    Args:
        metrics: by name.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        self.idle = False  # while a process does another's micro-batch again, to take part in the backward pass
        self.names = list(metrics)
        self.metrics = nn.ModuleList(metric.clone() for metric in metrics.values())  # not the caller's
        self.whole = nn.ModuleList(metric.clone() for metric in metrics.values())  # over all steps, for who asks later
        self.gap, self.compared = SamplerGap(), False
        for metric in (*self.metrics, *self.whole):
            metric.reset()  # type: ignore[operator]

    @property
    def wanted(self) -> frozenset[str]:
        """The tensors to ask for: not the entropy, which is there anyway and which to ask for is to differentiate."""
        return frozenset(name for metric in self._each().values() for name in metric.asks_for()) - {"entropy"}

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Count a micro-batch, unless idle.

        Args:
            tensors: of the micro-batch, by name.

        Raises:
            ConfigError: a metric names a tensor that this step does not have.
        """
        for (name, metric), whole in () if self.idle else zip(self._each().items(), self.whole, strict=True):
            absent = sorted(set(metric.asks_for()) - set(tensors))
            if absent:
                raise ConfigError(f"asks for {absent}, which this step does not have", where=f"metric {name}")
            optional = [key for key in metric.asks_for(optional=True) if key in tensors]
            given = {key: tensors[key].detach() for key in (*metric.asks_for(), *optional)}
            with calling(metric, "update"):
                metric.update(**given)
                whole.update(**given)  # type: ignore[operator]

    def compare(self, sampled: tuple[Tensor, Tensor], batch: MicroBatch, logprobs: Tensor) -> None:
        """Count how far a micro-batch's log-probs [R, T] are from those of the sampler, unless idle.

        Args:
            sampled: see `Lesson`.
            batch: of the micro-batch.
            logprobs: of its tokens.
        """
        self.compared = True  # an idle process's too: all of them read
        if not self.idle:
            own = batch.responses.cpu()
            recorded, known = (each[own, : logprobs.shape[1]].to(logprobs.device) for each in sampled)
            self.gap.update(recorded, logprobs, known)

    def read(self) -> dict[str, float]:
        """What the step's metrics say over all processes, each of which must ask; they start anew."""
        found: dict[str, float] = {}
        for name, metric in self._each().items():
            with calling(metric, "compute"):
                found |= values_of(name, metric)
            metric.reset()
        if self.compared:
            found |= values_of(SAMPLER, self.gap)
            self.gap.reset()
            self.compared = False
        return found

    def states(self) -> dict[str, Tensor]:
        """What was counted over all steps and processes, each of which must ask: tensors by name."""
        out: dict[str, Tensor] = {}
        for name, metric in zip(self.names, self.whole, strict=True):
            with metric.sync_context(should_unsync=True):  # type: ignore[operator]
                out |= states_of({name: metric})  # type: ignore[dict-item]
        return out

    def _each(self) -> dict[str, Metric]:
        return dict(zip(self.names, self.metrics, strict=True))  # type: ignore[arg-type]


class RoundMeans:
    """The mean over a round's steps of whatever was logged: the same on all processes, since what is logged is."""

    def __init__(self) -> None:
        self._means: dict[str, MeanMetric] = {}
        self._idle: dict[str, MeanMetric] = {}  # of the rounds before: one is dear to make

    def update(self, row: Mapping[str, float]) -> None:
        """Count a step; names may come and go."""
        for name, value in row.items():
            if name not in self._means:
                self._means[name] = self._idle.pop(name) if name in self._idle else _mean()
            self._means[name].update(value)

    def read(self) -> dict[str, float]:
        """The means by name."""
        return {name: float(mean.compute()) for name, mean in self._means.items()}

    def reset(self) -> None:
        """Begin a round."""
        for mean in self._means.values():
            mean.reset()
        self._idle, self._means = self._idle | self._means, {}

    def state(self) -> dict[str, Tensor]:
        """What was counted so far, as tensors by name."""
        return states_of(self._means)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what was counted."""
        self._means = {name.rpartition(".")[0]: _mean() for name in state}
        restore(self._means, state)


def _mean() -> MeanMetric:
    """In float64, and of this process alone."""
    mean = MeanMetric(nan_strategy="disable", sync_on_compute=False)
    mean.set_dtype(torch.float64)
    return mean
