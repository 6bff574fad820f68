"""The interface of policy optimizers: what an alignment method tells the engine, and what the engine does for it.

An optimizer is a frozen dataclass; its fields are its hyper-parameters. The engine samples (`samples_per_prompt`),
scores, calls `prepare` once a round, and takes optimizer steps on what `prepare` returned, with the terms of the loss
weighted and reduced as `terms()` declares. `prepare` and the loss ask for tensors by naming them as parameters.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from alignkit.errors import ConfigError
from alignkit.fields import check_values, name_of
from alignkit.groups import Groups
from alignkit.metrics.specs import MetricSpec
from alignkit.vocabulary import select

Reduction = Literal["token", "sequence", "group", "constant"]


@dataclass(frozen=True)
class Term:
    """How one term of a loss becomes a number.

    Args:
        weight: its factor in the total; 0 makes it a diagnostic that is logged and never differentiated.
        reduction: "token": sum over masked tokens / tokens of the whole optimizer step. "sequence": mean over the
            tokens of a sequence (as it is, for response- and pair-level terms), then over sequences. "group": then
            over prompts, each prompt weighing the same however many responses it has. "constant": the sum over a
            sequence's tokens / `constant`, then mean over sequences (as if all were equally long).
        constant: the divisor of "constant".
        mask: the token mask, by name; None for terms without tokens.
    """

    weight: float = 1.0
    reduction: Reduction = "sequence"
    constant: float = 1.0
    mask: str | None = "response_mask"

    def __post_init__(self) -> None:
        check_values(self)
        if self.constant <= 0:
            raise ConfigError(f"constant {self.constant} must be positive", where="Term")


@dataclass(frozen=True)
class Stream:
    """A second data stream, of which every optimizer step learns a batch beside the round's own (a pretraining mix).

    Args:
        loss: of its responses, a registered name or a configured component.
        weight: its factor in the total.
        batch_size: groups per optimizer step.
        reduction: as in `Term`.
    """

    loss: Any = "alignkit/nll"
    weight: float = 1.0
    batch_size: int = 16
    reduction: Reduction = "token"

    def __post_init__(self) -> None:
        check_values(self)
        check_positive(self, "batch_size")


@dataclass(frozen=True)
class Batch:
    """What an optimizer's `prepare` returns: the groups to learn from and what it worked out for their responses.

    Args:
        groups: what is learned from; may be a subset of what was sampled (winners, pairs).
        tensors: name -> tensor aligned with the responses of `groups` in order: [responses, tokens] (padded on the
            right) for token-level names, [responses] for response-level ones.
        metrics: scalars worth logging once a round.
        state: the optimizer's state after `prepare` (plain JSON), or None to leave it as it was.
        pairs: (chosen, rejected) by number over all responses of `groups`; the two may answer different prompts. None
            takes every two responses of a group whose ranks differ.
    """

    groups: Groups
    tensors: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    pairs: Sequence[tuple[int, int]] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """How weights are updated: what every method and every training verb has in common.

    Args:
        epochs: passes over what is learned from.
        batch_size: groups (prompts with the responses kept) per optimizer step; 0 takes all.
        learning_rate: peak learning rate of AdamW.
        schedule: "constant", "cosine" (to `min_lr_ratio`) or "linear" (to 0) over the verb's steps.
        warmup_ratio: share of steps over which the rate rises linearly from 0.
        min_lr_ratio: where the cosine schedule ends, as a share of the peak.
        betas: AdamW's betas.
        eps: AdamW's epsilon.
        weight_decay: decoupled weight decay, on matrices only.
        max_grad_norm: clipping of the global gradient norm; 0 turns it off.
    """

    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-5
    schedule: str = "constant"
    warmup_ratio: float = 0.0
    min_lr_ratio: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        where = name_of(self)
        check_values(self)
        check_positive(self, "epochs", "learning_rate", "eps")
        check_not_negative(self, "batch_size", "weight_decay", "max_grad_norm")
        if self.schedule not in ("constant", "cosine", "linear"):  # a subclass may annotate it as any text
            raise ConfigError(f"schedule {self.schedule!r}", where=where, remedy="use constant, cosine or linear")
        if not 0 <= self.warmup_ratio < 1:
            raise ConfigError(f"warmup_ratio={self.warmup_ratio} must be in [0, 1)", where=where)
        if not 0 <= self.min_lr_ratio <= 1:
            raise ConfigError(f"min_lr_ratio={self.min_lr_ratio} must be in [0, 1]", where=where)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas={self.betas} must be two numbers in [0, 1)", where=where)

    def factor(self, progress: float) -> float:
        """The share of the peak learning rate at `progress` in [0, 1] of the verb's steps."""
        if progress < self.warmup_ratio:
            return progress / self.warmup_ratio
        along = min((progress - self.warmup_ratio) / max(1 - self.warmup_ratio, 1e-9), 1.0)
        if self.schedule == "cosine":
            return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * along))
        return 1 - along if self.schedule == "linear" else 1.0


