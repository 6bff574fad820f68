"""Rounds of a method on the tiny model, watched: what its `prepare` was given and gave, and the first gradient."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.engine.prepare import Prepare
from alignkit.errors import NumericError, PluginError
from alignkit.groups import Groups
from alignkit.optimizers import Batch, PolicyOptimizer
from alignkit.run import Run
from alignkit.testing.conformance.outcome import refuse, skip
from alignkit.testing.conformance.subject import Subject, refusal
from alignkit.testing.given import PROMPTS, letters
from alignkit.testing.learning import first_gradients

GIVEN = Groups.from_rows(
    {"prompt": f"p{i}", "responses": ["ab" * (i + 1), "9" * (7 - i)], "ranks": [1, 2], "labels": [True, False]}
    for i in range(6)
)
"""What a method learns from that samples nothing: comparisons with labels, of unequal length."""

QUICK = {
    "rounds": 1,
    "epochs": 1,
    "samples_per_prompt": 4,
    "prompts_per_round": 5,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.0,
}
"""Settings of a try, those that a method has: small, so that it is over in a moment."""


@dataclass
class Call:
    """One call of `prepare`.

    Args:
        method: whose.
        groups: its first argument.
        state: its second.
        given: what it asked for by name.
        before: copies of the tensors in `given`, from before the call.
        batch: what it returned.
    """

    method: PolicyOptimizer
    groups: Groups
    state: Mapping[str, Any]
    given: dict[str, Any]
    before: dict[str, Tensor]
    batch: Batch

    def again(self, groups: Groups | None = None, **changes: Any) -> Batch:
        """Call it once more, with some of what was given changed."""
        given = {n: v.clone() if isinstance(v, Tensor) else v for n, v in self.given.items()} | self._generator()
        prepare = type(self.method).prepare
        return prepare(self.method, groups or self.groups, self.state, **given, **changes)

    def _generator(self) -> dict[str, Any]:
        return {"generator": torch.Generator().manual_seed(5)} if "generator" in self.given else {}

    def changed(self, groups: Groups | None = None, **changes: Any) -> Batch:
        """The same with tensors replaced, those that it asks for."""
        call = replace(self, given={**self.given, **{n: v for n, v in changes.items() if n in self.given}})
        return call.again(groups)


@dataclass
class Trial:
    """What came of some rounds.

    Args:
        method: that learned.
        calls: of its `prepare`.
        gradients: of the first step, by parameter.
        result: of the stage.
        again: whether the same command found the stage done.
    """

    method: PolicyOptimizer
    calls: list[Call] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    again: bool = False


def small(subject: Subject, **changes: Any) -> PolicyOptimizer:
    """The method with settings that make a try short, as far as it takes them."""
    plain = subject.build()
    known = subject.record.hyperparameters if subject.record else {}
    wanted = {n: v for n, v in (QUICK | changes).items() if n in known and n not in subject.settings}
    if not plain.samples_per_prompt:
        wanted.pop("samples_per_prompt", None)
    wanted["samples_per_prompt"] = min(wanted.get("samples_per_prompt", 0), plain.samples_per_prompt or 0)
    wanted = {n: v for n, v in wanted.items() if n in known}
    try:
        made: PolicyOptimizer = subject.build(**wanted)
    except Exception as error:
        if refusal(error) is None:
            raise
        made = plain
    return made


def trial(subject: Subject, **changes: Any) -> Trial:
    """One round of the method, as `run.improve` does it.

    Raises:
        DoesNotApplyError: the method says what it lacks, and its author gave nothing to try it on.
    """
    try:
        found: Trial = subject.once(f"trial {changes}", lambda: improved(subject, small(subject), **changes))
    except (PluginError, NumericError) as error:  # what the method made, and not what it was given
        refuse(str(error), "the first round")
    except Exception as error:
        reason = refusal(error)
        if reason is None or subject.label in subject.given.groups:
            raise
        skip(f"it cannot be tried on made-up rows ({reason}); give it some with groups= and reward=")
    return found


def improved(
    subject: Subject,
    method: PolicyOptimizer,
    *,
    data: Groups | None = None,
    reward: Any = None,
    length: int = 8,
    look: Callable[[Any], None] = lambda _: None,
    **options: Any,
) -> Trial:
    """Rounds of a method in a run that is thrown away.

    Args:
        subject: whose method it is.
        method: as it is tried.
        data: prompts or groups; default the author's, else ours.
        reward: default the author's, else the share of letters.
        length: longest response.
        look: is called with the handle of the policy before, and of the one after.
        options: of `Run`.
    """
    rows = data or subject.groups or (PROMPTS if method.samples_per_prompt else GIVEN)
    annotator = subject.given.annotators.get(subject.label)
    reward = reward or subject.given.rewards.get(subject.label) or (None if annotator is not None else letters)
    made = Trial(method)
    with tempfile.TemporaryDirectory() as folder, watched_prepare(method, made.calls), first_gradients() as seen:
        for again in (False, True):
            with Run(Path(folder) / "run", quiet=True, host=subject.host, **options) as run:
                before = run.policy("tiny")
                result = run.improve(
                    before, rows, optimizer=method, max_new_tokens=length, reference=before, annotator=annotator,
                    reward=reward if method.samples_per_prompt else None,
                )  # fmt: skip
            if not again:
                made.gradients, made.result = dict(seen), result.result
                rounds = len(made.calls)
                look(before)
                look(result.policy)
        made.again = len(made.calls) == rounds
        del made.calls[rounds:]
    return made


@contextmanager
def watched_prepare(method: PolicyOptimizer, calls: list[Call]) -> Iterator[None]:
    """Inside, each call of this one object's `prepare` by the engine is kept in `calls`."""
    original = Prepare.__call__

    def call(self: Prepare, *args: Any) -> Batch:
        named = type(type(method).__name__, (_Watched,), {})  # errors name the method by its class
        watched = replace(self, method=named(method, calls)) if self.method is method else self
        try:
            return original(watched, *args)
        finally:
            self.scored_history = watched.scored_history

    Prepare.__call__ = call  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Prepare.__call__ = original  # type: ignore[method-assign]


@dataclass
class _Watched:
    """A method as the engine's `Prepare` uses it. The method itself stays as it is: what is put on it would count in
    the stage's key."""

    method: Any
    calls: list[Call]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def prepare_arguments(self) -> tuple[str, ...]:
        return tuple(self.method.prepare_arguments())

    def prepare(self, groups: Groups, state: Mapping[str, Any], **given: Any) -> Batch:
        before = {n: v.clone() for n, v in given.items() if isinstance(v, Tensor)}
        batch: Batch = self.method.prepare(groups, state, **given)
        self.calls.append(Call(self.method, groups, state, given, before, batch))
        return batch
