"""Recipes: pipelines with a name and arguments, run from Python or from the command line, and what they share."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import logging
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from alignkit.calls import calling, never_exits
from alignkit.errors import ConfigError, PluginError, nearest, suggestion
from alignkit.files import is_folder_name
from alignkit.groups import Groups
from alignkit.registry.checks import check_component
from alignkit.registry.host import default_host
from alignkit.run.plan import Planned
from alignkit.run.run import Run
from alignkit.stages.handles import EvaluationHandle, PolicyHandle
from alignkit.trainer import AUTO, LOGGERS

RUN_OPTIONS = ("run_dir", "seed", "plan", "precision", "trainer", "logger", "quiet")
"""Arguments of every recipe, which its own cannot be called; nor can they be called "config"."""


@dataclass(frozen=True)
class Recipe:
    """A pipeline.

    Args:
        name: under which its runs are kept where no folder is given.
        main: called with the run and the recipe's arguments.
        registered: by a plugin: its stages may be planned before it runs, to show them. A file's `main` is called once.
    """

    name: str
    main: Callable[..., Any]
    registered: bool = False

    @property
    def parameters(self) -> list[str]:
        """The names of its arguments, the run left out."""
        return list(inspect.signature(self.main).parameters)[1:]


def run_recipe(
    recipe: str | Path | Recipe,
    /,
    *,
    run_dir: str | Path | None = None,
    seed: int = 0,
    plan: bool = False,
    precision: str | int = AUTO,
    trainer: Mapping[str, Any] | None = None,
    logger: Any = None,
    quiet: bool = False,
    config: str | None = None,
    **arguments: Any,
) -> Run:
    """Run a recipe to its end, as `alignkit run` does.

    Args:
        recipe: a registered name, a Python file with a `main(run, …)`, or what `load_recipe` found.
        run_dir: where the run is kept; default `runs/` and the recipe's name.
        seed, plan, precision, trainer, logger, quiet: see `Run`.
        config: all of these as a file that `alignkit run RECIPE --config FILE` takes; it is kept in the run's folder.
        arguments: of the recipe's `main`, as Python values.

    Returns:
        The run, closed: its `folder`, and with `plan` its `plan_table()`.

    Raises:
        ConfigError: the recipe takes no such argument, or one is missing; or as `load_recipe`.
        PluginError: it called `sys.exit`.
    """
    found = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    _check_arguments(found, arguments)
    folder = Path(run_dir or f"runs/{found.name}")
    shown = {} if logger is None else {"logger": logger}
    run = Run(folder, seed=seed, plan=plan, precision=precision, trainer=trainer or None, quiet=quiet, **shown)
    if config is not None:
        run.keep_config(config)
    with run, never_exits(f"recipe {found.name}"):  # on leaving it records how the run ended
        if found.registered and run.console.draws and run.world == 1:
            run.console.expect(_ahead(found, run, arguments))
        found.main(run, **arguments)
    return run


def _ahead(recipe: Recipe, run: Run, arguments: Mapping[str, Any]) -> list[Planned]:
    """The stages that the recipe will ask for, as far as a plan comes: only what is shown depends on it.

    What the plan says or warns of, the run itself says again.
    """
    planned = Run(run.folder, run.seed, plan=True, precision=run.precision, trainer=run.trainer, quiet=True)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recipe.main(planned, **arguments)
    except (Exception, SystemExit) as error:  # the run meets it in its turn, and explains it
        logging.getLogger("alignkit").debug("planned as far as %d stages: %s", len(planned.planned), error)
    finally:
        logging.disable(before)
    return planned.planned


def load_recipe(recipe: str | Path, *, to_show: bool = False) -> Recipe:
    """A recipe by its registered name, or from a Python file with a `main(run, …)`.

    Args:
        recipe: which.
        to_show: only its arguments are asked for: no plugin is imported that has no part in them.

    Raises:
        ConfigError: there is no such file, or it defines no `main`.
        PluginError: no recipe has the name, or it is faulty: what the file raised is named with its line.
    """
    path = Path(recipe)
    if path.suffix == ".py" or path.is_file():
        found = _from_file(path, to_show)
    else:
        host = default_host()
        record = (host.named_recipe(str(recipe)) if to_show else None) or host.resolve("recipe", str(recipe))
        found = Recipe(record.name, record.object, registered=True)
    if taken := set(found.parameters) & {*RUN_OPTIONS, "config"}:
        raise PluginError(
            f"{', '.join(sorted(taken))} is an option of every run",
            where=f"recipe {found.name}",
            remedy="use what `run` carries, or rename the parameter",
        )
    return found


def parse_arguments(recipe: Recipe, words: Sequence[str]) -> dict[str, Any]:
    """Flags as they are typed, as the keyword arguments of `run_recipe`; `--help` prints them and exits.

    Raises:
        ConfigError: a flag that is not known, or a value of another type.
    """
    from jsonargparse import ArgumentError

    refuse_aliases(words)
    parser = _parser(recipe)
    _, *parameters = inspect.signature(recipe.main).parameters
    try:
        parsed = parser.parse_args([_as_parameter(word, parameters) for word in words])
        values = parser.instantiate(parsed)
    except ArgumentError as error:
        raise _argument_error(str(error), recipe) from error
    options = {key: values[key] for key in (*RUN_OPTIONS, *parameters) if key in values}
    return options | {"config": parser.dump(parsed, skip_none=False)}


def refuse_aliases(words: Sequence[str]) -> None:
    """Refuse files of arguments in which one value stands for another: a few lines of such can be gigabytes.

    Raises:
        ConfigError: naming the file.
    """
    files = [value for word, value in itertools.pairwise(words) if word == "--config"]
    files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    for file in (Path(each) for each in files if Path(each).is_file()):
        from yaml import AliasToken, YAMLError, scan

        with contextlib.suppress(YAMLError):  # what is no YAML the parser says in its own words
            if any(isinstance(token, AliasToken) for token in scan(file.read_text(encoding="utf-8"))):
                raise ConfigError(
                    "refers to values by aliases (*name)", where=str(file), remedy="write each value where it belongs"
                )


def _parser(recipe: Recipe) -> Any:
    """What reads the flags of a recipe, or a file of them."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"alignkit run {recipe.name}", exit_on_error=False)
    settings = dict[str, int | float | bool | str | list | dict | None]  # type: ignore[type-arg]
    file = "a YAML or JSON file of these arguments; flags after it count more. The run keeps its own as config.yaml"
    parser.add_argument("--config", action="config", help=file)
    parser.add_argument("--run-dir", type=str, default=f"runs/{recipe.name}", help="where the run is kept")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same run")
    parser.add_argument("--plan", action="store_true", help="show stages, tokens, memory and time, and stop")
    precision = "as Lightning names it; auto: bf16-mixed where it is native, else 32-true"
    parser.add_argument("--precision", type=str, default=AUTO, help=precision)
    parser.add_argument("--quiet", action="store_true", help="say nothing but warnings and errors")
    parser.add_argument("--trainer", type=settings, default={}, help="--trainer.KEY VALUE goes to Lightning's Trainer")
    shown = f"show training in {', '.join(LOGGERS)} (several: with commas) as well"
    parser.add_argument("--logger", type=str | None, default=None, help=shown)
    run, *_ = inspect.signature(recipe.main).parameters
    parser.add_function_arguments(recipe.main, skip={run}, fail_untyped=False)
    return parser


