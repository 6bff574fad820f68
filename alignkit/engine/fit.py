"""One `Trainer.fit` per training verb, with Lightning's trainer as the user asked for it."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignkit.engine import loggers
from alignkit.engine.learner import Learner
from alignkit.errors import PluginError, Terminated
from alignkit.models.forward import checkpoint_layers
from alignkit.models.products import casts_kept
from alignkit.trainer import check_trainer, logger_words


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notices about devices and workers out of the progress the user reads."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fit(
    learner: Learner,
    *,
    precision: str,
    trainer: Mapping[str, Any],
    checkpointing: bool = False,
    logs: Path | None = None,
    stage: str = "",
) -> None:
    """Train.

    Args:
        learner: module with its rounds.
        precision: as Lightning names it ("32-true", "bf16-mixed", "bf16-true"). Of the true ones Lightning is told
            nothing: it would cast every float tensor of the learner, adapters, heads and rotary tables too, which are
            float32 where the weights beside them are not. Models are loaded in the precision of their weights.
        trainer: further arguments of `lightning.Trainer`.
        checkpointing: gradient checkpointing: activations are computed again rather than kept.
        logs: folder of the loggers that are named by a word.
        stage: the name under which they log.

    Raises:
        ConfigError: an argument that is alignkit's own.
        NumericError: a NaN, before the step.
    """
    import lightning as L

    check_trainer(trainer)
    options: dict[str, Any] = {
        "accelerator": "auto",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        **trainer,
    }
    if words := logger_words(options["logger"]):
        options["logger"] = loggers.made(words, logs or Path("logs"), stage) + [
            each for each in options["logger"] if not isinstance(each, str)
        ]
    _gradient_checkpointing(learner, checkpointing)
    learner.checkpointing = checkpointing
    with _quiet(), contextlib.redirect_stdout(io.StringIO()):
        loop = L.Trainer(
            **options,
            precision="32-true" if precision.endswith("-true") else precision,  # type: ignore[arg-type]
            max_epochs=learner.rounds.count,
            enable_checkpointing=False,
            reload_dataloaders_every_n_epochs=1,
        )
    loop.loggers = loggers.guarded(loop.loggers)
    device = loop.strategy.root_device
    try:
        with _quiet(), _ending(loop), casts_kept():
            loop.fit(learner)
    finally:
        _part(loop, learner)
    learner.to(device)  # Lightning's teardown leaves it on the CPU; what is scored next is scored where it was trained


def _part(loop: Any, learner: Learner) -> None:
    """Let trainer and learner go of one another.

    Lightning leaves them in a circle, and the memory of a GPU does not wait for Python's collector of circles.
    """
    learner.trainer = None
    loop.strategy.model, loop.strategy.optimizers = None, []
    seen, waiting = {id(loop)}, [loop]
    while waiting:  # its loops and connectors each keep the learner under names of their own
        kept = vars(waiting.pop())
        for name, value in kept.items():
            if value is learner or type(value) in weakref.ProxyTypes:
                kept[name] = None
            elif (
                type(value).__module__.startswith("lightning.") and hasattr(value, "__dict__") and id(value) not in seen
            ):
                seen.add(id(value))
                waiting.append(value)


@contextlib.contextmanager
def _ending(loop: Any) -> Iterator[None]:
    """Make SIGINT and SIGTERM end the stage, and nothing else.

    Lightning turns Ctrl-C into sys.exit(1) with the signal left ignored, and takes SIGTERM for a wish to end with exit
    status 0 and nothing saved; a scheduler would call that a success.
    """
    told: list[int] = []

    def terminate(number: int, _frame: Any) -> None:
        told.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if ours:
        signal.signal(signal.SIGTERM, terminate)  # Lightning's handler calls the one that it finds
    interrupted = False
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as stop:
        interrupted = True
        by_lightning = bool(told) or isinstance(stop.__context__, KeyboardInterrupt)
        if isinstance(stop, SystemExit) and not by_lightning:  # a callback's, or a component's
            raise PluginError(f"sys.exit({stop.code!r}) was called while training", where="trainer") from stop
    finally:
        for number, handler in before.items() if ours else ():
            signal.signal(number, handler)
    if interrupted or loop.interrupted:
        raise Terminated if told else KeyboardInterrupt


def _gradient_checkpointing(learner: Learner, on: bool) -> None:
    for model in (learner.model, learner.value_model):
        if model is not None and on:
            checkpoint_layers(model)
