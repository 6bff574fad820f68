"""One cell: a method under one seed, a run of its own, whose training stages may spend what is left of the budget."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alignkit.budget import NAMES, ROUND
from alignkit.comparison.declared import GIVEN, START, Conditions, Method, is_whole, open_suite, slug, suite_digest
from alignkit.errors import AlignkitError, ConfigError
from alignkit.files import write_json
from alignkit.identity import digest
from alignkit.models import LoRA, model_digest
from alignkit.rewards import FunctionReward, Reward
from alignkit.run import Run
from alignkit.stages import SFT, EvaluationHandle, Improve, Improved, PolicyHandle, Stage, TrainReward
from alignkit.stages.comparisons import RankBy
from alignkit.suites import Suite
from alignkit.versions import versions

CELL = "cell.json"
"""In the folder of a cell: what it was and how it ended."""
FORMAT = 1
MOST = 100
"""Versions of a method that is repeated until its budget is spent, at most."""

H = TypeVar("H")


class BudgetSpent(AlignkitError):
    """Nothing is left for the next stage."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A method under one seed.

    Args:
        conditions: the same for all.
        method: which.
        seed: of its run.
        folder: of its run.
    """

    conditions: Conditions
    method: Method
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.method.label} s{self.seed}"


def cell_folder(root: Path, conditions: Conditions, method: Method, seed: int, part: str = "cells") -> Path:
    """Where a cell is kept: under other conditions somewhere else."""
    key = digest({"conditions": conditions.to_json(), "method": method.to_json()})[:8]
    return root / part / f"{slug(method.label)}-{key}" / f"s{seed}"


class CellRun(Run):
    """A run that hands each training stage what is left of a budget, and remembers the policies that were made.

    Args:
        folder, seed, max_tokens: see `Run`.
        budget: counts by name; empty for none.
        cut: whether the samples that the next version learns from are fewer than asked for, for want of budget.
    """

    def __init__(self, folder: Path, seed: int, budget: Mapping[str, float], max_tokens: int = 2048) -> None:
        super().__init__(folder, seed, quiet=True, max_tokens=max_tokens)
        self.budget = dict(budget)
        self.policies: list[PolicyHandle] = []
        self.cut = False

    def make(self, declared: Stage[H]) -> H:
        """As `Run.make`, within the budget.

        Raises:
            BudgetSpent: nothing is left for a stage that trains or samples.
        """
        limited = any(each.name == "budget" for each in dataclasses.fields(declared))
        if self.budget and limited and "evaluation" not in declared.makes:
            declared = dataclasses.replace(declared, budget=self._left(declared))  # type: ignore[call-arg]
        handle = super().make(declared)
        made = handle.policy if isinstance(handle, Improved) else handle
        if isinstance(made, PolicyHandle):
            self.policies.append(made)
        return handle

    def spent(self) -> dict[str, float]:
        """What the stages so far have spent, evaluations left out: they are the comparison's and not the method's."""
        total = dict.fromkeys(NAMES, 0.0)
        for stage in self.made:
            if "evaluation" not in stage.made:
                for name in NAMES:
                    total[name] += stage.spent(name)
        return total

    def left(self) -> dict[str, float]:
        """What is left of the budget, by name."""
        spent = self.spent()
        return {key: amount - spent[key] for key, amount in self.budget.items()}

    def _left(self, declared: Stage[Any]) -> dict[str, float]:
        left = self.left()
        gone = [key for key, amount in left.items() if amount <= 0]
        if [key for key in gone if key not in ROUND or self._draws(declared)]:
            raise BudgetSpent(
                f"the budget of {', '.join(gone)} is spent before {declared.name}",
                where=str(self.folder),
                remedy="a larger budget, or a method that spends less before it learns",
            )
        return {key: int(amount) for key, amount in left.items() if amount >= 1}

    def _draws(self, declared: Stage[Any]) -> bool:
        """Whether a stage may draw or judge; what only learns from rows as they are does not."""
        if isinstance(declared, Improve):
            samples = self.host.build("optimizer", declared.optimizer).samples_per_prompt
            return bool(samples) or declared.reward is not None or declared.annotator is not None
        return not isinstance(declared, (SFT, TrainReward))


def run_cell(cell: Cell) -> dict[str, Any]:
    """Make a cell, or find it; returns what it wrote to `CELL`. A fault is written down and stops nothing else."""
    try:
        found = _work(cell)
    except Exception as error:
        found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return note(cell, found)


def lost(cell: Cell, reason: str) -> dict[str, Any]:
    """Write down that a cell's process was killed."""
    return note(cell, {"status": "failed", "reason": reason})


