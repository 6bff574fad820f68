"""The Lightning module: one loop for every training verb, whatever the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from alignkit.data.collate import MicroBatch
from alignkit.engine.losses import call_loss
from alignkit.engine.reduction import GROUP_TENSORS, PAIR_TENSORS, reduce_terms
from alignkit.engine.rounds import Round, Step
from alignkit.errors import NumericError
from alignkit.models import Policy, RewardModel
from alignkit.optimizers import Term
from alignkit.plugins.records import BoundLoss
from alignkit.types import RATINGS


@dataclass(frozen=True)
class Training:
    """How weights are updated; the fields of `PolicyOptimizer` of the same names say what they mean."""

    learning_rate: float = 1e-5
    schedule: str = "constant"
    warmup_ratio: float = 0.0
    min_lr_ratio: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    value_learning_rate: float | None = None

    def factor(self, progress: float) -> float:
        """The share of the peak learning rate at `progress` in [0, 1] of the verb's steps."""
        if progress < self.warmup_ratio:
            return progress / self.warmup_ratio
        along = min((progress - self.warmup_ratio) / max(1 - self.warmup_ratio, 1e-9), 1.0)
        if self.schedule == "cosine":
            return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * along))
        return 1 - along if self.schedule == "linear" else 1.0


@dataclass(frozen=True)
class StepLoader:
    """The steps of a round as Lightning reads data (a bare list would be taken for several loaders)."""

    steps: list[Step]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


class Source(Protocol):
    """Where the rounds of a verb come from."""

    rounds: int

    def start(self, index: int) -> tuple[Round, list[Step]]:
        """Make round `index`."""
        ...

    def finish(self, index: int, metrics: Mapping[str, float]) -> bool:
        """Told the round's mean metrics; returns whether to stop the verb."""
        ...

    def round_metrics(self) -> Mapping[str, float]:
        """What is logged with every step of the round."""
        ...

    def skip_rest(self, metrics: Mapping[str, float]) -> bool:
        """Asked after every step whether the round's remaining steps are skipped."""
        ...


