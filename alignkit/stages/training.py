"""What the stages that train on given rows share: their fields, the split, the checked data, the fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from alignkit.budget import Budget, Spending
from alignkit.data.problems import tell_folded
from alignkit.errors import ConfigError
from alignkit.groups import Groups
from alignkit.optimizers import Training, check_not_negative
from alignkit.randomness import derived_seed, permutation, stream_key, uniforms
from alignkit.rows import Message, prompt_id
from alignkit.run_folder import METRICS
from alignkit.stages.asked_metrics import by_name, check_steps, named
from alignkit.stages.base import Context, H, Stage, component
from alignkit.stages.handles import PolicyHandle
from alignkit.stages.place import Place
from alignkit.vocabulary import VOCABULARY

if TYPE_CHECKING:
    from alignkit.engine.learner import Learner
    from alignkit.registry.records import BoundLoss


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingStage(Stage[H], Training):
    """A stage that trains on rows as they are.

    Args:
        learning_rate: peak learning rate of AdamW.
        schedule: "constant", "cosine" (to `min_lr_ratio`) or "linear" (to 0) over the stage's steps.
        warmup_ratio: share of steps over which the rate rises linearly from 0.
        max_steps: optimizer steps, in place of `epochs`: over the rows again and again, until so many are taken; 0: the
            epochs decide.
        max_length: tokens of a prompt and of a response, each.
        drop_bad: leave out useless rows rather than refuse them.
        checkpointing: gradient checkpointing: activations are computed again rather than kept.
        metrics: what else to measure on the tensors of each step (registered names, `use(…)`, classes).
        budget: the most to spend, such as {"trained_tokens": "200k"}; names are those of the meter, and "flops". No
            step is begun that would exceed it, and the schedule ends with it.
    """

    sources: ClassVar[tuple[str, ...]] = ("policy", "round")
    """Who makes the tensors that a metric of its steps may name, see `alignkit.vocabulary.Source`."""

    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warmup_ratio: float = 0.03
    max_steps: int = 0
    max_length: int = 1024
    drop_bad: bool = False
    checkpointing: bool = False
    metrics: Sequence[Any] | Mapping[str, Any] = field(default=(), metadata=component("metric", many=True))
    budget: Mapping[str, int | float | str] | Budget | None = None

    def __post_init__(self) -> None:
        Stage.__post_init__(self)
        Training.__post_init__(self)
        check_not_negative(self, "max_steps")
        if self.max_length < 1:
            raise ConfigError(f"max_length={self.max_length} must be positive", where=self.name)

    def resolved(self, context: Context) -> Self:
        built = replace(self, metrics=named(context.host, self.metrics), budget=Budget.of(self.budget))
        built = super(TrainingStage, built).resolved(context)
        check_steps(by_name(built.metrics), self.sources)
        return built

    def passes(self, rows: float) -> float:
        """How often rows are learned from, for a plan: the epochs, or what `max_steps` come to."""
        return self.max_steps * (self.batch_size or rows) / max(rows, 1) if self.max_steps else self.epochs

    def checked_data(self, place: Place, groups: Groups, model: Any, kind: Any, train: Any = "last") -> Any:
        """Check, refuse or drop, encode: the `TrainingData` of the rows."""
        with place.meter.phase("prepare"):
            return self._checked(place, groups, model, kind, train)

    def _checked(self, place: Place, groups: Groups, model: Any, kind: Any, train: Any) -> Any:
        from alignkit.data import check_groups, refuse_or_drop
        from alignkit.data.encode import is_plain_text
        from alignkit.data.shown import overview
        from alignkit.engine.training_data import TrainingData

        most = self.max_length
        limits: Any = {"max_prompt_tokens": most, "max_response_tokens": most}
        problems = check_groups(groups, kind, model.chat, **limits)
        groups = refuse_or_drop(groups, problems, self.drop_bad, place.name)
        place.say("\n".join(["what is learned from", *overview(groups, model.chat, train=train, **limits).lines()]))
        if kind == "demonstrations" and any(map(is_plain_text, groups)):
            data, left = TrainingData.of_stream(model, groups, most, train)
        else:
            data, left = TrainingData.of(model, groups, train=train, **limits)
        refuse_or_drop(groups, left, self.drop_bad, place.name)
        return data

    def learn(self, place: Place, model: Any, data: Any, reduction: Any, loss: Any) -> Learner:
        """Train `model` on all of `data`, with one loss whose term is reduced so."""
        from alignkit.engine.lesson import OneRound, refuse_nothing
        from alignkit.engine.reduction import joins
        from alignkit.engine.training_data import said_of_size
        from alignkit.models import RewardModel
        from alignkit.optimizers import Term

        refuse_nothing(data, [loss], place.name)
        asked = {name for metric in by_name(self.metrics).values() for name in metric.asks_for()}
        together = isinstance(model, RewardModel) or joins({*loss.tensor_names, *asked})
        if together and (most := data.over(place.max_tokens)):
            place.say(said_of_size(most, place.max_tokens))
        seed = (*place.path, "order")
        most = self.max_steps
        steps = data.steps(self.batch_size, self.epochs, place.max_tokens, seed, place.world, together, most)
        terms = {"loss": Term(reduction=reduction)}
        arguments = {"model": model, "loss": loss, "terms": terms, "training": self, "rounds": OneRound(data, steps)}
        arguments["metrics"] = by_name(self.metrics)
        return fit_learner(place, arguments, self.checkpointing, Spending(Budget.of(self.budget), place.meter))


def check_loss(loss: BoundLoss, sources: Collection[str], levels: Collection[str], where: str) -> None:
    """Refuse a loss that a verb cannot use, before anything is loaded.

    Args:
        loss: bound.
        sources: who makes the tensors that the verb has, see `alignkit.vocabulary.Source`.
        levels: of the losses that it takes; a tensor that is [pairs] or [groups] decides.
        where: the stage.

    Raises:
        ConfigError: naming the tensors that nothing gives.
    """
    needed = [name for name in loss.tensor_names if name not in loss.optional]
    known = [name for name in needed if name in VOCABULARY]
    missing = [name for name in needed if name not in known or VOCABULARY[name].source not in sources]
    missing += [name for name in known if VOCABULARY[name].level not in levels and name not in missing]
    if missing:
        given = [name for name, spec in VOCABULARY.items() if spec.source in sources and spec.level in levels]
        raise ConfigError(
            f"loss {loss.name} asks for {missing}, which there are none of here",
            where=where,
            remedy=f"use a loss of {', '.join(given)}",
        )


def check_fraction(name: str, value: float, where: str) -> None:
    """Refuse a share outside [0, 1].

    Raises:
        ConfigError: naming it.
    """
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}={value} must be in [0, 1]", where=where)


def check_heldout(fraction: float, where: str) -> None:
    """Refuse a share kept back that is none, or leaves nothing to learn from.

    Raises:
        ConfigError: it is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"heldout_fraction={fraction} must be in [0, 1): 1 leaves nothing to learn from", where=where)


