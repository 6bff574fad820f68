"""`compare`: methods under the same conditions, from the question to the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.comparison.cell import Cell, cell_folder, lost, run_cell
from alignkit.comparison.declared import (
    START,
    Conditions,
    Method,
    budget_of,
    check_folder,
    open_suite,
    read_method,
    slug,
)
from alignkit.comparison.page import write_page
from alignkit.comparison.progress import Progress
from alignkit.comparison.results import Comparison, conclude, read_cell
from alignkit.comparison.tuning import Search, Tuned, check_tuning, ranges_of, search
from alignkit.comparison.workers import run_all
from alignkit.comparison.writing import write
from alignkit.data.problems import said_once
from alignkit.errors import ConfigError
from alignkit.fields import check_value
from alignkit.registry.grammar import Component, parse
from alignkit.registry.host import default_host
from alignkit.report.text import brief, number
from alignkit.suites import Suite


def compare(
    suite: str | Component,
    methods: Sequence[str | Component],
    *,
    seeds: int | Iterable[int] = 5,
    budget: str | Mapping[str, Any] | Sequence[str] | None = None,
    policy: str | None = None,
    tune: int = 0,
    tune_on: str | Component | None = None,
    processes: int = 1,
    run_dir: str | Path | None = None,
    lora: int = 0,
    temperature: float = 1.0,
    samples: int = 4,
    answers: int = 1,
    max_new_tokens: int | None = None,
    repeat: bool = False,
    max_tokens: int = 2048,
    sampler: str | Component = "default",
    threads: int = 1,
    quiet: bool = False,
) -> Comparison:
    """Compare methods on a suite: the same policy, budget, prompts and random numbers for all, several seeds of each.

    Each (method, seed) is a run of its own below `run_dir`. What is there already is not made again; what fails is
    shown as failed, and is tried again by the same call. One process or several make the same table.

    Args:
        suite: a registered suite, "NAME" or "NAME(key=value, …)".
        methods: each an optimizer, "NAME(key=value, …)"; several separated by commas, one version after the other; or
            a recipe.
        seeds: how many, or which.
        budget: what a method may spend, such as "generated_tokens=200k"; default the suite's.
        policy: what to start from; default the suite's.
        tune: trials of each method's own search space, on prompts that the comparison does not measure on; needs
            `alignkit[compare]`. The first takes the settings as they are; what is written with a method stays.
        tune_on: a suite to tune on; default a part of the prompts that the suite teaches.
        processes: cells at once.
        run_dir: where all is kept; default `runs/compare-` and the suite's name.
        lora: rank of the adapter that is trained; 0 trains all weights.
        temperature: of the held-out answers, and of a method's samples where it says nothing else.
        samples: responses per prompt for a method that samples nothing itself.
        answers: held-out answers per prompt.
        max_new_tokens: longest answer; default the suite's.
        repeat: a method that ends before its budget goes on from its own result, version after version.
        max_tokens: cells of a micro-batch: the memory of a step.
        sampler: a registered sampler, of the methods' samples.
        threads: of the processor for one cell.
        quiet: say nothing.

    Returns:
        What was found, also on disk: `comparison.json`, `.csv`, `.html`, and `scores.jsonl` with every prompt's score.

    Raises:
        ConfigError: no method, two of one label, no policy, a budget that is not counted.
        PluginError: a name that is not registered, or a hyper-parameter that is refused.
    """
    every = _seeds(seeds)
    numbers = {"processes": processes, "threads": threads, "tune": tune}
    if tune_on is not None and not tune:
        raise ConfigError(f"tune_on={tune_on} without tune", where="compare", remedy="say how many trials: tune=8")
    _check_arguments(methods, numbers, {"quiet": quiet, "policy": policy, "run_dir": run_dir})
    spec, host = str(suite), default_host()
    task = open_suite(host, spec)
    start, limits = _policy(task, policy, spec), budget_of(task.budget if budget is None else budget)
    same = (lora, temperature, samples, answers, repeat, max_new_tokens, max_tokens, str(sampler))
    conditions = Conditions(spec, start, limits, *same)
    root = Path(run_dir or f"runs/compare-{slug(spec)}")
    chosen = [read_method(host, text, task, temperature) for text in methods]
    _check(chosen)
    _check_samples(chosen, task, samples)
    host.build("sampler", parse(str(sampler)))  # a misspelled one is refused before any work
    check_folder(root)
    progress = Progress(quiet, processes)
    tuned: dict[str, Tuned] = {}
    if tune:
        tuned = _tuning(
            task, conditions, chosen, tune, None if tune_on is None else str(tune_on), root, progress, threads
        )
        chosen = [tuned[method.label].method if method.label in tuned else method for method in chosen]
    cells = [
        Cell(conditions, method, seed, cell_folder(root, conditions, method, seed))
        for seed in every
        for method in (Method(START, ()), *chosen)
    ]
    with progress.over(cells), said_once():
        run_all(run_cell, cells, processes, progress.watch, threads, lost)
    found = conclude(root, [read_cell(cell.folder) for cell in cells], {k: list(v.trials) for k, v in tuned.items()})
    write(found)
    write_page(found)
    return found


def _tuning(
    task: Suite,
    conditions: Conditions,
    methods: Sequence[Method],
    trials: int,
    tune_on: str | None,
    root: Path,
    progress: Progress,
    threads: int,
) -> dict[str, Tuned]:
    """The search of every method that is no recipe, by label."""
    check_tuning(task, None if tune_on is None else open_suite(default_host(), tune_on))
    trying = replace(conditions, suite=tune_on or conditions.suite, tuning=tune_on is None)
    own = [method for method in methods if not method.recipe]
    searches = [Search(root, trying, method, ranges_of(default_host(), method), trials) for method in own]
    return _tuned(searches, progress, progress.processes, threads)


def _tuned(searches: Sequence[Search], progress: Progress, processes: int, threads: int) -> dict[str, Tuned]:
    """What each method's search found, by label."""

    def watch(task: Search, what: str, found: Any) -> None:
        if what == "ended":
            trials = f"{len(found.trials)} trial{'s' * (len(found.trials) != 1)}"
            if found.failed:
                progress.say(f"{task.name}: {trials}, none came to its end: {brief(found.failed, 200)}")
                return
            best = max(row["score"] for row in found.trials if row["score"] is not None)
            progress.say(f"{task.name}: {trials}, best {number(best)}: {', '.join(map(str, found.method.steps))}")

    def killed(task: Search, reason: str) -> Tuned:
        settings = [str(step) for step in task.method.steps]
        row: dict[str, Any] = {
            "suite": task.conditions.suite,
            "settings": settings,
            "score": None,
            "reason": reason,
            "spent": {},
        }
        return Tuned(task.method, (row,))

    found = run_all(search, searches, processes, watch, threads, killed)
    return {task.method.label: each for task, each in zip(searches, found, strict=True)}