def check_positive(declared: Any, *names: str) -> None:
    """Refuse fields that are not above zero (NaN is not).

    Raises:
        ConfigError: naming the first.
    """
    for name in names:
        if not getattr(declared, name) > 0:
            raise ConfigError(f"{name}={getattr(declared, name)} must be positive", where=name_of(declared))


def check_not_negative(declared: Any, *names: str) -> None:
    """Refuse fields that are below zero (or NaN).

    Raises:
        ConfigError: naming the first.
    """
    for name in names:
        if not getattr(declared, name) >= 0:
            raise ConfigError(f"{name}={getattr(declared, name)} must not be negative", where=name_of(declared))


@dataclass(frozen=True)
class PolicyOptimizer(Training):
    """Base of every policy optimizer. Subclasses add fields and override `prepare` (and what else they need).

    Args:
        loss: the loss, a registered name or a configured component.
        samples_per_prompt: responses sampled for each prompt of a round; 0 learns from the groups it is given.
        prompts_per_round: prompts sampled in a round, drawn in order and around; 0 takes them all.
        shuffle: draw them in an order of its own each time around; False: as they were given, so that every round has
            the kinds of prompts in the proportions in which they alternate there.
        rounds: times that sampling, scoring and learning are repeated; 0 takes as many as it takes to draw each prompt
            once, in rounds of nearly equal size, none larger than `prompts_per_round`.
        sample_every: rounds that learn from the same samples, each through a `prepare` of its own; 0: all of them.
        temperature: of sampling, and, for methods that compare with the sampler, of every log-prob
            (`logprob_temperature`).
        value_learning_rate: learning rate of the value model's own weights; None: as the policy.
        importance_cap: C of the weight min(pi / mu, C) that each token's advantage gets, where mu is the sampler as it
            recorded itself and pi the training path; for losses that take ratios. None: no weight.
    """

    loss: Any = "alignkit/nll"
    samples_per_prompt: int = 1
    prompts_per_round: int = 0
    shuffle: bool = True
    rounds: int = 1
    sample_every: int = 1
    temperature: float = 1.0
    value_learning_rate: float | None = None
    importance_cap: float | None = None

    provides: ClassVar[Mapping[str, str]] = {}
    """Tensors beyond the vocabulary that `prepare` puts into its batch: name -> shape and meaning."""
    logs: ClassVar[Mapping[str, MetricSpec]] = {}
    """What the numbers are that it logs beyond those of every method: terms of its loss, `Batch.metrics`."""

    search: ClassVar[Mapping[str, Any]] = {"learning_rate": ("times", 0.2, 5.0)}
    """What a comparison may tune, by hyper-parameter: `(low, high)`; `(low, high, "log")`, evenly in the logarithm;
    `("times", low, high)`, multiples of what it is; or a list of choices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "temperature")
        if self.value_learning_rate is not None:
            check_positive(self, "value_learning_rate")
        if self.importance_cap is not None:
            check_positive(self, "importance_cap")
        check_not_negative(self, "samples_per_prompt", "prompts_per_round", "rounds", "sample_every")
        if not self.rounds and not self.sample_every:
            raise ConfigError("rounds=0 and sample_every=0 say nothing of each other", where=type(self).__name__)

    # -- what a method overrides ---------------------------------------------------------------------------------------

    def prepare(self, *args: Any, **kwargs: Any) -> Batch:
        """Turn a round's scored groups into what the loss needs: `prepare(self, groups, state, …)`. Called once a
        round.

        Further parameters, by name, are passed by the engine; `alignkit.vocabulary.PREPARE` says which there are.
        """
        raise NotImplementedError

    def terms(self) -> Mapping[str, Term]:
        """The terms of the loss by name ("loss" for a loss that returns one tensor), and of `extra_losses`."""
        return {"loss": Term()}

    def extra_losses(self) -> Mapping[str, Any]:
        """Further losses on the same forward pass, by name: functions like any loss.

        Each has a signature, and so a level, of its own. The term of one that returns a tensor has its name here. A
        term that `terms()` does not declare is a diagnostic: logged as its mean over sequences, never differentiated.
        """
        return {}

    def streams(self) -> Mapping[str, Stream]:
        """Data streams learned from beside the round's own, by name; `Run.improve(streams=…)` brings their groups."""
        return {}

    def keep(self, *args: Any, **kwargs: Any) -> list[bool] | None:
        """Which sampled groups are worth learning from: `keep(self, groups, …)`. The engine samples anew for the
        others. None keeps all. Further parameters, by name: those of `alignkit.vocabulary.KEEP`."""
        return None

    def check_use(self, *, max_new_tokens: int, losses: Sequence[Any]) -> None:
        """Refuse what contradicts the stage that it is used in, before a model is loaded: override it with
        `ConfigError`s.

        Args:
            max_new_tokens: of the sampler.
            losses: its loss and its extra losses, bound; `tensor_names` are those that each asks for.
        """

    def initial_state(self) -> dict[str, Any]:
        """The state a run begins with: plain JSON (an adaptive coefficient, counters)."""
        return {}

    def update(self, state: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
        """The state after a round, from the round's metrics."""
        return dict(state)

    def stop_epochs(self, metrics: Mapping[str, float]) -> bool:
        """Whether to skip the rest of the round, asked after every optimizer step with that step's metrics."""
        return False

    def components(self) -> list[tuple[str, Any]]:
        """(kind, component) of what the method names: its loss, its extra losses and those of its streams."""
        losses = [self.loss, *self.extra_losses().values(), *(stream.loss for stream in self.streams().values())]
        return [("loss", loss) for loss in losses]

    @property
    def logprob_temperature(self) -> float:
        """The temperature of `logprobs` in `prepare` and in the loss: 1 where the method imitates text."""
        return self.temperature

    @property
    def on_policy(self) -> bool:
        """Whether the method compares with the probabilities of its sampler, and so refuses truncated sampling.

        True where `prepare` asks for log-probs; the engine adds the losses that ask for `old_logprobs`.
        """
        asked = self.prepare_arguments()
        return bool(select(asked, source="policy") | select(asked, source="reference"))

    @property
    def own_samples(self) -> bool:
        """Whether what is learned from must be sampled by the policy that learns, and by no other."""
        return self.on_policy

    def prepare_arguments(self) -> tuple[str, ...]:
        """The names that `prepare` asks for beyond `groups` and `state`."""
        return tuple(inspect.signature(self.prepare).parameters)[2:]

    def rounds_over(self, prompts: int) -> int:
        """How many rounds there are with so many prompts."""
        per_round = self.prompts_per_round or prompts
        lap = math.ceil(prompts / max(per_round, 1)) * (self.sample_every or 1)
        return self.rounds or lap
