"""Loggers of Lightning by one word, and around every logger: whatever happens to it, training goes on.

What a stage measured stands in its `metrics.jsonl`; a logger shows it elsewhere as well. One that cannot be reached,
whose disk is full or whose account is closed is worth a warning and not a run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

log = logging.getLogger("alignkit")


def made(words: Sequence[str], folder: Path, stage: str) -> list[Logger]:
    """The loggers of a stage.

    Args:
        words: of `alignkit.trainer.LOGGERS`.
        folder: of the run's logs; those that write files write them there.
        stage: its name, and that of the logger's run.
    """
    return [Guarded(word, partial(MAKERS[word], folder, stage)) for word in words]


def guarded(loggers: Sequence[Logger]) -> list[Logger]:
    """Loggers that were made elsewhere, none of which can end training."""
    return [each if isinstance(each, Guarded) else Guarded(type(each).__name__, each) for each in loggers]


def _wandb(folder: Path, stage: str) -> Logger:
    folder.mkdir(parents=True, exist_ok=True)
    project, run = os.environ.get("WANDB_PROJECT", "alignkit"), folder.parent.name
    return WandbLogger(name=f"{run}/{stage}", group=run, project=project, save_dir=str(folder))


def _mlflow(folder: Path, stage: str) -> Logger:
    where = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").absolute().as_uri()
    return MLFlowLogger(experiment_name=folder.parent.name, run_name=stage, tracking_uri=where)


MAKERS: dict[str, Callable[[Path, str], Logger]] = {
    "tensorboard": lambda folder, stage: TensorBoardLogger(str(folder), name="tensorboard", version=_flat(stage)),
    "csv": lambda folder, stage: CSVLogger(str(folder), name="csv", version=_flat(stage)),
    "wandb": _wandb,
    "mlflow": _mlflow,
}
"""(folder of the run's logs, stage) -> a logger of its own for each stage."""


def _flat(stage: str) -> str:
    """A stage's name as one folder's."""
    return stage.replace("/", "-").replace(os.sep, "-")


class Guarded(Logger):
    """A logger that fails with one warning and is silent from then on.

    Args:
        word: how it is called in the warning.
        made: the logger, or what makes it.
    """

    def __init__(self, word: str, made: Logger | Callable[[], Logger]) -> None:
        super().__init__()
        self.word = word
        self.inner: Logger | None = None
        with self._guard("begin"):
            self.inner = made if isinstance(made, Logger) else made()

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            said = " ".join(str(error).split())[:300]
            told = "the logger %s failed to %s (%s: %s); training goes on, and metrics.jsonl holds everything"
            log.warning(told, self.word, what, type(error).__name__, said)
            self.inner = None

    def _asked(self, name: str, otherwise: Any = None) -> Any:
        found = otherwise
        with self._guard(f"tell its {name}"):
            found = getattr(self.inner, name, otherwise)
        return found

    def __getattr__(self, name: str) -> Any:  # what only this kind of logger has, for callbacks of the user's
        return getattr(self.__dict__.get("inner"), name)

    @property
    def name(self) -> str | None:
        return self._asked("name", self.word)

    @property
    def version(self) -> int | str | None:
        return self._asked("version")

    @property
    def save_dir(self) -> str | None:
        return self._asked("save_dir")

    @property
    def root_dir(self) -> str | None:
        return self._asked("root_dir")

    @property
    def log_dir(self) -> str | None:
        return self._asked("log_dir")

    @property
    def experiment(self) -> Any:
        """What a callback of the user's writes to."""
        return self._asked("experiment")

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self._guard("write"):
            if self.inner is not None:
                self.inner.log_metrics(metrics, step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        with self._guard("write settings"):
            if self.inner is not None:
                self.inner.log_hyperparams(*args, **kwargs)

    def save(self) -> None:
        with self._guard("save"):
            if self.inner is not None:
                self.inner.save()

    def finalize(self, status: str) -> None:
        with self._guard("end"):
            if self.inner is not None:
                self.inner.finalize(status)
            if isinstance(self.inner, WandbLogger):
                self.inner.experiment.finish()  # else the next stage would write into this one's run
