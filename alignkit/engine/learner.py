"""The Lightning module: one loop for every training verb, whatever the loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from alignkit import processes
from alignkit.budget import Spending
from alignkit.calls import whose, within
from alignkit.engine.assemble import assemble
from alignkit.engine.checks import unread
from alignkit.engine.lesson import Lesson, Rounds
from alignkit.engine.objectives import Objective, StreamData, weighted
from alignkit.engine.progress import StepProgress
from alignkit.engine.reference import Reference
from alignkit.engine.step_cost import StepCosts
from alignkit.engine.step_metrics import RoundMeans, StepMetrics, usual_metrics
from alignkit.engine.training_data import Step, TrainingData
from alignkit.errors import ConfigError, NumericError, PluginError
from alignkit.meter import Advance
from alignkit.metrics import Metric
from alignkit.models import Policy, RewardModel
from alignkit.models.adamw import FloatAdamW
from alignkit.models.batch import MicroBatch
from alignkit.models.products import casts_of_a_step
from alignkit.optimizers import Term, Training
from alignkit.registry.records import BoundLoss

log = logging.getLogger("alignkit")


@dataclass(frozen=True)
class StepLoader:
    """The steps of a round as Lightning reads data (a bare list would be taken for several loaders)."""

    steps: list[Step]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


NO_STEP = Step([], [])
"""What stands for the steps of a round without any: Lightning ends a fit at an epoch that is empty."""

Micro = Callable[[Step, MicroBatch], tuple[Tensor, dict[str, float]]]


class Learner(L.LightningModule):
    """Takes the optimizer steps of a verb.

    One Lightning epoch is one round; one item of its data is one optimizer step. Accumulation over micro-batches,
    counts, clipping and the learning rate are done here, because they need the counts of the whole step.

    Args:
        model: what is trained.
        loss: bound loss.
        terms: its declared terms.
        training: how weights are updated.
        rounds: of the verb; sampling and scoring happen in their loop, whenever the next lesson is asked for.
        temperature: of the log-probs.
        record: called with the metrics of every step, by the first process alone.
        tick: told where training is, in passing lines.
        spending: stops before a step that it does not allow; its meter counts the steps.
        value_model: a separate value model, trained too.
        value_learning_rate: of the value model's own weights; None: as the policy's.
        extras: further objectives on the same forward pass.
        streams: second data streams, learned from beside every step.
        reference: gives `ref_logprobs` during the step, where the rounds do not keep them.
        metrics: what else to measure on the tensors of each step, by name.

    Raises:
        ConfigError: nothing has a weight.
    """

    def __init__(
        self,
        model: Policy | RewardModel,
        loss: BoundLoss,
        terms: Mapping[str, Term],
        training: Training,
        rounds: Rounds,
        *,
        temperature: float = 1.0,
        record: Callable[[dict[str, Any]], None] = lambda row: None,
        tick: Callable[[Advance], None] = lambda advance: None,
        spending: Spending | None = None,
        value_model: Policy | None = None,
        value_learning_rate: float | None = None,
        extras: Sequence[Objective] = (),
        streams: Sequence[StreamData] = (),
        reference: Reference | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.value_model = model, value_model
        self.value_learning_rate = value_learning_rate
        if not any(term.weight for term in terms.values()):
            raise ConfigError("every term has weight 0: nothing to learn from", where=f"loss {loss.name}")
        self.terms, self.training_config, self.rounds = dict(terms), training, rounds
        clash = {stream.name for stream in streams} & {*terms, "total", "loss"}
        if clash:
            raise ConfigError(f"the streams {sorted(clash)} are named like terms of the loss", where="streams")
        if clash := set(metrics or {}) & {*terms, *(stream.name for stream in streams)}:
            raise ConfigError(f"the metrics {sorted(clash)} are named like terms of the loss", where="metrics")
        self.objectives = [Objective(loss, self.terms), *extras]
        self.weighted = weighted(loss, ((each.name, each.loss) for each in extras), self.terms)
        self.temperature, self.record, self.streams, self.reference = temperature, record, list(streams), reference
        self.spending, self.progress = spending or Spending(), StepProgress(tick, rounds.count)
        self.wanted = frozenset(name for each in self.objectives for name in each.loss.tensor_names)
        usual = usual_metrics(rewards=isinstance(model, RewardModel))
        self.step_metrics, self.round_means = StepMetrics({**usual, **(metrics or {})}), RoundMeans()
        self.wanted |= self.step_metrics.wanted
        self.costs = StepCosts(model, self.wanted, self.streams, value_model, reference)
        self.loop = rounds.rounds()
        self.lesson: Lesson | None = None
        self.round_index = -1
        self.steps_done = self.steps_before = 0
        self._skip = self._refused = self._over = self._said = False
        self._fitting = 1
        self.checkpointing = False
        """Whether layers are computed again in the backward pass; `fit` says so."""

    # -- Lightning's hooks ---------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        config = self.training_config
        groups = _parameter_groups(self, config)
        return FloatAdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)

    @property
    def data(self) -> TrainingData:
        """What the round learns from."""
        assert self.lesson is not None, "no round has begun"
        return self.lesson.data

    @property
    def steps(self) -> list[Step]:
        """The steps of the round."""
        assert self.lesson is not None, "no round has begun"
        return self.lesson.steps

    def train_dataloader(self) -> StepLoader:
        """Let the loop make its next lesson; the steps of it are the data. There are none where the budget is spent."""
        self.round_index += 1
        self.steps_before = self.steps_done
        self._skip = False
        self.round_means.reset()
        # Under a mixed precision, what is sampled and recomputed must be computed as the steps will be.
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            lesson = next(self.loop, False)
        self._over = lesson is False
        if self._over:
            self.trainer.should_stop = True
            return StepLoader([])
        assert lesson is None or isinstance(lesson, Lesson)
        self.lesson = lesson
        if lesson is None:
            return StepLoader([NO_STEP])
        self._say_what_is_not_read(lesson)
        if self.spending.limits:
            costs = [self.costs.of(self.data, step, self.steps_done + k) for k, step in enumerate(self.steps)]
            self._fitting = max(self.spending.fitting([cost.amounts for cost in costs]), 1)
        return StepLoader(lesson.steps)

    def _say_what_is_not_read(self, lesson: Lesson) -> None:
        """Once a stage: soft labels and margins that no loss with a weight reads."""
        if self._said:
            return
        found = unread(lesson.data.groups, self.weighted)
        self._said = bool(found)
        for text in found if self.global_rank == 0 else ():
            log.warning("%s", text)

    def transfer_batch_to_device(self, batch: Step, device: Any, dataloader_idx: int) -> Step:
        return batch

    def training_step(self, step: Step, batch_idx: int) -> None:
        if self._skip or self.lesson is None:
            return
        cost = self.costs.of(self.data, step, self.steps_done)
        if exceeded := self.spending.exceeded_by(cost.amounts):
            self._skip = self._refused = self.spending.stop(exceeded)
            return
        optimizer: Any = self.optimizers()
        with within(partial(self._where, step)), self._apart(), self._casts(step):
            shares = self._accumulate(step, optimizer)
        factor = self._set_learning_rate(optimizer, batch_idx, cost.amounts)
        norm = self._clip()
        self._refuse_nan(step, shares, norm)
        measured = self.step_metrics.read()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        cost.count(self.spending.meter)
        self._log(step, shares | measured, norm, factor)
        self.progress.tell(self.round_index, batch_idx + 1, len(self.steps), shares["total"])

    def on_train_epoch_end(self) -> None:
        """Tell the loop how the round went, and do as it says; where no step was paid for, there is nothing to tell."""
        if self._over or (self.lesson is not None and self.steps_done == self.steps_before):
            self.trainer.should_stop = True
            return
        of_round = {} if self.lesson is None else self.lesson.metrics
        if self.loop.send({**self.round_means.read(), **of_round}) or self._refused:
            self.trainer.should_stop = True

    # -- one step ------------------------------------------------------------------------------------------------------

    def _accumulate(self, step: Step, optimizer: FloatAdamW) -> dict[str, float]:
        """Backward through this process's micro-batches; returns the terms over all processes."""
        shares = {"total": 0.0}
        world = self.trainer.world_size
        work: list[tuple[TrainingData, Step, Micro]] = [(self.data, step, self._micro)]
        for stream in self.streams:
            work.append((stream.data, stream.step(self.steps_done, world), partial(self._stream_micro, stream)))
        for data, part_step, micro in work:
            for numbers in part_step.mine(self.global_rank, world):
                busy = numbers or next(each for each in part_step.micro if each)
                batch = data.collate(busy).to(self.device)
                self.step_metrics.idle = not numbers
                total, part = micro(part_step, batch)
                if numbers:
                    self.manual_backward(total)
                    optimizer.gather()
                for name, value in part.items():  # an idle process has the names too: all sum the same ones
                    shares[name] = shares.get(name, 0.0) + (value if numbers else 0.0)
        if world > 1:
            processes.sum_gradients([p for group in optimizer.param_groups for p in group["params"]])
            names = sorted(shares)
            summed = self.trainer.strategy.reduce(
                torch.tensor([shares[n] for n in names], dtype=torch.float64, device=self.device), reduce_op="sum"
            )
            shares = dict(zip(names, summed.tolist(), strict=True))
        return shares

    def _apart(self) -> AbstractContextManager[Any]:
        """Within it DDP leaves gradients alone, and each process sums its own: DDP would wait in every backward pass
        for each parameter, and a value head learns nothing from a stream, nor a value model's own vocabulary ever."""
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext()

    def _casts(self, step: Step) -> AbstractContextManager[None]:
        """Within it weights are cast once for all micro-batches of a step, where there are several; not where layers
        are computed again for the sake of memory."""
        several = sum(map(bool, step.micro)) + len(self.streams) > 1
        return casts_of_a_step() if several and not self.checkpointing else nullcontext()

    def _micro(self, step: Step, batch: MicroBatch) -> tuple[Tensor, dict[str, float]]:
        """One micro-batch of the round: (what to differentiate, shares by name); it is measured too."""
        tensors, pair_group = assemble(
            self.model,
            self.data,
            batch,
            self.wanted,
            temperature=self.temperature,
            value_model=self.value_model,
            reference=self.reference,
        )
        total, shares = self._reduce(self.data, step, batch, self.objectives, tensors, pair_group)
        absent = sorted(name for name, term in self.terms.items() if term.weight and name not in shares)
        if absent:
            raise ConfigError(
                f"the terms {absent} are declared, and no loss returned them",
                where="loss",
                remedy="declare the terms that the loss and the extra losses return",
            )
        self.step_metrics.update(tensors)
        if self.lesson is not None and self.lesson.sampled is not None:
            self.step_metrics.compare(self.lesson.sampled, batch, tensors["logprobs"])
        return total, shares

    def _stream_micro(self, stream: StreamData, step: Step, batch: MicroBatch) -> tuple[Tensor, dict[str, float]]:
        """The same of a second stream, at temperature 1: it is text to imitate."""
        wanted = frozenset(stream.objective.loss.tensor_names)
        tensors, pair_group = assemble(self.model, stream.data, batch, wanted)
        return self._reduce(stream.data, step, batch, [stream.objective], tensors, pair_group)

    def _reduce(
        self,
        data: TrainingData,
        step: Step,
        batch: MicroBatch,
        objectives: Sequence[Objective],
        tensors: Mapping[str, Tensor],
        pair_group: Tensor | None,
    ) -> tuple[Tensor, dict[str, float]]:
        layout = data.layout(batch, {k: v for k, v in tensors.items() if v.ndim == 2}, pair_group)
        totals, shares = list[Tensor](), dict[str, float]()
        for objective in objectives:
            total, part = objective(tensors, layout, lambda kind, mask: data.count(step, kind, mask))
            if set(part) & set(shares):
                raise ConfigError(f"two losses have the terms {sorted(set(part) & set(shares))}", where="extra_losses")
            shares |= part
            totals += [] if total is None else [total]
        if not totals:
            raise ConfigError("no term with a weight was returned", where="loss", remedy="see the optimizer's terms()")
        whole = torch.stack(totals).sum() if len(totals) > 1 else totals[0]
        if not whole.requires_grad:
            what = "no term with a weight has a gradient"
            raise PluginError(what, where=whose(objectives[0].loss), remedy="detach no tensor that it is to change")
        return whole, {**shares, "total": float(whole.detach())}

    def _set_learning_rate(self, optimizer: Any, batch_idx: int, cost: Mapping[str, int]) -> float:
        """The schedule runs over the rounds or over the budget, whichever ends first."""
        rounds, warmup = max(self.rounds.count, 1), self.training_config.warmup_ratio
        before = (self.round_index + batch_idx / len(self.steps)) / rounds
        after = (self.round_index + (batch_idx + 1) / len(self.steps)) / rounds
        before = max(before, self.spending.progress(batch_idx / self._fitting))
        after = max(after, self.spending.progress((batch_idx + 1) / self._fitting, cost))
        # While warming up a step takes the rate at its end: no step, however few there are, has a rate of 0.
        factor = self.training_config.factor(before if before >= warmup else min(after, warmup))
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return factor

    def _clip(self) -> float:
        optimizer: Any = self.optimizers()
        parameters = optimizer.with_gradient(self.parameters())
        limit = self.training_config.max_grad_norm
        return float(nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else math.inf))

    def _refuse_nan(self, step: Step, shares: Mapping[str, float], norm: float) -> None:
        """Stop before the step: the weights are still good."""
        bad = [name for name, value in shares.items() if not math.isfinite(value)]
        if not bad and math.isfinite(norm):
            return
        made = self.data.not_finite(step.numbers)
        raise NumericError(
            f"{', '.join(bad) or 'the gradient norm'} is not finite (gradient norm {norm})"
            + (f": {made}" if made else ""),
            where=f"{whose(self.objectives[0].loss)}, {self._where(step)}",
            effect="The step was not taken and the weights are those of the step before.",
            remedy="lower the learning rate, look at those rows and at the rewards of the round",
        )

    def _where(self, step: Step) -> str:
        """A step as errors name it."""
        rows = [self.data.groups[i]["prompt_id"] for i in step.numbers[:5]]
        more = " …" if len(step.numbers) > len(rows) else ""
        return f"round {self.round_index}, step {self.steps_done + 1}, prompts {', '.join(rows)}{more}"

    def _log(self, step: Step, shares: Mapping[str, float], norm: float, factor: float) -> None:
        row: dict[str, Any] = {k: v for k, v in shares.items() if k != "total"}
        row |= {"loss": shares["total"], "grad_norm": norm, "lr": self.training_config.learning_rate * factor}
        self.round_means.update(row)
        assert self.lesson is not None
        row |= {"useful_tokens": self.data.useful_tokens(step), **self.lesson.metrics}
        heard: Any = self.trainer
        if heard.loggers or heard.callbacks:  # a progress bar is a callback; nobody else reads Lightning's own log
            self.log_dict({k: float(v) for k, v in row.items()}, batch_size=len(step.numbers))
            self.log("step_loss", row["loss"], prog_bar=True, logger=False, batch_size=len(step.numbers))
        if self.global_rank == 0:
            self.record({"step": self.steps_done, "round": self.round_index, "epoch": step.epoch, **row})
        with within(partial(self._where, step)):
            self._skip = self.lesson.skip_rest(row)


def _parameter_groups(module: Learner, config: Training) -> list[dict[str, Any]]:
    """Matrices with weight decay, the rest without; value weights with their own rate."""
    value_ids = {id(p) for p in module.value_model.parameters()} if module.value_model is not None else set()
    head = getattr(module.model, "value_head", None)
    value_ids |= {id(p) for p in head.parameters()} if head is not None else set()
    buckets: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            buckets.setdefault((id(parameter) in value_ids, parameter.ndim >= 2), []).append(parameter)
    value_rate = config.learning_rate if module.value_learning_rate is None else module.value_learning_rate
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": value_rate if is_value else config.learning_rate,
            "peak_lr": value_rate if is_value else config.learning_rate,
        }
        for (is_value, decays), parameters in sorted(buckets.items(), key=lambda item: item[0])
    ]
