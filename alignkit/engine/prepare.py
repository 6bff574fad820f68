"""Calling a method's `prepare`: what it may ask for by name, and what is made of its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alignkit.calls import calling, whose
from alignkit.engine.judging import Judging
from alignkit.engine.known import Known
from alignkit.engine.setting import Setting
from alignkit.engine.training_data import TrainingData
from alignkit.errors import NothingToLearnError, NumericError, PluginError, did_you_mean
from alignkit.groups import Groups
from alignkit.optimizers import Batch, PolicyOptimizer
from alignkit.randomness import stream_key
from alignkit.vocabulary import VOCABULARY


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
            PluginError, NothingToLearnError, NumericError: see `checked`.
        """
        where = f"{whose(self.method)}.prepare, round {index}"
        offers = Offers(self, groups, data, index)
        given = {n: known[n] if n in known else offers.give(n) for n in self.method.prepare_arguments()}
        with calling(self.method, "prepare", f"round {index}"):
            made = self.method.prepare(groups, state, **given)
        return checked(made, self.method.provides, where)

    def earlier(self) -> Groups:
        """Earlier versions' samples with the current reward's scores, worked out once."""
        if self.scored_history is None:
            scored = len(self.history) and self.judging.reward is not None
            self.scored_history = self.judging.score(self.history, "history") if scored else self.history
        return self.scored_history


def checked(batch: Any, provides: Mapping[str, str], where: str) -> Batch:
    """What a `prepare` returned, with its metrics as numbers.

    Args:
        batch: what it returned.
        provides: tensors that the method adds to the vocabulary.
        where: method and round, for errors.

    Raises:
        PluginError: no `Batch`, a tensor that no loss can ask for, one that is not aligned with the responses, or a
            metric that is no number.
        NothingToLearnError: nothing is left to learn from.
        NumericError: a metric that is not finite.
    """
    if not isinstance(batch, Batch) or not isinstance(batch.groups, Groups):
        kind = f"Batch of a {type(batch.groups).__name__}" if isinstance(batch, Batch) else type(batch).__name__
        raise PluginError(f"prepare returned a {kind}", where=where, remedy="return a Batch of Groups")
    if not len(batch.groups):
        raise NothingToLearnError("prepare kept nothing to learn from", where=where)
    for name, given in (("tensors", batch.tensors), ("metrics", batch.metrics)):
        if not isinstance(given, Mapping):
            what = f"prepare returned {name} that are a {type(given).__name__}"
            raise PluginError(what, where=where, remedy="return them by name")
    _check_pairs(batch, where)
    known = {*VOCABULARY, *provides}
    for name, tensor in batch.tensors.items():
        if name not in known:
            what = f"prepare made the tensor {name!r}, which no loss can ask for{did_you_mean(name, known)}"
            raise PluginError(what, where=where, remedy="declare it in the optimizer's `provides`")
        if not isinstance(tensor, Tensor) or tensor.ndim not in (1, 2) or len(tensor) != batch.groups.num_responses:
            shape = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            what = f"prepare made {name} of {shape} for {batch.groups.num_responses} responses"
            raise PluginError(what, where=where, remedy="return [responses] or [responses, tokens], in their order")
        if tensor.is_meta or tensor.is_complex() or tensor.requires_grad:
            how = "without values" if tensor.is_meta else "complex" if tensor.is_complex() else "not detached"
            raise PluginError(f"prepare made {name}, which is {how}", where=where, remedy="return plain numbers")
        level = {"token": 2, "response": 1}.get(VOCABULARY[name].level) if name in VOCABULARY else None
        if level not in (None, tensor.ndim):
            what = f"prepare made {name} of {list(tensor.shape)}, and it has one number per {VOCABULARY[name].level}"
            raise PluginError(what, where=where, remedy=f"return {VOCABULARY[name].shape}")
    return replace(batch, metrics=_numbers(batch.metrics, where))


def _check_pairs(batch: Batch, where: str) -> None:
    """Refuse pairs that are not two numbers of responses."""
    for pair in () if batch.pairs is None else batch.pairs:
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(_is_number(one) for one in pair)):
            remedy = "name (chosen, rejected) by number over all responses"
            raise PluginError(f"prepare made the pair {pair!r}", where=where, remedy=remedy)
        if pair[0] == pair[1] or not all(0 <= int(one) < batch.groups.num_responses for one in pair):
            what = f"prepare made the pair {tuple(pair)} of {batch.groups.num_responses} responses"
            raise PluginError(what, where=where, remedy="number them from 0, two others in each pair")


def _is_number(one: Any) -> bool:
    return hasattr(one, "__index__") and not isinstance(one, bool)


def check_widths(batch: Batch, width: int, where: str) -> None:
    """Refuse tensors per token that are narrower than the longest response.

    Args:
        batch: what `prepare` returned.
        width: learned tokens of the longest response.
        where: method, for errors.

    Raises:
        PluginError: naming the tensor.
    """
    for name, tensor in batch.tensors.items():
        if tensor.ndim == 2 and 1 < tensor.shape[1] < width:  # one number may stand for all tokens of a response
            what = f"{name} has {tensor.shape[1]} tokens, the longest response {width}"
            raise PluginError(what, where=where, remedy="return [responses, tokens], padded on the right")


def _numbers(metrics: Mapping[str, Any], where: str) -> dict[str, float]:
    try:
        found = {name: float(value) for name, value in metrics.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise PluginError(f"prepare gave a metric that is no number ({error})", where=where) from error
    bad = {name: value for name, value in found.items() if not math.isfinite(value)}
    if bad:
        raise NumericError(f"prepare gave the metrics {bad}", where=where)
    return found


@dataclass(frozen=True)
class Offers:
    """What `prepare` may name beyond the tensors that are known: a method for each name of
    `alignkit.vocabulary.PREPARE`, called when it is asked for.

    Args:
        part: of whose work it is.
        groups: the round's.
        data: the same, as the policy reads them.
        index: of the round.
    """

    part: Prepare
    groups: Groups
    data: TrainingData
    index: int

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
        return self.data.ended(self.part.known.models.policy.chat.end_ids)

    def history(self) -> Groups:
        return self.part.earlier()

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(stream_key(*self.part.setting.seed, "prepare", self.index) % 2**31)

    def max_new_tokens(self) -> int:
        return self.part.max_new_tokens

    def measure(self) -> Callable[..., dict[str, Tensor]]:
        return self.part.known.measure