def evaluate_versions(
    run: Run,
    versions: Mapping[str, PolicyHandle],
    heldout: Groups,
    scores: Mapping[str, Any],
    *,
    names: Sequence[str] = (),
    **evaluation: Any,
) -> list[EvaluationHandle]:
    """Every version on the same held-out prompts, each paired with the first.

    Args:
        run: in which `NAME/heldout` is made for each.
        versions: by label, such as "V0".
        heldout: the prompts.
        scores: see `Run.evaluate`.
        names: of the stages; default the labels in lower case.
        evaluation: further arguments of `Run.evaluate`.
    """
    named = list(zip(versions.items(), names or [label.lower() for label in versions], strict=True))
    return [
        run.evaluate(version, heldout, scores, label=label, name=f"{name}/heldout", **evaluation)
        for (label, version), name in named
    ]


def _from_file(path: Path, to_show: bool) -> Recipe:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", where="recipe")
    if not is_folder_name(path.stem):
        what = f"its name, {path.name!r}, is no name for a run's folder"
        raise ConfigError(what, where=str(path.parent), remedy="rename the file: words, digits and hyphens")
    module = _imported(path)
    if not callable(getattr(module, "main", None)):
        raise ConfigError("it defines no main(run, …)", where=str(path))
    if to_show:
        return Recipe(path.stem, check_component("recipe", "main", module.main).object)
    host = default_host()
    host.register(module, path.stem)  # a file may carry hooks of its own: a method tried before it is packaged
    return Recipe(path.stem, host.resolve("recipe", module.main).object)


def _imported(path: Path) -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(f"alignkit_recipe_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError("not a Python file", where=str(path))
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        sys.path.insert(0, beside)  # as `python FILE` would
    with calling(path.resolve(), ""):
        spec.loader.exec_module(module)
    return module


def _check_arguments(recipe: Recipe, arguments: Mapping[str, Any]) -> None:
    try:
        inspect.signature(recipe.main).bind(None, **arguments)
    except TypeError as error:
        unknown = [name for name in arguments if name not in recipe.parameters]
        remedy = suggestion(unknown[0], recipe.parameters) if unknown else "give it"
        raise ConfigError(str(error), where=f"recipe {recipe.name}", remedy=remedy) from None


def _as_parameter(text: str, parameters: Sequence[str]) -> str:
    """A flag of the recipe written with dashes, as the parameter is spelled; any other argument as it is."""
    flag, equals, value = text.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    return f"--{name}{equals}{value}" if flag.startswith("--") and name.split(".")[0] in parameters else text


def _argument_error(text: str, recipe: Recipe) -> ConfigError:
    """The parser's complaint in one line, with the likely spelling of a flag that it does not know."""
    wrong = re.search(r"unrecognized arguments: --([\w.-]+)", text)
    flags = [*recipe.parameters, *(option.replace("_", "-") for option in RUN_OPTIONS)]
    near = nearest(wrong[1], flags) if wrong else None
    message = " ".join(text.split()) + (f"; did you mean --{near}?" if near else "")
    where = f"alignkit run {recipe.name}"
    return ConfigError(message, where=where, remedy=f"{where} --help lists the arguments")
