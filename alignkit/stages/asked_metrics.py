"""The metrics that a caller asks for: named, and refused before anything is spent."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkit.errors import ConfigError
from alignkit.metrics.offers import OFFERS
from alignkit.metrics.specs import ANSWERS, ROUNDS, STEPS, MetricSpec
from alignkit.registry.host import PluginHost
from alignkit.vocabulary import VOCABULARY

if TYPE_CHECKING:
    from alignkit.metrics import Metric


def named(host: PluginHost, wanted: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that are asked for, each by a name.

    Args:
        host: the plugins.
        wanted: registered names, `use(…)`, classes or instances; by a name of one's own, or by theirs.

    Raises:
        ConfigError: two have one name.
        PluginError: one is unknown, or is no metric.
    """
    if isinstance(wanted, str) or not isinstance(wanted, (Mapping, list, tuple)):
        raise ConfigError(f"metrics={wanted!r}", where="metrics", remedy="give a list, or a mapping by name")
    given = wanted.items() if isinstance(wanted, Mapping) else [(None, spec) for spec in wanted]
    found: dict[str, Any] = {}
    for label, spec in given:
        name = label or host.resolve("metric", spec).name
        if name in found:
            raise ConfigError(f"two metrics are called {name!r}", where="metrics", remedy="give them by name: {…: …}")
        found[name] = spec
    return found


def by_name(wanted: Sequence[Any] | Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics of a stage that was resolved: built, and by name."""
    assert isinstance(wanted, Mapping), "the stage was not resolved"
    return dict(wanted)


def specs_kept(metrics: Mapping[str, Metric], logs: Mapping[str, MetricSpec] | None = None) -> dict[str, Any]:
    """What the numbers are that a stage logs beyond the core's own, as its result keeps it for the page."""
    specs = {**(logs or {}), **{name: metric.spec for name, metric in metrics.items()}}
    return {"specs": {name: spec.to_json() for name, spec in specs.items()}} if specs else {}


def check_answers(metrics: Mapping[str, Metric], *, answers: int, reference: bool, scores: Collection[str]) -> None:
    """Refuse, before anything is spent, metrics that an evaluation cannot feed.

    Args:
        metrics: those that are asked for, by name.
        answers: per prompt; 0 where that is not known.
        reference: whether there is one for the KL.
        scores: names of the scores.

    Raises:
        ConfigError: what is missing, and what to do.
    """
    for name, metric in metrics.items():
        where, asked = f"metric {name}", metric.asks_for()
        if name in scores or name in ANSWERS:
            raise ConfigError("a score or a metric that is always there has this name", where=where)
        strange = sorted(set(asked) - set(OFFERS))
        if strange:
            what = f"asks for {', '.join(strange)}, which evaluations do not have"
            raise ConfigError(what, where=where, remedy=f"there are {', '.join(OFFERS)}")
        if "kl" in asked and not reference:
            raise ConfigError("asks for the KL, and there is no reference", where=where, remedy="pass reference=…")
        if 0 < answers < metric.answers_needed:
            what = f"needs {metric.answers_needed} answers to a prompt"
            raise ConfigError(what, where=where, remedy=f"use n={metric.answers_needed} or more")


def check_steps(
    metrics: Mapping[str, Metric],
    sources: Collection[str],
    provided: Collection[str] = (),
    logged: Collection[str] = (),
) -> None:
    """The same for metrics of training steps.

    Args:
        metrics: those that are asked for, by name.
        sources: who makes tensors in this stage, of `alignkit.vocabulary.Source`.
        provided: tensors that the optimizer adds to the vocabulary.
        logged: names of numbers that the optimizer logs.

    Raises:
        ConfigError: what is missing, and what to do.
    """
    known = {name for name, spec in VOCABULARY.items() if spec.source in sources} | {*provided}
    for name, metric in metrics.items():
        where = f"metric {name}"
        strange = sorted(set(metric.asks_for()) - known)
        if strange:
            what = f"asks for {', '.join(strange)}, which this stage does not have"
            raise ConfigError(what, where=where, remedy=f"there are {', '.join(sorted(known))}")
        if name in {*STEPS, *ROUNDS, *logged}:
            raise ConfigError("a number that is logged anyway has this name", where=where, remedy="give it another")