def assemble(
    model: Policy | RewardModel,
    data: Round,
    batch: MicroBatch,
    wanted: frozenset[str],
    *,
    temperature: float = 1.0,
    value_model: Policy | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Every tensor of the vocabulary that the loss may ask for, for one micro-batch.

    Args:
        model: policy or reward model; its forward carries the gradient.
        data: the round.
        batch: on the model's device.
        wanted: what the loss asks for.
        temperature: of the log-probs.
        value_model: a model of its own for the values; None takes the head on the policy's trunk.

    Returns:
        (tensors by name, the group of each pair or None when no pair tensor is asked for).
    """
    tensors = {"response_mask": batch.response_mask, **data.slice_tensors(batch)}
    scores: Tensor | None = None
    if isinstance(model, RewardModel):
        scores = model.scores(batch)
    else:
        tensors |= _policy_tensors(model, batch, wanted, temperature, value_model)
    pair_group = None
    if wanted & PAIR_TENSORS:
        chosen, rejected, pair_group, known = data.local_pairs(batch)
        tensors |= known | _pair_tensors(tensors, scores, chosen, rejected, batch)
    if wanted & GROUP_TENSORS:
        tensors |= data.group_tensors(batch, scores)
    return tensors, pair_group


def _policy_tensors(
    model: Policy, batch: MicroBatch, wanted: frozenset[str], temperature: float, value_model: Policy | None
) -> dict[str, Tensor]:
    need = {"logprobs"} | (wanted & {"entropy", "values"})
    own = need - {"values"} if value_model is not None else need
    out = model.tensors(batch, own, temperature=temperature, entropy_gradient="entropy" in wanted)
    if value_model is not None and "values" in need:
        out |= value_model.tensors(batch, {"values"})
    return out


def _pair_tensors(
    tensors: Mapping[str, Tensor], scores: Tensor | None, chosen: Tensor, rejected: Tensor, batch: MicroBatch
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    mask = batch.response_mask
    for prefix, name in (("", "logprobs"), ("ref_", "ref_logprobs")):
        if name in tensors:
            sums = (tensors[name] * mask).sum(-1)
            out |= {f"{prefix}chosen_logprobs": sums[chosen], f"{prefix}rejected_logprobs": sums[rejected]}
    lengths = mask.sum(-1)
    out |= {"chosen_lengths": lengths[chosen], "rejected_lengths": lengths[rejected]}
    if scores is not None:
        out |= {"chosen_rewards": scores[chosen], "rejected_rewards": scores[rejected]}
    return out


PAIR_COUNTS = tuple(f"_{what}_{level}" for level in ("overall", *RATINGS) for what in ("right", "pairs"))
"""Sums behind a reward model's accuracy, overall and by rating."""


def pair_counts(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """How many pairs of a micro-batch there are and are ranked rightly (a tie is not), overall and by rating."""
    right = tensors["chosen_rewards"].detach() > tensors["rejected_rewards"].detach()
    counts = {"_right_overall": float(right.sum()), "_pairs_overall": float(len(right))}
    for number, level in enumerate(RATINGS):
        rated = tensors["rating"] == number
        counts |= {f"_right_{level}": float((right & rated).sum()), f"_pairs_{level}": float(rated.sum())}
    return counts


def accuracies(shares: Mapping[str, float]) -> dict[str, float]:
    """`accuracy` and `accuracy_<rating>` of a step, for the levels that it has pairs of."""
    levels = [level for level in ("overall", *RATINGS) if shares[f"_pairs_{level}"]]
    named = {"overall": "accuracy"} | {level: f"accuracy_{level}" for level in RATINGS}
    return {named[level]: shares[f"_right_{level}"] / shares[f"_pairs_{level}"] for level in levels}


class Learner(L.LightningModule):
    """Takes the optimizer steps of a verb.

    One Lightning epoch is one round; one item of its data is one optimizer step. Accumulation over micro-batches,
    counts, clipping and the learning rate are done here, because they need the counts of the whole step.

    Args:
        model: what is trained.
        loss: bound loss.
        terms: its declared terms.
        training: how weights are updated.
        source: the rounds.
        temperature: of the log-probs.
        record: called with the metrics of every step.
        value_model: a separate value model, trained too.
    """

    def __init__(
        self,
        model: Policy | RewardModel,
        loss: BoundLoss,
        terms: Mapping[str, Term],
        training: Training,
        source: Source,
        *,
        temperature: float = 1.0,
        record: Callable[[dict[str, Any]], None] = lambda row: None,
        value_model: Policy | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.value_model = model, value_model
        self.loss, self.terms, self.training_config, self.source = loss, dict(terms), training, source
        self.temperature, self.record = temperature, record
        self.wanted = frozenset(loss.tensor_names)
        self.round_index = -1
        self.steps_done = 0
        self._skip = False
        self._sums: dict[str, float] = {}
        self._count = 0

    # -- Lightning's hooks ---------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        config = self.training_config
        groups = _parameter_groups(self, config)
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)

    def train_dataloader(self) -> StepLoader:
        """Begin the next round: sample, score, prepare; its steps are the data."""
        self.round_index += 1
        self._skip, self._sums, self._count = False, {}, 0
        # Under a mixed precision, what is sampled and recomputed must be computed as the steps will be.
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            self.data, self.steps = self.source.start(self.round_index)
        return StepLoader(self.steps)

    def transfer_batch_to_device(self, batch: Step, device: Any, dataloader_idx: int) -> Step:
        return batch

    def training_step(self, step: Step, batch_idx: int) -> None:
        if self._skip:
            return
        optimizer: Any = self.optimizers()
        shares = self._accumulate(step)
        factor = self._set_learning_rate(optimizer, batch_idx)
        norm = self._clip()
        self._refuse_nan(step, shares, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        self._log(step, shares, norm, factor)

    def on_train_epoch_end(self) -> None:
        means = {k: v / max(self._count, 1) for k, v in self._sums.items()}
        if self.source.finish(self.round_index, {**means, **self.source.round_metrics()}):
            self.trainer.should_stop = True

    # -- one step ------------------------------------------------------------------------------------------------------

    def _accumulate(self, step: Step) -> dict[str, float]:
        """Backward through this process's micro-batches; returns the terms over all processes."""
        # Every process sums the same names, so they are all there from the start.
        shares: dict[str, float] = dict.fromkeys((*self.terms, "total", "_entropy", "_tokens", *PAIR_COUNTS), 0.0)
        for numbers in step.mine(self.global_rank, self.trainer.world_size):
            idle = not numbers
            batch = self.data.collate(numbers or step.numbers[:1]).to(self.device)
            total, part = self._micro(step, batch)
            # A process with nothing to do still takes part in the backward pass, with weight 0.
            self.manual_backward(total * (0.0 if idle else float(self.trainer.world_size)))
            for name, value in part.items() if not idle else ():
                shares[name] += value
        if self.trainer.world_size > 1:
            names = sorted(shares)
            summed = self.trainer.strategy.reduce(
                torch.tensor([shares[n] for n in names], dtype=torch.float64, device=self.device), reduce_op="sum"
            )
            shares = dict(zip(names, summed.tolist(), strict=True))
        return shares

    def _micro(self, step: Step, batch: MicroBatch) -> tuple[Tensor, dict[str, float]]:
        tensors, pair_group = assemble(
            self.model, self.data, batch, self.wanted, temperature=self.temperature, value_model=self.value_model
        )
        layout = self.data.layout(batch, {k: v for k, v in tensors.items() if v.ndim == 2}, pair_group)
        total, shares = reduce_terms(
            call_loss(self.loss, tensors),
            self.terms,
            self.loss.tensor_names,
            layout,
            lambda kind, mask: self.data.count(step, kind, mask),
        )
        shares["total"] = float(total.detach())
        if "entropy" in tensors:
            shares["_entropy"] = float((tensors["entropy"].detach() * batch.response_mask).sum())
            shares["_tokens"] = float(batch.response_mask.sum())
        if isinstance(self.model, RewardModel) and "chosen_rewards" in tensors:
            shares |= pair_counts(tensors)
        return total, shares

    def _set_learning_rate(self, optimizer: Any, batch_idx: int) -> float:
        rounds, warmup = max(self.source.rounds, 1), self.training_config.warmup_ratio
        before = (self.round_index + batch_idx / len(self.steps)) / rounds
        after = (self.round_index + (batch_idx + 1) / len(self.steps)) / rounds
        # While warming up a step takes the rate at its end: no step, however few there are, has a rate of 0.
        factor = self.training_config.factor(before if before >= warmup else min(after, warmup))
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return factor

    def _clip(self) -> float:
        parameters = [p for p in self.parameters() if p.grad is not None]
        limit = self.training_config.max_grad_norm
        return float(nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else math.inf))

    def _refuse_nan(self, step: Step, shares: Mapping[str, float], norm: float) -> None:
        """Stop before the step: the weights are still good."""
        bad = [name for name, value in shares.items() if not math.isfinite(value)]
        if not bad and math.isfinite(norm):
            return
        rows = [self.data.groups[i]["prompt_id"] for i in step.numbers[:5]]
        raise NumericError(
            f"{', '.join(bad) or 'the gradient norm'} is not finite (gradient norm {norm})",
            where=f"round {self.round_index}, step {self.steps_done + 1}, prompts {', '.join(rows)} …",
            effect="The step was not taken and the weights are those of the step before.",
            remedy="lower the learning rate, look at those rows and at the rewards of the round",
        )

    def _log(self, step: Step, shares: Mapping[str, float], norm: float, factor: float) -> None:
        row: dict[str, Any] = {name: shares[name] for name in self.terms}
        row["loss"] = shares["total"]
        if shares["_tokens"]:
            row["entropy"] = shares["_entropy"] / shares["_tokens"]
        row |= accuracies(shares)
        row |= {"grad_norm": norm, "lr": self.training_config.learning_rate * factor}
        for name, value in row.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        row |= self.source.round_metrics()
        self.log_dict({k: float(v) for k, v in row.items()}, batch_size=len(step.numbers))
        self.log("step_loss", row["loss"], prog_bar=True, logger=False, batch_size=len(step.numbers))
        if self.global_rank == 0:
            self.record({"step": self.steps_done, "round": self.round_index, "epoch": step.epoch, **row})
        self._skip = self.source.skip_rest(row)


def _parameter_groups(module: Learner, config: Training) -> list[dict[str, Any]]:
    """Matrices with weight decay, the rest without; value weights with their own rate."""
    value_ids = {id(p) for p in module.value_model.parameters()} if module.value_model is not None else set()
    head = getattr(module.model, "value_head", None)
    value_ids |= {id(p) for p in head.parameters()} if head is not None else set()
    buckets: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            buckets.setdefault((id(parameter) in value_ids, parameter.ndim >= 2), []).append(parameter)
    value_rate = config.value_learning_rate if config.value_learning_rate is not None else config.learning_rate
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": value_rate if is_value else config.learning_rate,
            "peak_lr": value_rate if is_value else config.learning_rate,
        }
        for (is_value, decays), parameters in sorted(buckets.items(), key=lambda item: item[0])
    ]
