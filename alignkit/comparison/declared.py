"""What is compared: the conditions that are the same for all, and the methods."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from alignkit.budget import Budget
from alignkit.calls import calling
from alignkit.errors import ConfigError, PluginError, did_you_mean
from alignkit.fields import check_values
from alignkit.identity import digest, plain
from alignkit.optimizers import check_not_negative, check_positive
from alignkit.registry.grammar import Component, parse, parse_list
from alignkit.registry.host import PluginHost
from alignkit.suites import Suite

PARTS = 4
"""Of the prompts that a suite teaches, one in so many is measured on while settings are tried."""

START = "start"
"""The label of the policy that all methods start from."""
GIVEN = ("policy", "suite", "lora")
"""What a recipe gets of a comparison, where it has such arguments."""


@dataclass(frozen=True)
class Conditions:
    """What is the same for every method.

    Args:
        suite: a registered suite, in the grammar.
        policy: what to start from; "" where the suite brings it.
        budget: what a method may spend: counts by name; empty leaves each method its own end.
        lora: rank of the adapter that is trained; 0 trains all weights.
        temperature: of the held-out answers, and of a method's samples where it says nothing else.
        samples: responses per prompt for a method that samples nothing itself.
        answers: held-out answers per prompt.
        repeat: whether a method that ends before its budget goes on from its own result.
        max_new_tokens: longest answer; None: the suite's.
        max_tokens: cells of a micro-batch.
        sampler: of the methods' samples.
        tuning: whether settings are tried: on a part of the prompts that the suite teaches, measured on the rest.
    """

    suite: str
    policy: str
    budget: Mapping[str, int] = field(default_factory=dict)
    lora: int = 0
    temperature: float = 1.0
    samples: int = 4
    answers: int = 1
    repeat: bool = False
    max_new_tokens: int | None = None
    max_tokens: int = 2048
    sampler: str = "default"
    tuning: bool = False

    def __post_init__(self) -> None:
        check_values(self)
        check_positive(self, "temperature", "samples", "answers", "max_tokens")
        check_not_negative(self, "lora")
        if self.max_new_tokens is not None:
            check_positive(self, "max_new_tokens")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "budget": dict(sorted(self.budget.items()))}


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Args:
        label: what it is called in tables; as it was written.
        steps: the optimizers of its versions; one, the recipe, where it is a recipe; none for the start.
        recipe: whether it is a recipe.
    """

    label: str
    steps: tuple[Component, ...]
    recipe: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"label": self.label, "steps": [str(step) for step in self.steps], "recipe": self.recipe}


def read_method(host: PluginHost, text: str | Component, suite: Suite, temperature: float) -> Method:
    """A method as it is written, with the settings that the suite's author found where it gives none.

    Args:
        host: the plugins.
        text: one optimizer, several separated by commas, or a recipe.
        suite: whose settings are taken.
        temperature: of sampling, for optimizers that have such a field.

    Raises:
        PluginError: nothing has the name, or a hyper-parameter is refused.
        ConfigError: a recipe among several steps.
    """
    label = str(text)
    steps = parse_list(label)
    if recipes := [step for step in steps if _is_recipe(host, step)]:
        if len(steps) > 1:
            remedy = "name it as a method of its own, and optimizers alone between commas"
            raise ConfigError(
                f"{recipes[0].name} is a recipe among several steps", where=f"method {label}", remedy=remedy
            )
        _check_recipe(host, steps[0])
        return Method(label, tuple(steps), recipe=True)
    settled = tuple(_settled(host, step, suite, temperature) for step in steps)
    for step in settled:
        host.build("optimizer", step)  # a misspelled one is refused before any work
    return Method(label, settled)


def _check_recipe(host: PluginHost, step: Component) -> None:
    """Refuse an argument that the recipe does not take, before any work.

    Raises:
        PluginError: an argument that is unknown, missing or of another type.
    """
    taken = host.resolve("recipe", step).hyperparameters
    ours = {name: "" for name in GIVEN if name in taken and taken[name].required}
    host.build("recipe", Component(step.name, {**ours, **step.params}))


