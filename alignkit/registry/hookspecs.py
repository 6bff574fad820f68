"""The hooks a plugin may implement, and the marker it writes above them.

Every hook is historic: a plugin registered later, in a notebook, is asked as well. A hook receives `register`, to be
called once per component as `register(name, object)`; nothing is returned. Importing this module costs pluggy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("alignkit")
hookimpl = pluggy.HookimplMarker("alignkit")

Register = Callable[[str, Any], None]

# What a component is called in the singular (its kind) and the hook that brings it.
KINDS = {
    "loss": "register_losses",
    "sampler": "register_samplers",
    "optimizer": "register_optimizers",
    "reward": "register_rewards",
    "annotator": "register_annotators",
    "metric": "register_metrics",
    "transform": "register_transforms",
    "suite": "register_suites",
    "recipe": "register_recipes",
    "stage": "register_stages",
    "format": "register_formats",
}


@hookspec(historic=True)
def register_losses(register: Register) -> None:
    """Register losses: functions whose positional parameters name tensors of the vocabulary.

    Keyword-only parameters are the hyper-parameters. A loss returns unreduced values, one tensor or a dict of terms.

    Args:
        register: call it as `register("my_loss", my_loss)`.
    """


@hookspec(historic=True)
def register_samplers(register: Register) -> None:
    """Register samplers: frozen dataclasses derived from `alignkit.plugin.Sampler`.

    Args:
        register: call it as `register("my_sampler", MySampler)`.
    """


@hookspec(historic=True)
def register_optimizers(register: Register) -> None:
    """Register policy optimizers: frozen dataclasses derived from `alignkit.plugin.PolicyOptimizer`.

    Class attributes tell what it adds: `provides: ClassVar[Mapping[str, str]]` the tensors for losses, `logs:
    ClassVar[Mapping[str, MetricSpec]]` the numbers that it logs.

    Args:
        register: call it as `register("my_optimizer", MyOptimizer)`.
    """


@hookspec(historic=True)
def register_rewards(register: Register) -> None:
    """Register rewards: callables or classes that score each response on its own, or say "missing" with a reason.

    Args:
        register: call it as `register("my_reward", MyReward)`.
    """


@hookspec(historic=True)
def register_annotators(register: Register) -> None:
    """Register annotators: callables or classes that rank the responses of a group.

    Args:
        register: call it as `register("my_annotator", MyAnnotator)`.
    """


@hookspec(historic=True)
def register_metrics(register: Register) -> None:
    """Register metrics: classes derived from `alignkit.plugin.Metric`, whose `update` names what it is given.

    Args:
        register: call it as `register("my_metric", MyMetric)`.
    """


@hookspec(historic=True)
def register_transforms(register: Register) -> None:
    """Register transforms: callables or classes that map groups to groups.

    Args:
        register: call it as `register("my_transform", my_transform)`.
    """


@hookspec(historic=True)
def register_suites(register: Register) -> None:
    """Register benchmark suites: callables or classes that name policy, prompts, gold reward, budgets and metrics.

    Args:
        register: call it as `register("my_suite", MySuite)`.
    """


@hookspec(historic=True)
def register_recipes(register: Register) -> None:
    """Register recipes: functions whose first parameter is `run`; the others are their command line.

    Args:
        register: call it as `register("my_recipe", main)`.
    """


@hookspec(historic=True)
def register_stages(register: Register) -> None:
    """Register stages: frozen dataclasses derived from `alignkit.plugin.Stage`, which `run.stage("my_stage", …)` makes.

    Args:
        register: call it as `register("my_stage", MyStage)`.
    """


@hookspec(historic=True)
def register_formats(register: Register) -> None:
    """Register formats of data files: `alignkit.plugin.RowFormat`s, by which rows are recognised and read.

    Their names stand in the distribution's metadata too, under the entry points of "alignkit.formats": reading a file
    then imports no other plugin.

    Args:
        register: call it as `register("my_format", MY_FORMAT)`.
    """