def note(cell: Cell, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write down how a cell ended."""
    record = {
        "format": FORMAT,
        "conditions": cell.conditions.to_json(),
        "method": cell.method.to_json(),
        "seed": cell.seed,
        "versions": versions(),
        **found,
    }
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_json(cell.folder / CELL, record)
    return record


def _work(cell: Cell) -> dict[str, Any]:
    conditions = cell.conditions
    with CellRun(cell.folder, cell.seed, conditions.budget, conditions.max_tokens) as run:
        suite = open_suite(run.host, conditions.suite, conditions.tuning)
        lora = LoRA(r=conditions.lora) if conditions.lora else None
        v0: PolicyHandle = suite.start(run, conditions.policy or None, lora=lora, name="start")
        path: list[dict[str, Any]] = []
        if not cell.method.steps:
            path.append(_measured(run, suite, v0, v0, conditions, 0, START))
        elif cell.method.recipe:
            note = _recipe(run, cell.method.steps[0].name, cell.method.steps[0].params, conditions)
            path.append({**_measured(run, suite, run.policies[-1], v0, conditions, 1, "recipe"), "note": note})
        else:
            _chain(run, suite, v0, cell, path)
        return {
            "status": "complete",
            "reason": "",
            "suite": suite_digest(suite),
            "policy": model_digest(v0.model_folder),
            "whole": is_whole(suite),
            "hidden": suite.hidden,
            "spent": run.spent(),
            "stages": [stage.folder.name for stage in run.made],
            "path": path,
        }


def _chain(run: CellRun, suite: Suite, v0: PolicyHandle, cell: Cell, path: list[dict[str, Any]]) -> None:
    """One version after the other; `path` gets a row of each."""
    current, steps = v0, list(cell.method.steps)
    repeated = cell.conditions.repeat and cell.conditions.budget
    for number in range(1, max(MOST if repeated else 0, len(steps)) + 1):
        step = steps[(number - 1) % len(steps)]
        try:
            improved = _improve(run, suite, current, v0, step, cell.conditions, number)
        except BudgetSpent as spent:
            if not path:
                raise
            path[-1]["note"] = spent.what
            return
        current = improved.policy
        row = _measured(run, suite, current, v0, cell.conditions, number, str(step))
        path.append({**row, "stopped": "budget" if run.cut else improved.result.get("stopped", "")})
    if repeated:
        path[-1]["note"] = f"it was stopped after {len(path)} versions, and its budget is not spent"


def _improve(
    run: CellRun, suite: Suite, current: PolicyHandle, v0: PolicyHandle, step: Any, conditions: Conditions, number: int
) -> Improved:
    name, tokens = f"v{number}", conditions.max_new_tokens or suite.max_new_tokens
    method = run.host.build("optimizer", step)
    label, score = next(iter(suite.scores.items()))
    truth = score if isinstance(score, Reward) else FunctionReward(score, label)
    samples = bool(method.samples_per_prompt)
    judged = samples and suite.annotator is not None and "annotated" in method.prepare_arguments()
    return run.improve(
        current,
        _data(run, suite, current, step, truth, conditions, name, samples),
        optimizer=step,
        reward=truth if samples and not judged else None,
        annotator=suite.annotator if judged else None,
        sampler=conditions.sampler,
        reference=v0,
        max_new_tokens=tokens,
        iteration=number,
        name=name,
    )


def _data(
    run: CellRun,
    suite: Suite,
    current: PolicyHandle,
    step: Any,
    truth: Reward,
    conditions: Conditions,
    name: str,
    samples: bool,
) -> Any:
    """What a method learns from: the suite's own data, prompts where it samples, or samples ranked by the truth, as
    many as there are tokens and reward calls left for."""
    run.cut = False
    if suite.data is not None:
        return suite.data(run, current, step, f"{name}/data")
    if samples:
        return suite.prompts
    fitting = run.left().get("reward_calls", math.inf) // conditions.samples
    if not fitting:
        raise BudgetSpent(f"the budget of reward_calls pays for no prompt of {name}", where=str(run.folder))
    prompts = suite.prompts.select(range(int(fitting))) if fitting < len(suite.prompts) else suite.prompts
    drawn = run.sample(
        current,
        prompts,
        conditions.samples,
        temperature=conditions.temperature,
        max_new_tokens=conditions.max_new_tokens or suite.max_new_tokens,
        name=f"{name}/samples",
    )
    run.cut = len(prompts) < len(suite.prompts) or drawn.result.get("stopped") == "budget"
    return run.transform(drawn, RankBy(truth), name=f"{name}/comparisons")


def _recipe(run: CellRun, name: str, arguments: Mapping[str, Any], conditions: Conditions) -> str:
    """Run a recipe, from the policy and on the suite that are compared, where it takes them.

    Returns:
        What its budget stopped it at, or nothing where it came to its end.
    """
    main = run.host.resolve("recipe", name).object
    takes = list(inspect.signature(main).parameters)[1:]
    ours = {name: getattr(conditions, name) for name in GIVEN}
    note = ""
    try:
        main(run, **{key: value for key, value in ours.items() if key in takes} | dict(arguments))
    except BudgetSpent as spent:
        note = spent.what
    if len(run.policies) < 2:
        raise ConfigError(note or "it made no policy", where=f"recipe {name}")
    return note


def _measured(
    run: CellRun, suite: Suite, policy: PolicyHandle, v0: PolicyHandle, conditions: Conditions, number: int, label: str
) -> dict[str, Any]:
    """A version measured: a row of the cell's path."""
    spent, name = run.spent(), f"compared/v{number}"
    if suite.measure is not None:
        found: EvaluationHandle = suite.measure(run, policy, name=name, label=f"V{number}")
    else:
        found = run.evaluate(
            policy,
            suite.heldout,
            dict(suite.scores),
            n=conditions.answers,
            temperature=conditions.temperature,
            max_new_tokens=conditions.max_new_tokens or suite.max_new_tokens,
            reference=v0,
            label=f"V{number}",
            name=name,
        )
    return {"version": number, "by": label, "evaluation": found.path.name, "policy": policy.path.name, "spent": spent}