def _recorder(folder: Path) -> Callable[[dict[str, Any]], None]:
    """Append each step to the stage's metrics."""

    def record(row: dict[str, Any]) -> None:
        with (folder / METRICS).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, sort_keys=True) + "\n")

    return record


def fit_learner(place: Place, arguments: Mapping[str, Any], checkpointing: bool, spending: Spending) -> Learner:
    """Build the learner and fit it, within what may be spent."""
    from alignkit.engine.fit import fit
    from alignkit.engine.learner import Learner
    from alignkit.metrics import states

    tell_folded()
    learner = Learner(**arguments, record=_recorder(place.folder), tick=place.tick, spending=spending)
    with place.meter.phase("train"):
        fit(
            learner,
            precision=place.precision,
            trainer=place.trainer,
            checkpointing=checkpointing,
            logs=place.logs,
            stage=place.name,
        )
    if spending.stopped:
        place.say(f"stopped after {learner.steps_done} steps: {spending.stopped} is spent")
    counted = learner.step_metrics.states()
    if place.writes:
        states.save(place.folder, counted)
    return learner


def split(groups: Groups, fraction: float, seed: Sequence[int | str]) -> tuple[Groups, Groups]:
    """(train, held out), split by prompt, so that no prompt is on both sides; plain texts, which have none, by text."""
    asked = [_asked(row) for row in groups]
    prompts = sorted(set(asked))
    draws = uniforms(np.array([stream_key(*seed, prompt) for prompt in prompts], dtype=np.uint64), 0)
    kept_back = {prompt for prompt, draw in zip(prompts, draws, strict=True) if draw < fraction}
    sides: tuple[list[int], list[int]] = ([], [])
    for place, prompt in enumerate(asked):
        sides[prompt in kept_back].append(place)
    return groups.select(sides[0]), groups.select(sides[1])


def _asked(row: Mapping[str, Any]) -> str:
    return row["prompt_id"] if row["prompt"] else prompt_id([Message("assistant", text) for text in row["responses"]])


def drawn(groups: Groups, fraction: float, seed: Sequence[int | str]) -> Groups:
    """A share of the rows, drawn by counter, in their order."""
    if fraction == 1:
        return groups
    return groups.select(sorted(permutation(len(groups), *seed)[: round(len(groups) * fraction)]))


def trainable(place: Place, handle: PolicyHandle, name: str) -> Any:
    """The live policy, its adapter (if it is to have one) initialised from the stage's own seed.

    Args:
        place: of the stage.
        handle: the policy.
        name: of what is drawn, for the seed.
    """
    import torch

    with place.meter.phase("load"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(place.seed, name, "init"))
        return handle.load(lora=handle.lora, trainable=True, dtype=place.dtype)


def adapter_bytes(policy: PolicyHandle) -> int:
    """What a trained policy takes on disk, at most."""
    return 4 * policy.parameters if policy.lora is None else policy.parameters // 8


def count_parameters(model: Any) -> int:
    """Weights of a live model."""
    return sum(p.numel() for p in model.parameters())


def model_label(spec: str | Path) -> str:
    """How a model is named in a key: the last part of a path, since its content counts and not where it lies."""
    import os

    return Path(spec).name if os.sep in str(spec) else str(spec)
