"""Tuning: the same number of trials of each method's own search space, on prompts that the comparison does not measure.

The first trial takes the settings as they are, the others are suggested by Optuna's TPE, each from all before it. A
trial is a cell: killed, it goes on, and the same trials are suggested again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignkit.comparison.cell import Cell, cell_folder, run_cell
from alignkit.comparison.declared import PARTS, Conditions, Method, is_whole, scores_digest
from alignkit.comparison.results import Done, read_cell
from alignkit.errors import ConfigError, PluginError, did_you_mean
from alignkit.registry.grammar import Component
from alignkit.registry.host import PluginHost
from alignkit.suites import Suite

SEED = 1_000_003
"""Of every trial's run: far from those of a comparison, and one for all, so that trials differ by settings alone."""
PART = "tuning"
"""The folder of the trials."""


@dataclass(frozen=True)
class Range:
    """What a hyper-parameter may be.

    Args:
        name: of the hyper-parameter.
        step: of the method's, to which it belongs.
        low, high: ends, both included; None for choices.
        log: whether it is drawn evenly in its logarithm.
        whole: whether it is a whole number.
        choices: instead of ends.
    """

    name: str
    step: int
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.step}.{self.name}"

    def suggest(self, trial: Any) -> Any:
        """A value, by an Optuna trial."""
        if self.choices:
            return self.choices[trial.suggest_categorical(self.key, list(range(len(self.choices))))]
        if self.whole:
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return _short(trial.suggest_float(self.key, self.low, self.high, log=self.log))


@dataclass(frozen=True)
class Search:
    """The search for one method's settings.

    Args:
        root: the comparison's folder.
        conditions: of the trials.
        method: as it was written.
        ranges: that are searched.
        trials: how many.
    """

    root: Path
    conditions: Conditions
    method: Method
    ranges: tuple[Range, ...]
    trials: int

    @property
    def name(self) -> str:
        return self.method.label


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Args:
        method: with the best settings.
        trials: a row each: settings, score, why it failed, what it spent.
    """

    method: Method
    trials: tuple[dict[str, Any], ...] = field(default=())

    @property
    def failed(self) -> str:
        """Why, where no trial came to its end."""
        return "" if any(row["score"] is not None for row in self.trials) else str(self.trials[-1]["reason"])


def ranges_of(host: PluginHost, method: Method) -> tuple[Range, ...]:
    """The search space of a method: what each of its optimizers declares; what the user wrote stays as it is.

    Raises:
        PluginError: a declaration that cannot be read, or of a hyper-parameter that there is not.
    """
    if method.recipe:
        return ()
    written = [set(step.params) for step in _written(method)]
    found = []
    for place, step in enumerate(method.steps):
        record, built = host.resolve("optimizer", step), host.build("optimizer", step)
        for name, space in built.search.items():
            where = f"search of optimizer {record.qualified}"
            if name not in record.hyperparameters:
                near = did_you_mean(name, record.hyperparameters)
                raise PluginError(f"{name} is no hyper-parameter{near}", where=where)
            if name not in written[place]:
                found.append(_range(name, place, space, getattr(built, name), where))
    return tuple(found)


def _written(method: Method) -> Sequence[Component]:
    from alignkit.registry.grammar import parse_list

    return parse_list(method.label)


def _range(name: str, step: int, space: Any, now: Any, where: str) -> Range:
    """A declared space: `(low, high)`, `(low, high, "log")`, `("times", low, high)` of what it is now, `[choices]`.

    Raises:
        PluginError: it is none of these.
    """
    if isinstance(space, list) and space:
        return Range(name, step, choices=tuple(space))
    numbers = [part for part in space if isinstance(part, (int, float))] if isinstance(space, tuple) else []
    words = [part for part in space if isinstance(part, str)] if isinstance(space, tuple) else []
    if len(numbers) != 2 or words not in ([], ["log"], ["times"]) or not numbers[0] < numbers[1]:
        remedy = 'write (low, high), (low, high, "log"), ("times", low, high) or a list of choices'
        raise PluginError(f"{name}: {space!r} is no range", where=where, remedy=remedy)
    low, high = numbers
    if words == ["times"]:
        if not isinstance(now, (int, float)) or not now > 0:
            raise PluginError(f"{name}={now!r} cannot be multiplied", where=where, remedy="declare (low, high)")
        low, high = _short(now * low), _short(now * high)
    whole = isinstance(now, int) and not isinstance(now, bool)
    if whole:
        low, high = max(math.ceil(low), 1 if words else math.ceil(low)), math.floor(high)
    return Range(name, step, low, high, log=bool(words), whole=whole)


def _short(value: float) -> float:
    """Three figures: more would only be noise in tables and keys."""
    return float(f"{value:.3g}")


def search(task: Search) -> Tuned:
    """Try settings, and keep those whose held-out score is the highest; the earliest of equals."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    rows: list[dict[str, Any]] = [_trial(task, task.method)]
    methods = [task.method]
    while len(rows) < task.trials and task.ranges:
        trial = study.ask()
        found = [(each, each.suggest(trial)) for each in task.ranges]
        methods.append(_with(task.method, found))
        rows.append(_trial(task, methods[-1]))
        score = rows[-1]["score"]
        if score is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, score)
    best = max(range(len(rows)), key=lambda k: (-math.inf if rows[k]["score"] is None else rows[k]["score"], -k))
    return Tuned(methods[best], tuple(rows))


def _with(method: Method, values: Sequence[tuple[Range, Any]]) -> Method:
    steps = [
        Component(step.name, {**step.params, **{each.name: value for each, value in values if each.step == place}})
        for place, step in enumerate(method.steps)
    ]
    return replace(method, steps=tuple(steps))


def _trial(task: Search, method: Method) -> dict[str, Any]:
    """One cell, and its score."""
    folder = cell_folder(task.root, task.conditions, method, SEED, part=PART)
    record = run_cell(Cell(task.conditions, method, SEED, folder))
    cell = read_cell(folder)
    return {
        "suite": task.conditions.suite,
        "settings": [str(step) for step in method.steps],
        "score": None if cell.failed else _score(cell),
        "reason": cell.failed,
        "spent": record.get("spent", {}),
    }


def _score(cell: Done) -> float:
    """The mean of the leading score over the prompts."""
    values = cell.score(next(iter(cell.rows[0]["scores"]))).values()
    return sum(values) / len(values)


def check_tuning(suite: Suite, other: Suite | None) -> None:
    """Refuse what could not be tuned fairly, or at all, before any work.

    Args:
        suite: that methods are compared on.
        other: the suite to tune on, where it is another.

    Raises:
        ConfigError: Optuna is not installed, the suite has no prompts to spare, or the other one measures on prompts
            of its test by the same scores.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        what = "Optuna, which suggests settings, is not installed"
        raise ConfigError(what, where="tune", remedy='pip install "alignkit[compare]"') from None
    if other is None:
        if is_whole(suite) or suite.measure is not None or len(suite.prompts) < PARTS:
            raise ConfigError(
                "the suite has no prompts beside those that it measures on",
                where="tune",
                effect="Settings would be chosen by the test itself.",
                remedy="name another suite, or the same with another seed, to tune on (--tune-on SUITE)",
            )
        return
    test, measured = ({row["prompt_id"] for row in each.heldout} for each in (suite, other))
    if test & measured and scores_digest(suite) == scores_digest(other):
        raise ConfigError(
            f"the suite to tune on measures on {len(test & measured)} prompts of the test, by the same scores",
            where="tune",
            effect="Settings would be chosen by the test itself.",
            remedy="name a suite with other held-out prompts",
        )
