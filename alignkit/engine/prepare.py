"""Calling a method's `prepare`: what it may ask for by name, and what is made of its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkit.engine.judging import Judging
from alignkit.engine.known import Known
from alignkit.engine.setting import Setting
from alignkit.engine.training_data import TrainingData
from alignkit.errors import NothingToLearnError, NumericError
from alignkit.groups import Groups
from alignkit.optimizers import Batch, PolicyOptimizer
from alignkit.randomness import stream_key


@dataclass
class Prepare:
    """Has the method turn a round's groups into what its loss needs.

    Args:
        method: whose `prepare` is called.
        judging: says which reward is optimised.
        known: measures groups.
        history: groups of earlier versions.
        setting: where.
        max_new_tokens: of the sampler.
        scored_history: `history` with the current reward's scores, once it was asked for.
    """

    method: PolicyOptimizer
    judging: Judging
    known: Known
    history: Groups
    setting: Setting
    max_new_tokens: int
    scored_history: Groups | None = None

    def __call__(
        self, groups: Groups, data: TrainingData, known: Mapping[str, Tensor], index: int, state: Mapping[str, Any]
    ) -> Batch:
        """What the round learns from.

        Args:
            groups: the round's.
            data: the same, as the policy reads them.
            known: tensors worked out before, by name.
            index: of the round.
            state: of the method.

        Raises:
            NothingToLearnError: nothing is left to learn from.
            NumericError: a metric that is not finite.
        """
        where = f"{type(self.method).__name__}, round {index}"
        offers = Offers(self, groups, data)
        given = {n: known[n] if n in known else offers.give(n) for n in self.method.prepare_arguments()}
        with self.setting.meter.phase("prepare"):
            batch = self.method.prepare(groups, state, **given)
        if not len(batch.groups):
            raise NothingToLearnError("prepare kept nothing to learn from", where=where)
        bad = {name: value for name, value in batch.metrics.items() if not math.isfinite(value)}
        if bad:
            raise NumericError(f"prepare gave the metrics {bad}", where=where)
        return batch

    def earlier(self) -> Groups:
        """Earlier versions' samples with the current reward's scores, worked out once."""
        if self.scored_history is None:
            scored = len(self.history) and self.judging.reward is not None
            self.scored_history = self.judging.score(self.history, "history") if scored else self.history
        return self.scored_history


@dataclass(frozen=True)
class Offers:
    """What `prepare` may name beyond the tensors that are known: a method for each name of
    `alignkit.vocabulary.PREPARE`, called when it is asked for.

    Args:
        part: of whose work it is.
        groups: the round's.
        data: the same, as the policy reads them.
    """

    part: Prepare
    groups: Groups
    data: TrainingData

    def give(self, name: str) -> Any:
        """The thing so named."""
        return getattr(self, name)()

    def rewards(self) -> Tensor:
        return self.part.judging.rewards(self.groups)[0]

    def present(self) -> Tensor:
        return self.part.judging.rewards(self.groups)[1]

    def reward_name(self) -> str | None:
        return self.part.judging.reward_name(self.groups)

    def annotated(self) -> bool:
        return self.part.judging.annotator is not None

    def response_mask(self) -> Tensor:
        return self.data.response_mask

    def ends_with_eos(self) -> Tensor:
        return self.data.ends_with(self.part.known.models.policy.chat.end_ids)

    def history(self) -> Groups:
        return self.part.earlier()

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(stream_key(*self.part.setting.seed, "prepare") % 2**31)

    def max_new_tokens(self) -> int:
        return self.part.max_new_tokens

    def measure(self) -> Callable[..., dict[str, Tensor]]:
        return self.part.known.measure
