"""Checks of every kind of component: its hyper-parameters, and what a stage's key sees of them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

from alignkit.errors import AlignkitError
from alignkit.identity import canonical_json, plain
from alignkit.optimizers import PolicyOptimizer
from alignkit.registry.records import Hyperparameter
from alignkit.stages.base import Context
from alignkit.testing.conformance.loss_data import terms_of
from alignkit.testing.conformance.loss_form import tensors_of
from alignkit.testing.conformance.others import mapped, transformed
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.rewards import rows_of, scored
from alignkit.testing.conformance.subject import Subject, refusal

CONSTRUCTED = ("loss", "sampler", "optimizer", "reward", "annotator", "metric", "transform")
"""The kinds whose hyper-parameters make an object; those of the others are arguments of a run."""


def hyperparameters(subject: Subject) -> dict[str, Hyperparameter]:
    """Its settings with their defaults.

    Raises:
        DoesNotApplyError: it has none.
    """
    known = dict(subject.record.hyperparameters) if subject.record else {}
    if not known:
        skip("it has no hyper-parameters")
    return known


@check("any")
def documented(subject: Subject) -> str:
    """It says what it is, and every hyper-parameter has a line under `Args:`, in its own docstring or in that of a
    class it derives from: rlhf-book#489, open-instruct#534, trl#6503, defaults that nobody could look up."""
    if not (inspect.getdoc(subject.target) or "").strip():
        refuse("it has no docstring")
    texts = [inspect.getdoc(part) or "" for part in _sources(subject.target)]
    described = {name for text in texts for name in _described(text)}
    silent = [name for name in (subject.record.hyperparameters if subject.record else {}) if name not in described]
    if silent:
        refuse("they stand under no `Args:`", ", ".join(silent))
    return f"{len(subject.record.hyperparameters) if subject.record else 0} hyper-parameters"


def _sources(target: Any) -> list[Any]:
    """Whose docstrings count: a class's, its bases' and its constructor's."""
    if not inspect.isclass(target):
        return [target]
    return [part for base in target.__mro__[:-1] for part in (base, vars(base).get("__init__")) if part is not None]


def _described(text: str) -> set[str]:
    """The names under `Args:`."""
    _, _, arguments = text.partition("Args:")
    names: set[str] = set()
    for line in re.findall(r"^\s+([\w, ]+?)(?:\s*\([^)]*\))?:", arguments, re.MULTILINE):
        names |= {name.strip() for name in line.split(",")}
    return names


@check(*CONSTRUCTED)
def refuses_negative(subject: Subject) -> str:
    """A negative number is refused where the default is not negative, unless the hyper-parameter's text speaks of
    negative ones: a sign that turns a loss round learns the opposite in silence. (No component can
    be configured with NaN: the grammar refuses it.)"""
    needs_settings(subject)
    numbers = dict(_numbers(subject))
    if not numbers:
        skip("it has no hyper-parameter that is a number")
    if _is_called(subject):  # else what it refuses may be the rows
        scored(subject, rows_of(subject)) if subject.kind == "reward" else transformed(subject)
    for name, default in numbers.items():
        if default < 0 or _may_be_negative(subject, name):
            continue
        value = type(default)(-1)
        if (said := _accepts(subject, name, value)) is not None:
            refuse(f"a negative number is {said}", f"{name}={value}")
    return ", ".join(numbers)


def needs_settings(subject: Subject) -> None:
    """Nothing can be said of a component that cannot be built.

    Raises:
        DoesNotApplyError: it must be given settings, and its author gave none.
    """
    try:
        subject.build()
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        skip(f"it must be given settings ({reason}); settings= says which")


def _numbers(subject: Subject) -> Iterator[tuple[str, Any]]:
    for name, known in hyperparameters(subject).items():
        if isinstance(known.default, (int, float)) and not isinstance(known.default, bool):
            yield name, known.default


def _may_be_negative(subject: Subject, name: str) -> bool:
    """Whether the text of a hyper-parameter speaks of negative values."""
    for part in _sources(subject.target):
        text = inspect.getdoc(part) or ""
        found = re.search(rf"^\s+{name}[^\n]*:.*?(?=^\s+\w+:|\Z)", text.partition("Args:")[2], re.MULTILINE | re.DOTALL)
        if found and "negative" in found[0]:
            return True
    return False


def _accepts(subject: Subject, name: str, value: Any) -> str | None:
    """None where a value is refused in words; else what happened."""
    try:
        built = subject.build(**{name: value})
        if subject.kind == "loss":
            terms_of(built, tensors_of(subject))
        if isinstance(built, PolicyOptimizer):
            built.terms(), built.extra_losses(), built.streams()
        if _is_called(subject):
            _call(subject, built)
    except AlignkitError:
        return None
    except Exception as error:
        return f"met with a bare {type(error).__name__}: {error}"
    return "accepted"


def _is_called(subject: Subject) -> bool:
    """Whether it is a plain function, which can refuse a setting only when it is called."""
    return subject.kind in ("reward", "transform") and inspect.isroutine(subject.target)


def _call(subject: Subject, built: Any) -> None:
    if subject.kind == "reward":
        Context(subject.host).build("reward", built, subject.name).score(rows_of(subject))
    else:
        mapped(subject, built)


@check("loss")
def infinite_is_refused_or_harmless(subject: Subject) -> str:
    """An infinite hyper-parameter of a loss is refused, or gives finite values (a clip range may be infinite):
    here once `kl_horizon=inf` ended in a bare error."""
    numbers = {n: d for n, d in _numbers(subject) if isinstance(d, float)}
    if not numbers:
        skip("it has no hyper-parameter that is a real number")
    tensors = tensors_of(subject)
    for name in numbers:
        try:
            terms = terms_of(subject.build(**{name: math.inf}), tensors)
        except AlignkitError:
            continue
        for term, value in terms.items():
            shown = value[tensors.mask] if value.shape == tensors.mask.shape else value
            if not bool(shown.isfinite().all()):
                refuse("an infinite value is accepted, and what comes of it is not finite", f"{name}=inf, term {term}")
    return ", ".join(numbers)


@check(*CONSTRUCTED)
def key_sees_settings(subject: Subject) -> str:
    """Another setting is another key, and the same setting the same: a hyper-parameter that a hand-written `key()`
    leaves out gives "done already" with the old result, the worst that a durable run can do."""
    needs_settings(subject)
    if subject.loads:
        skip(subject.loads)
    known = hyperparameters(subject)
    before, twice = _key(subject), _key(subject)
    if before != twice:
        refuse("two objects of the same settings have two keys")
    tried = []
    for name, each in known.items():
        if (changed := _another(subject.settings.get(name, each.default))) is None:
            continue
        try:
            after = _key(subject, **{name: changed})
        except Exception:  # another value alone is refused: nothing can be said of it
            continue
        tried.append(name)
        if after == before and name != "cache":
            refuse(f"another value ({changed!r}) leaves the key as it was", name)
    if not tried:
        skip("none of its hyper-parameters has another value that can be made up")
    return ", ".join(tried)


def _key(subject: Subject, **changes: Any) -> str:
    built = subject.build(**changes)
    return canonical_json(built.key() if hasattr(built, "key") else plain(built))


def _another(value: Any) -> Any:
    """Another value of the same sort, or None."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.1 if value != 0.2 else 0.25
    return None


@check("any")
def builds_from_its_defaults(subject: Subject) -> str:
    """Named alone, without settings, it is there, or says which setting must be given."""
    needs_settings(subject)
    return "built"
