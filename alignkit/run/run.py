"""`Run`: a durable pipeline. Each verb is a stage with a folder of its own, found again by the digest of what made
it."""

from __future__ import annotations

import os
import shutil
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from alignkit import processes, stages
from alignkit.calls import never_exits
from alignkit.data.problems import folded
from alignkit.errors import AlignkitError, ConfigError
from alignkit.fields import check_value
from alignkit.files import write_text
from alignkit.hidden import command, listed, shown
from alignkit.identity import (
    class_code,
    component_code,
    difference,
    digest,
    distribution_key,
    object_key,
    plain,
    remember_sources,
    required_plugins,
)
from alignkit.kept_answers import keeping_answers
from alignkit.meter import Meter, PeakMemory
from alignkit.registry.checks import check_component
from alignkit.registry.host import PluginHost, default_host
from alignkit.run import plan as planning
from alignkit.run.console import Console
from alignkit.run.store import Store, now
from alignkit.run_folder import ANSWERS, CONFIG, FORMAT, LOGS, StageRecord
from alignkit.stages import Context, EvaluationHandle, Made, Place, Stage
from alignkit.stages.card import lineage
from alignkit.stages.results import small_results
from alignkit.stages.verbs import verb
from alignkit.trainer import check_trainer, chosen_precision
from alignkit.versions import versions

HARMLESS = ("logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler")
"""Trainer arguments that change what is shown, and no result."""

H = TypeVar("H")

_OPEN: weakref.WeakValueDictionary[Path, Run] = weakref.WeakValueDictionary()
"""The runs of this process that may make stages, by folder."""


