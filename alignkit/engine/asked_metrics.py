"""The metrics that a caller asks for: resolved by the host, named, and refused before anything is spent."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.errors import ConfigError
from alignkit.metrics import OFFERS, Metric
from alignkit.metrics.specs import ANSWERS, STEPS
from alignkit.registry.host import PluginHost
from alignkit.vocabulary import VOCABULARY


@dataclass(frozen=True)
class Asked:
    """Metrics by name, and the distributions that their code comes from ("" for a class of the user's own)."""

    metrics: dict[str, Metric]
    distributions: list[str]


def asked_metrics(host: PluginHost, wanted: Sequence[Any] | Mapping[str, Any]) -> Asked:
    """The metrics that are asked for.

    Args:
        host: the plugins.
        wanted: registered names, `use(…)`, classes or instances; by a name of one's own, or by theirs.

    Raises:
        ConfigError: two have one name.
        PluginError: one is unknown, or is no metric.
    """
    given = wanted.items() if isinstance(wanted, Mapping) else [(None, spec) for spec in wanted]
    metrics: dict[str, Metric] = {}
    distributions = []
    for label, spec in given:
        record = host.resolve("metric", spec)
        name = label or record.name
        if name in metrics:
            raise ConfigError(f"two metrics are called {name!r}", where="metrics", remedy="give them by name: {…: …}")
        metrics[name] = host.build("metric", spec)
        distributions.append(record.distribution)
    return Asked(metrics, distributions)


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


def check_steps(metrics: Mapping[str, Metric], provided: Collection[str] = ()) -> None:
    """The same for metrics of training steps.

    Args:
        metrics: those that are asked for, by name.
        provided: tensors that the optimizer adds to the vocabulary.

    Raises:
        ConfigError: what is missing, and what to do.
    """
    known = {*VOCABULARY, *provided}
    for name, metric in metrics.items():
        strange = sorted(set(metric.asks_for()) - known)
        if strange:
            what = f"asks for {', '.join(strange)}, which training does not have"
            raise ConfigError(what, where=f"metric {name}", remedy="measure it in an evaluation")
        if name in STEPS:
            raise ConfigError("a number that is always there has this name", where=f"metric {name}")
