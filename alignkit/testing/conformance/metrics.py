"""Checks of metrics: state that can be reset, split over micro-batches, saved and read back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from alignkit.errors import NumericError
from alignkit.metrics.base import Metric, alone, values_of
from alignkit.metrics.states import restore, states_of
from alignkit.testing.conformance.loss_data import ELEMENTS, Tensors, draw
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.subject import Subject, refusal
from alignkit.vocabulary import VOCABULARY

Update = dict[str, Any]


def metric_of(subject: Subject) -> Metric:
    """A fresh one, that waits for no other process."""
    try:
        made: Metric = alone(subject.build())
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        skip(f"it cannot be built ({reason}); settings= says what it needs")
    return made


def updates(subject: Subject) -> list[Update]:
    """What it is given: micro-batches in training, prompts with their answers in an evaluation."""
    assert subject.record is not None
    names = subject.record.tensors
    if all(name in VOCABULARY or name in subject.host.provided_tensors() for name in names):
        tensors = draw(names, subject.host.provided_tensors())
        return [dict(_single(tensors.take(*part))) for part in ((0, 1), (2,), (3, 4))]
    return [{name: _offered(name, prompt) for name in names} for prompt in range(3)]


def _single(tensors: Tensors) -> Update:
    """In float32, as training gives them."""
    return dict(tensors.to(torch.float32).values)


TEXTS = (["one two three", "one two three", "four"], ["a b", "c d e", "a b c d"], ["x y z w v", "x y", "z"])


def _offered(name: str, prompt: int) -> Any:
    """What an evaluation gives under a name, of three answers to one prompt."""
    texts = TEXTS[prompt]
    lengths = torch.tensor([float(len(text.split())) for text in texts])
    mask = torch.arange(6) < lengths.unsqueeze(1)
    made: dict[str, Any] = {
        "prompts": [[{"role": "user", "content": "say"}]] * 3, "responses": texts, "lengths": lengths,
        "finished": torch.tensor([1.0, 0.0, 1.0]), "kl": lengths / 7 - 0.1, "scores": {"s": lengths - 2},
        "response_mask": mask, "logprobs": -(torch.arange(18).reshape(3, 6) % 5) / 3.0 - 0.1 * prompt,
    }  # fmt: skip
    return made[name]


def fed(metric: Metric, given: list[Update]) -> dict[str, float]:
    """What it says after some updates."""
    for each in given:
        metric.update(**each)
    return values_of("m", metric)


def differ(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two answers differ by more than rounding."""
    return set(one) != set(other) or any(not math.isclose(one[n], other[n], rel_tol=1e-5, abs_tol=1e-7) for n in one)


@check("metric")
def finite_value(subject: Subject) -> str:
    """It gives a finite number, or named ones: trl#2022, a "negative entropy" that was logged for 21 months."""
    try:
        found = fed(metric_of(subject), updates(subject))
    except NumericError as error:
        refuse(error.what, "compute")
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items()) or "nothing to tell"


@check("metric")
def reset_is_a_fresh_start(subject: Subject) -> str:
    """After `reset` it is as it was made: what a step leaves behind counts in the next one."""
    metric, given = metric_of(subject), updates(subject)
    first = fed(metric, given)
    metric.reset()
    if differ(first, fed(metric, given)):
        refuse(f"it says {first} at first and {values_of('m', metric)} after a reset", "reset")
    return "the same after a reset"


@check("metric")
def updates_in_any_order(subject: Subject) -> str:
    """Micro-batches, or prompts, in another order give the same value: trl#6024, a mean of means."""
    given = updates(subject)
    first, second = fed(metric_of(subject), given), fed(metric_of(subject), given[::-1])
    if differ(first, second):
        refuse(f"it says {first}, and backwards {second}", "update")
    return "backwards"


@check("metric")
def micro_batches_add_up(subject: Subject) -> str:
    """In training the value of a step is the same in one micro-batch and in many: trl#6024, #3021, ms-swift#10117."""
    assert subject.record is not None
    names = subject.record.tensors
    if not all(name in VOCABULARY or name in subject.host.provided_tensors() for name in names):
        skip("it is fed prompt by prompt")
    tensors = draw(names, subject.host.provided_tensors())
    whole = fed(metric_of(subject), [_single(tensors)])
    parts = fed(metric_of(subject), [_single(tensors.take(index)) for index in range(ELEMENTS)])
    if differ(whole, parts):
        refuse(f"it says {whole} of one micro-batch and {parts} of {ELEMENTS}", "update")
    return f"1 and {ELEMENTS} micro-batches"


@check("metric")
def state_can_be_saved(subject: Subject) -> str:
    """Its state, saved and read back, gives the same value, and goes on growing: NeMo RL#3171 (resumed fresh)."""
    given = updates(subject)
    metric, other = metric_of(subject), metric_of(subject)
    fed(metric, given[:2])
    saved = {name: value.clone() for name, value in states_of({"m": metric}).items()}  # as a file would
    if not saved and any(isinstance(v, (Tensor, list)) for n, v in vars(metric).items() if not n.startswith("_")):
        refuse("it keeps tensors outside of `add_state`", "state")
    restore({"m": other}, saved)
    if differ(values_of("m", metric), values_of("m", other)):
        refuse("its state read back gives another value: something is kept outside of `add_state`", "state")
    if differ(fed(metric, given[2:]), fed(other, given[2:])):
        refuse("it does not go on from its state", "state")
    return f"{len(saved)} tensors"


@check("metric")
def metric_inputs_unchanged(subject: Subject) -> str:
    """`update` writes into none of what it is given: the loss reads it too."""
    given = updates(subject)
    kept = [{n: v.clone() if isinstance(v, Tensor) else v for n, v in each.items()} for each in given]
    fed(metric_of(subject), given)
    for before, after in zip(kept, given, strict=True):
        for name, value in before.items():
            if isinstance(value, Tensor) and not torch.equal(value.nan_to_num(), after[name].nan_to_num()):
                refuse("update writes into it", name)
    return "as they were"