class Run:
    """A pipeline in a folder.

    Running the same script again skips the stages that are there; a changed argument makes a new stage, says what
    changed, and keeps the old one. A second `Run` of a process in the same folder (a notebook's cell that is run again)
    takes the place of the first, which makes no further stage.

    Args:
        folder: of the run.
        seed: from which every random number is derived.
        plan: only say what would be done.
        precision: as Lightning names it, or "auto": "bf16-mixed" where the processor or GPU computes bfloat16 natively,
            "32-true" elsewhere (the variable ALIGNKIT_PRECISION decides for it); keys and records have the word that it
            came to. The default of recipes is "auto", of a `Run` in a script float32, so that its numbers are the same
            on any machine. "bf16-true" and "64-true" are also the dtype that models load in; adapters, score and value
            heads, and the optimizer's copy of the weights, are float32 at least. "16-true" samples, scores and
            evaluates, and does not train.
        trainer: further arguments of `lightning.Trainer` (accelerator, devices, strategy, logger, callbacks …).
        max_tokens: cells of one micro-batch: the memory of a step.
        logger: where training is shown as well: "tensorboard", "csv", "wandb", "mlflow", several of them, or loggers of
            Lightning's. Those that write files write into the run's folder `logs`; one that fails ends nothing.
        host: the plugins; default all that are installed.
        quiet: say nothing.

    Raises:
        ConfigError: a trainer argument that is alignkit's own, a logger that is not installed, a precision that is none
            or cannot train, no room for a token; in several processes a strategy that shards the model, or that deals
            nothing out.
        AlignkitError: another process is at work in the folder, or a stage of another `Run` of this one.
    """

    def __init__(
        self,
        folder: str | Path,
        seed: int = 0,
        *,
        plan: bool = False,
        precision: str | int = "32-true",
        trainer: Mapping[str, Any] | None = None,
        max_tokens: int = 2048,
        logger: Any = None,
        host: PluginHost | None = None,
        quiet: bool = False,
    ) -> None:
        _check_arguments(folder=folder, seed=seed, plan=plan, quiet=quiet, trainer=trainer, host=host)
        self.folder, self.seed = Path(folder), seed
        self.trainer = dict(trainer or {}) | ({} if logger is None else {"logger": logger})
        check_trainer(self.trainer)
        self.precision, why = chosen_precision(precision, self.trainer)
        remember_sources()
        # As they are set up: a callback that counts is another one after the first stage.
        self._devices = {k: object_key(v) for k, v in self.trainer.items() if k not in HARMLESS}
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            what = f"max_tokens={max_tokens!r} must be a positive whole number"
            raise ConfigError(what, where="Run", remedy="it is the cells of one micro-batch: 2048, say")
        self.max_tokens = max_tokens
        self.planning, self.planned = plan, list[planning.Planned]()
        self.host = host or default_host()
        self.rank, self.world = processes.here()
        bars = bool(self.trainer.get("enable_progress_bar"))  # Lightning's own, which would be drawn over
        self.console = Console(quiet or self.rank > 0, live=not bars and not plan)
        self.store, self._where = Store(self.folder), self.folder.resolve()
        self.made: list[StageRecord] = []
        self._names: set[str] = set()
        self._created = now()
        self._first_evaluation: EvaluationHandle | None = None
        self._reported = self._replaced = False
        self._making: str | None = None
        if self.world == 1 and str(self.trainer.get("devices", 1)) not in ("1", "auto", "[0]"):
            raise ConfigError(
                f"devices={self.trainer['devices']} in a run of one process",
                where="Run",
                remedy="start the script with torchrun --nproc-per-node=N",
            )
        processes.refuse_alone(self.trainer, self.world)
        processes.refuse_sharded(self.trainer, self.world)
        if not plan:
            self._take_the_place()
        processes.join_processes(self.world)
        if why:  # on machines that differ the first one's word holds
            self.precision = processes.first(self.precision, self.world)
            self._say_precision(why)

    # -- the verbs: the arguments of each are the fields of its stage --------------------------------------------------

    policy = verb(stages.ImportPolicy)
    sft = verb(stages.SFT)
    sample = verb(stages.Sample)
    annotate = verb(stages.Annotate)
    train_reward = verb(stages.TrainReward)
    reward_model = verb(stages.ImportRewardModel)
    improve = verb(stages.Improve)
    transform = verb(stages.Transform)
    score = verb(stages.Score)
    evaluate = verb(stages.Evaluate)
    groups = verb(stages.KeepGroups)
    export = verb(stages.Export)

    def stage(self, kind: str | Stage[Any], /, *args: Any, **kwargs: Any) -> Any:
        """Make a stage by its registered name, such as a plugin's, or one that is declared already.

        Args:
            kind: the registered name; or the stage itself, which then takes no further arguments.
            args: its first fields.
            kwargs: its other fields.

        Raises:
            PluginError: no stage is registered under the name.
            ConfigError: it does not take those arguments.
        """
        if isinstance(kind, Stage):
            if args or kwargs:
                what = f"further arguments for a stage that is declared already: {sorted(kwargs) or args}"
                raise ConfigError(what, where=kind.name, remedy="give them where it is declared")
            return self.make(kind)
        record = self.host.resolve("stage", kind)
        try:
            declared = record.object(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(str(error), where=f"stage {record.qualified}", remedy=record.signature) from error
        return self.make(declared)

    def report(self) -> Path | None:
        """Write report.html; returns where."""
        if self.planning or self.rank:
            return None
        self._refuse_replaced()
        from alignkit.report import version_table, write_report

        self._write_run("running")
        self._reported = True
        path = write_report(self.folder)
        self.console.say(f"report:\n\n{version_table(self.folder)}\nPage: {path}")
        return path

    def keep_config(self, text: str) -> None:
        """Keep what the run was started with in its folder.

        Args:
            text: YAML that `alignkit run RECIPE --config FILE` takes; secrets in it are written as `***`.
        """
        if not self.planning and self.rank == 0:
            write_text(self.folder / CONFIG, listed(text))

    # -- the end -------------------------------------------------------------------------------------------------------

    def plan_table(self) -> str:
        """The plan as text."""
        return planning.table(self.planned, self.precision)

    def close(self, status: str = "complete") -> None:
        """Record that the script came to its end, and let others work in the folder."""
        if _OPEN.get(self._where) is self:
            del _OPEN[self._where]
        if lower := sys.modules.get("alignkit.models.lower"):
            lower.forget()
        if self.planning or self.rank or self._replaced:
            return
        self._write_run(status)
        self.store.unlock()
        if self._reported:  # once more, now that it can say how the run ended
            from alignkit.report import write_report

            write_report(self.folder)

    def _say_precision(self, why: str) -> None:
        """What "auto" came to; and, where the run was elsewhere before, what that means for its stages."""
        self.console.say(f"precision {self.precision}: {why}")
        latest = self.store.latest()
        before = latest.identity.get("precision") if latest else None
        if before and before != self.precision:
            self.console.say(
                f"the stages in {self.folder} were made in {before}, and are made anew; to go on with them: "
                f"--precision {before}, or Run(precision={before!r})"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("complete" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed")

    @property
    def device(self) -> Any:
        """Where models run that Lightning does not place: this process's CUDA device, unless the CPU is asked for."""
        import torch

        if self.trainer.get("accelerator") == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))

    # -- who may write -------------------------------------------------------------------------------------------------

    def _take_the_place(self) -> None:
        """Become the one Run of this process that makes stages in the folder, and this the one process.

        Raises:
            AlignkitError: another one is making a stage.
        """
        before = _OPEN.get(self._where)
        if before is self:
            return
        if before is not None:
            if before._making:
                raise AlignkitError(
                    f"another Run of this process is making the stage {before._making!r}",
                    where=str(self.folder),
                    remedy="wait for it, end it, or use another folder",
                )
            before._replaced = True
            before.store.unlock()
        if self.rank == 0:
            self.store.lock()
        _OPEN[self._where] = self

    def _refuse_replaced(self) -> None:
        if self._replaced or (not self.planning and _OPEN.get(self._where, self) is not self):
            raise AlignkitError(
                "a newer Run of this process has taken the place of this one",
                where=str(self.folder),
                effect="Two would write over each other's record.",
                remedy="use the newer one; close() ends a Run before the next begins",
            )

    # -- stages --------------------------------------------------------------------------------------------------------

    def make(self, declared: Stage[H]) -> H:
        """Find a declared stage or make it; while planning, only note it.

        Args:
            declared: the stage.

        Raises:
            ConfigError: a second stage of that name, or arguments that contradict each other.
            AlignkitError: another Run has taken the place of this one.
            PluginError: something that it called called `sys.exit`.
        """
        self._refuse_replaced()
        if not self.planning:
            self._take_the_place()  # again, where it was closed
        with never_exits(f"{getattr(declared, 'name', '')} ({getattr(declared, 'verb', '')})"):
            return self._found_or_made(declared)

    def _found_or_made(self, declared: Stage[H]) -> H:
        if not isinstance(declared, Stage) or not declared.name:
            what = f"a {type(declared).__name__} is no stage, or has no name"
            raise ConfigError(what, where="Run.make", remedy="its __post_init__ must call super().__post_init__()")
        if declared.name in self._names:
            what = f"two stages are named {declared.name!r}"
            remedy = "give each call its own name=; to make one again in this process, make the Run again first"
            raise ConfigError(what, where=declared.verb, remedy=remedy)
        check_component("stage", declared.verb or "stage", type(declared))
        context = Context(self.host, self._first_evaluation)
        stage = declared.resolved(context)
        if self.precision == "16-true" and stage.cost().trainable:
            raise ConfigError(
                "16-true does not train",
                where=stage.name,
                effect="In float16 most gradients of a language model are below the smallest number.",
                remedy='use precision="bf16-true", or "32-true" where the device has no bfloat16',
            )
        identity = self.identity(stage, context)
        key = processes.first(digest(identity), self.world)  # a global of the user's may differ from process to process
        found = self.store.find(key)
        if self.planning:
            changed = self._changed(stage, identity, found)
            self.planned.append(planning.Planned(stage.name, stage.verb, found is not None, stage.cost(), changed))
        elif processes.first(found is not None, self.world):
            assert found is not None
            self.console.ended(found.name, stage.verb, found.seconds or 0.0, found.result)
            self._note(found, f"done already ({found.seconds or 0:.0f} s saved)")
        else:
            for line in self._changed(stage, identity, None):
                self.console.say(f"{stage.name}: changed {line}")
            found = self._make(stage, key, identity)
        self._names.add(stage.name)  # an interrupted stage may be asked for again
        handle = stage.handle(self._made(stage, found))
        if isinstance(handle, EvaluationHandle):
            self._first_evaluation = self._first_evaluation or handle
        return handle

    def identity(self, stage: Stage[Any], context: Context) -> dict[str, Any]:
        """Everything that can change a stage's result.

        Args:
            stage: resolved.
            context: against which it was.
        """
        config, inputs = stage.counted(context)
        return {
            "format": FORMAT,
            "verb": stage.verb,
            "name": stage.name,
            "stage": class_code(type(stage)),
            "config": config,
            "inputs": inputs,
            "named": [[record.kind, record.qualified, plain(built)] for record, built in context.named],
            "seed": self.seed,
            "precision": self.precision,
            "devices": self._devices | ({"world": str(self.world)} if self.world > 1 else {}),
            "max_tokens": self.max_tokens,
            "code": self._code(context),
        }

    def _code(self, context: Context) -> dict[str, Any]:
        """The code of the core, of the distributions that bring what is used, and of the plugins that these require."""
        code: dict[str, Any] = {}
        distributions = {record.distribution for record in context.records()}
        needed = {other for name in distributions for other in required_plugins(name)}
        for name in sorted({"alignkit", *distributions, *needed}):
            code |= {k if k != "source" else f"{name} source": v for k, v in distribution_key(name).items()}
        for record in context.records():
            found = component_code(record.object)  # of one registered by hand
            code |= {f"{record.kind} {record.qualified}": found} if found else {}
        return code

    def _changed(self, stage: Stage[Any], identity: Mapping[str, Any], found: StageRecord | None) -> list[str]:
        before = None if found else self.store.latest_of(stage.name, stage.verb)
        return difference(before.identity, identity) if before else []

    def _made(self, stage: Stage[Any], found: StageRecord | None) -> Made:
        key, folder, result = (found.key, found.folder, found.result) if found else (f"planned:{stage.name}", None, {})
        return Made(key, stage.name, folder, result, self.max_tokens, self.precision, str(self.device))

    def _place(self, stage: Stage[Any], folder: Path) -> Place:
        return Place(
            folder=folder,
            name=stage.name,
            seed=self.seed,
            precision=self.precision,
            max_tokens=self.max_tokens,
            trainer=self.trainer,
            host=self.host,
            find_device=lambda: self.device,
            rank=self.rank,
            world=self.world,
            say=lambda text: self.console.say(f"{stage.name}: {text}"),
            tick=lambda advance: self.console.tick(f"{stage.name}: {advance}", advance),
            logs=self._where / LOGS,
            lineage=lambda key: lineage(self.folder, key),
        )

    def _make(self, stage: Stage[Any], key: str, identity: dict[str, Any]) -> StageRecord:
        started, clock = now(), time.monotonic()
        folder = self.store.begin(stage.name) if self.rank == 0 else self.store.aside(self.rank)
        self._write_run("running")
        self._making = stage.name
        try:
            place, peak = self._place(stage, folder), PeakMemory()
            kept = keeping_answers(self._where / ANSWERS)
            with self.console.working(stage.name, stage.verb, place.meter), folded(), kept:
                result = small_results(stage.work(place), stage.name)
            said = stage.summary(result)
        except BaseException as error:
            self._write_run("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        finally:
            self._making = None
        seconds, memory = time.monotonic() - clock, processes.highest(peak.read(), self.world)
        record = {
            "name": stage.name,
            "verb": stage.verb,
            "made": list(stage.makes),
            "key": key,
            "identity": identity,
            "status": "complete",
            "config": identity["config"],
            "inputs": dict(identity["inputs"]),
            "seconds": round(seconds, 3),
            "started": started,
            "versions": versions(),
            "meter": place.meter.to_json(seconds, memory) | self._ceiling(place.meter),
            "result": result,
        }
        found = self._commit(folder, record)
        self.console.ended(stage.name, stage.verb, seconds, result)
        self._note(found, f"{said} ({record['seconds']:.0f} s)")
        return found

    def _ceiling(self, meter: Meter) -> dict[str, Any]:
        """What the machine could have computed meanwhile, for the page: {"ceiling": operations a second}."""
        if self.rank or not meter.spent("flops"):
            return {}
        rate = planning.measured_flops(self.precision, str(self.device))
        return {"ceiling": {"flops": round(rate * self.world), "dtype": planning.type_of(self.precision)}}

    def _commit(self, folder: Path, record: Mapping[str, Any]) -> StageRecord:
        """Make the stage exist; every process finds it afterwards."""
        if self.rank == 0:
            found: StageRecord | None = self.store.commit(folder, record)
        processes.barrier(self.world)
        if self.rank:
            shutil.rmtree(folder, ignore_errors=True)
            self.store = Store(self.folder)
            found = self.store.find(record["key"])
        assert found is not None
        return found

    def _note(self, found: StageRecord, text: str) -> None:
        self.made.append(found)
        self.console.say(f"{found.name}: {text}")
        self._write_run("running")

    def _write_run(self, status: str) -> None:
        if self.rank:
            return
        self.store.write_run(
            {
                "name": self.folder.name,
                "seed": self.seed,
                "created": self._created,
                "precision": self.precision,
                "trainer": {k: _told(k, v) for k, v in self.trainer.items()},
                "versions": versions(),
                "command": _command(),
                "stages": [stage.folder.name for stage in self.made],
                "status": status,
            },
        )


def _check_arguments(**given: Any) -> None:
    """Refuse what is of another kind than it is declared as: a seed of 2.5 would be another run's, cut to 2.

    Raises:
        ConfigError: naming it.
    """
    for name, kind in (("folder", "str | Path"), ("seed", "int"), ("plan", "bool"), ("quiet", "bool")):
        check_value(name, given[name], kind, "Run")
    for name, wanted in (("trainer", Mapping), ("host", PluginHost)):
        if given[name] is not None and not isinstance(given[name], wanted):
            what = f"{name} is a {type(given[name]).__name__}, and not a {wanted.__name__}"
            raise ConfigError(what, where="Run")


def _command() -> str:
    """How this run was started, without the path of the interpreter or of any folder."""
    return command([Path(sys.argv[0]).name, *sys.argv[1:]])


def _told(name: str, value: Any) -> str:
    """A trainer argument in the run's record: a value as it is, an object (a logger, say) by its class alone."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    if all(part is None or isinstance(part, (bool, int, float, str, Path, Mapping)) for part in parts):
        return str(shown(value, name))
    return ", ".join(f"{type(part).__module__}.{type(part).__qualname__}" for part in parts)


__all__ = ["Run"]