def _policy(suite: Suite, given: str | None, spec: str) -> str:
    if given:
        return given
    if suite.policy is not None:
        return suite.policy if isinstance(suite.policy, str) else ""
    raise ConfigError(
        "nothing says which policy to start from",
        where="compare",
        effect=f"The suite {spec} names none.",
        remedy='give policy="tiny", a folder, a hub name or "package:NAME"',
    )


def _seeds(given: Any) -> list[int]:
    """The seeds: so many, or those that are named, each once.

    Raises:
        ConfigError: none, or something that is no whole number.
    """
    counted = isinstance(given, int) and not isinstance(given, bool)
    if isinstance(given, str) or not (counted or isinstance(given, Iterable)):
        raise ConfigError(f"seeds={given!r}", where="compare", remedy="give how many, such as 5, or a list of them")
    every = list(range(given)) if counted else list(dict.fromkeys(given))
    for seed in every:
        check_value("a seed", seed, int, "compare")
    if not every:
        raise ConfigError("no seeds", where="compare", remedy="use 5")
    return every


def _check_arguments(methods: Any, numbers: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Refuse what is of another kind than it is declared as, before any work."""
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise ConfigError(f"methods={methods!r}", where="compare", remedy='give a list of them, such as ["NAME"]')
    for name, value in numbers.items():
        check_value(name, value, int, "compare")
        least = 0 if name == "tune" else 1
        if value < least:
            raise ConfigError(f"{name}={value}", where="compare", remedy=f"use {least} or more")
    for name, kind in (("quiet", "bool"), ("policy", "str | None"), ("run_dir", "str | Path | None")):
        check_value(name, others[name], kind, "compare")


def _check(methods: Sequence[Method]) -> None:
    labels: list[Any] = [method.label for method in methods]
    double = sorted({label for label in labels if labels.count(label) > 1})
    if not labels or double or START in labels:
        what = "no method" if not labels else f"two methods are called {(double or [START])[0]!r}"
        remedy = "name each method once" if labels else "name one or several, each an optimizer, a chain or a recipe"
        raise ConfigError(what, where="compare", remedy=remedy)


def _check_samples(methods: Sequence[Method], suite: Suite, samples: int) -> None:
    """Refuse a single response per prompt where a method compares responses that the suite does not bring."""
    for step in (step for method in methods if not method.recipe for step in method.steps):
        if samples < 2 and suite.data is None and not default_host().build("optimizer", step).samples_per_prompt:
            raise ConfigError(f"samples={samples}: {step.name} compares responses", where="compare", remedy="2 or more")
