"""Suites: a problem to align on, with the truth about an answer, and what makes a comparison on it fair."""

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
        policy: where every method starts: what `run.policy` takes, or `(run) -> policy` which makes it as a stage; None
            leaves it to who compares.
        budget: what a method may spend unless it is said otherwise, in the words of a stage's meter
            (`{"generated_tokens": 200_000}`).
        hidden: what a method may not see, in words.
        settings: hyper-parameters by an optimizer's name that were found to suit the suite; whoever names some himself
            goes before them.
        annotator: what ranks the samples of methods whose `prepare` asks whether they were `annotated`; None ranks them
            by the truth.
        data: `(run, v0, method, name) -> groups`: what a method learns from, prompts where it samples; None gives
            `prompts` to those that sample, and to the others samples of V0, ranked and labelled by the truth.
        measure: `(run, policy, *, name, label) -> evaluation`: how a version is measured; None answers `heldout` and
            scores the answers. Where it gives each method's exact `gap`, what is registered is marked `exact = True`.
    """

    prompts: Groups
    heldout: Groups
    scores: Mapping[str, Any]
    max_new_tokens: int = 128
    doc: str = ""
    policy: Any = None
    budget: Mapping[str, float] = field(default_factory=dict)
    hidden: str = ""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    annotator: Any = None
    data: Callable[..., Any] | None = None
    measure: Callable[..., Any] | None = None

    def start(self, run: Any, policy: Any = None, **options: Any) -> Any:
        """The policy that every method starts from, as a stage of the run.

        Args:
            run: the run.
            policy: another one than the suite's own, as `run.policy` takes it.
            options: of `run.policy`; a suite that makes its policy itself is not asked for them.
        """
        chosen = self.policy if policy is None else policy
        return chosen(run) if callable(chosen) else run.policy(chosen, **options)
