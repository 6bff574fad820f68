"""The conformance kit: one named check for each pain that users of such libraries report.

    from alignkit.testing import conformance

    test_conformance = conformance("my_plugin")

in a plugin's tests makes a case of every component and check; `alignkit plugins --check my_plugin` prints the same of
what is installed. A check passes, fails (with what, where and how to see it again), or does not apply, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from alignkit.groups import Groups
from alignkit.registry.host import PluginHost, default_host
from alignkit.testing.conformance import (
    annotators,
    exact,
    imports,
    lessons,
    loss_effects,
    loss_form,
    loss_values,
    metrics,
    optimizers,
    others,
    rewards,
    samplers,
    settings,
)
from alignkit.testing.conformance.outcome import CHECKS, Check, Outcome, checks_of, examine
from alignkit.testing.conformance.subject import Given, Subject, find

PARTS = (
    imports,
    settings,
    loss_form,
    loss_effects,
    loss_values,
    samplers,
    optimizers,
    lessons,
    exact,
    rewards,
    annotators,
    metrics,
    others,
)
"""The modules whose checks are in `CHECKS`, in the order in which they are run."""

CHECKS.sort(key=lambda one: [part.__name__ for part in PARTS].index(one.run.__module__))


def outcomes(name: str, host: PluginHost | None = None, given: Given | None = None) -> list[Outcome]:
    """What every check says of a distribution's components, or of one component.

    Args:
        name: a distribution, its entry point, its module, or `kind:name`.
        host: the plugins; default those that are installed.
        given: what is needed to try components that need more than their defaults.

    Raises:
        PluginError: nothing is called so, or it could not be loaded.
    """
    subjects = find(name, host or default_host(), given)
    return [examine(subject, one) for subject in subjects for one in checks_of(subject.kind)]


def conformance(
    name: str,
    *,
    host: PluginHost | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    groups: Mapping[str, Groups] | None = None,
    reward: Mapping[str, Any] | None = None,
    annotator: Mapping[str, Any] | None = None,
) -> Callable[..., None]:
    """A pytest test of a plugin: one case for each of its components and checks.

    Args:
        name: a distribution, its entry point, its module, or `kind:name` for one component.
        host: the plugins; default those that are installed.
        settings: hyper-parameters to try components with, by "kind:name".
        groups: rows to try components on, by "kind:name".
        reward: the reward to improve a method by, by "optimizer:name".
        annotator: the annotator to improve a method by, likewise.

    Raises:
        PluginError: nothing is called so, or it could not be loaded.
    """
    import pytest

    given = Given(settings or {}, groups or {}, reward or {}, annotator or {})
    subjects = find(name, host or default_host(), given)
    cases = [
        pytest.param(subject, one, id=f"{subject.label}-{one.name}")
        for subject in subjects
        for one in checks_of(subject.kind)
    ]

    @pytest.mark.parametrize(("subject", "one"), cases)
    def test_conformance(subject: Subject, one: Check) -> None:
        found = examine(subject, one)
        if found.verdict == "does not apply":
            pytest.skip(found.text)
        assert found.verdict == "pass", f"{found.subject}: {found.check}: {found.text}\n{one.doc}\n{found.reproduce}"

    return test_conformance


__all__ = ["CHECKS", "Check", "Given", "Outcome", "Subject", "checks_of", "conformance", "examine", "find", "outcomes"]
