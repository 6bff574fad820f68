"""Suites: a problem to align on, with the truth about an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkit.groups import Groups


@dataclass(frozen=True)
class Suite:
    """What a registered suite returns.

    Args:
        prompts: to learn on.
        heldout: to measure on.
        scores: name -> reward or plain function; the first is the truth that a report leads with, and what a verifiable
            reward is.
        max_new_tokens: longest answer.
        doc: what it is, for reports.
        policy: what to start from, where nothing else is said; None leaves it to the user.
        budget: what a method may spend, where nothing else is said: counts of the meter by name.
        hidden: what a method may not see, in words.
        settings: hyper-parameters that the suite's author found, by the optimizer's name; what a user writes goes
            before them.
        measure: `(run, policy, *, name, label) -> EvaluationHandle`; None answers `heldout` and scores the answers.
        data: `(run, policy, method, name) -> Groups`: what a method that samples nothing learns from; None samples from
            the policy and ranks by the truth.
    """

    prompts: Groups
    heldout: Groups
    scores: Mapping[str, Any]
    max_new_tokens: int = 128
    doc: str = ""
    policy: str | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    hidden: str = ""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measure: Callable[..., Any] | None = None
    data: Callable[..., Any] | None = None