def _is_recipe(host: PluginHost, step: Component) -> bool:
    """Whether a name is a recipe's and no optimizer's.

    Raises:
        PluginError: it is neither's.
    """
    named = {
        kind: {name for record in host.components(kind) for name in (record.name, record.qualified)}
        for kind in ("optimizer", "recipe")
    }
    if step.name in named["optimizer"]:
        return False
    if step.name in named["recipe"]:
        return True
    try:
        host.resolve("optimizer", step)  # it knows which distribution would bring it, and the nearest name
    except PluginError as error:
        near = did_you_mean(step.name, named["recipe"])
        raise PluginError(f"{error.what}, and no recipe is{near}", where=error.where, remedy=error.remedy) from error
    return False


def _settled(host: PluginHost, step: Component, suite: Suite, temperature: float) -> Component:
    record = host.resolve("optimizer", step)
    usual = {"temperature": temperature} if "temperature" in record.hyperparameters else {}
    found = suite.settings.get(record.name, {})
    return Component(step.name, {**usual, **found, **step.params})


def open_suite(host: PluginHost, spec: str, tuning: bool = False) -> Suite:
    """A suite by its registered name.

    Args:
        host: the plugins.
        spec: in the grammar.
        tuning: every fourth of the prompts that it teaches is measured on, in place of those that it keeps back; a
            suite that has no others, or that measures in its own way, stays as it is.

    Raises:
        PluginError: no suite has the name, or it is faulty.
    """
    made = host.build("suite", parse(spec))
    with calling(made, "", f"suite {spec}"):
        built = made()
    if not isinstance(built, Suite):
        raise PluginError(f"gave a {type(built).__name__} and no Suite", where=f"suite {spec}")
    return _tuning_part(built) if tuning and not is_whole(built) else built


def is_whole(suite: Suite) -> bool:
    """Whether it measures on the prompts that it teaches: they are then the whole problem, and stand for no others."""
    return {row["prompt_id"] for row in suite.heldout} <= {row["prompt_id"] for row in suite.prompts}


def _tuning_part(suite: Suite) -> Suite:
    if suite.measure is not None:
        return suite
    measured = range(PARTS - 1, len(suite.prompts), PARTS)
    taught = [place for place in range(len(suite.prompts)) if place not in measured]
    return replace(suite, prompts=suite.prompts.select(taught), heldout=suite.prompts.select(measured))


def suite_digest(suite: Suite) -> str:
    """What a suite asks and how it scores, as a digest: cells of other ones are not comparable.

    The code of libraries is left out: their versions stand beside it, and one may be installed in several ways.
    """
    named = {"prompts": suite.prompts, "heldout": suite.heldout, "max_new_tokens": suite.max_new_tokens}
    return digest({**plain(named), "scores": scores_digest(suite)})[:16]


def scores_digest(suite: Suite) -> str:
    """How a suite scores, as a digest."""
    return digest(_own_code(plain(dict(suite.scores))))


def _own_code(form: Any) -> Any:
    """A plain form without the digests of installed distributions."""
    if isinstance(form, dict):
        return {name: _own_code(value) for name, value in form.items() if not str(name).startswith("library ")}
    return [_own_code(value) for value in form] if isinstance(form, list) else form


def budget_of(given: Any) -> dict[str, int]:
    """A budget as `Budget.of` takes it, or several texts, as counts by name.

    Raises:
        ConfigError: what is counted is not known, or an amount is not above zero.
    """
    if isinstance(given, (list, tuple)):
        given = ",".join(map(str, given)) or None
    return Budget.of(given).to_json()


def slug(text: str) -> str:
    """A label as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:40] or "method"


def check_folder(root: Path) -> None:
    """Refuse a place where no folder can be made, before any work.

    Raises:
        ConfigError: a file stands there, or above it.
    """
    if file := next((path for path in (root, *root.parents) if path.is_file()), None):
        raise ConfigError(f"{file} is a file", where="run_dir", remedy="name a folder, or a place where none is yet")
