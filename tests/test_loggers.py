"""Loggers by one word: what they write and where, and that a dead one never ends a run."""

from __future__ import annotations

import csv
import json
import sys
import types
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger

from alignkit import ConfigError, Groups, Run
from alignkit.trainer import LOGGERS, logger_words

DEMOS = Groups.from_rows([{"prompt": f"p{n}", "responses": ["ab"]} for n in range(4)])


def trained(folder: Any, **options: Any) -> Any:
    with Run(folder, quiet=True, **options) as run:
        return run.sft(run.policy("tiny", lora=None), DEMOS, batch_size=2, name="chat/sft")


def losses(handle: Any) -> list[float]:
    return [json.loads(line)["loss"] for line in (handle.path / "metrics.jsonl").read_text().splitlines()]


def test_words_are_one_several_or_none():
    assert logger_words("csv, tensorboard") == ["csv", "tensorboard"] == logger_words(["csv", "tensorboard"])
    assert logger_words(None) == logger_words(False) == logger_words(True) == []


def test_files_stand_in_the_run_and_hold_what_was_measured(tmp_path):
    made = trained(tmp_path / "run", logger="csv,tensorboard")
    with (tmp_path / "run/logs/csv/chat-sft/metrics.csv").open() as file:
        found = [float(row["loss"]) for row in csv.DictReader(file)]
    assert found == pytest.approx(losses(made))
    assert len(found) == 2
    assert list((tmp_path / "run/logs/tensorboard/chat-sft").glob("events.out.*"))
    again = trained(tmp_path / "run", logger=None)  # what shows changes nothing
    assert again.key == made.key


@pytest.mark.parametrize("word", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_one_error_before_anything_is_done(tmp_path, monkeypatch, word):
    monkeypatch.setattr("alignkit.trainer.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"needs the package {word}, which is not installed.*pip install {word}"):
        Run(tmp_path / "run", logger=word)
    assert not (tmp_path / "run").exists()


def test_a_word_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tensorbord.*did you mean tensorboard"):
        Run(tmp_path / "run", logger="tensorbord")
    with pytest.raises(ConfigError, match="wandbb"):
        Run(tmp_path / "run", trainer={"logger": ["csv", "wandbb"]})
    assert set(LOGGERS) == {"tensorboard", "csv", "wandb", "mlflow"}


class Dead(CSVLogger):
    """Fails in one of its methods."""

    def __init__(self, folder: Any, dies_in: str) -> None:
        super().__init__(str(folder))
        self.dies_in, self.calls = dies_in, 0

    def _die(self, name: str) -> None:
        if name == self.dies_in:
            self.calls += 1
            raise SystemExit(3) if name == "save" else ConnectionError("nobody there")

    @property
    def name(self) -> str:
        self._die("name")
        return "dead"

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self._die("log_metrics")
        super().log_metrics(metrics, step)

    def save(self) -> None:
        self._die("save")

    def finalize(self, status: str) -> None:
        self._die("finalize")


@pytest.mark.parametrize("dies_in", ["name", "log_metrics", "save", "finalize"])
def test_a_dead_logger_ends_no_run_and_is_said_once(tmp_path, dies_in, caplog):
    dead = Dead(tmp_path, dies_in)
    made = trained(tmp_path / "run", logger=dead)
    assert made.result["steps"] == len(losses(made)) == 2
    assert dead.calls == 1
    assert caplog.text.count("the logger Dead failed") == 1
    assert "metrics.jsonl holds everything" in caplog.text


def test_a_logger_that_cannot_begin_is_said_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    def refuse(folder: Any, stage: str) -> Logger:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("alignkit.trainer.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules["alignkit.engine.loggers"].MAKERS, "wandb", refuse)
    trained(tmp_path / "run", logger="wandb,csv")
    assert "the logger wandb failed to begin (ConnectionError: no route to host)" in caplog.text
    assert (tmp_path / "run/logs/csv/chat-sft/metrics.csv").is_file()


def test_wandb_gets_a_run_of_its_own_for_each_stage(tmp_path, monkeypatch):
    """A stand-in for the package, which speaks to a server: what it is told, and that each stage's run ends."""
    from alignkit.engine import loggers

    told: list[Any] = []

    class Wandb(CSVLogger):
        def __init__(self, **options: Any) -> None:
            super().__init__(str(tmp_path))
            told.append(options)

        @property
        def experiment(self) -> Any:
            ended = types.SimpleNamespace(finish=lambda: told.append("finish"), log_metrics=lambda *_: None)
            return ended

        def save(self) -> None:
            """Nowhere."""

        def finalize(self, status: str) -> None:
            """Left open, as Lightning leaves it."""

    monkeypatch.setattr("alignkit.trainer.find_spec", lambda name: True)
    monkeypatch.setattr(loggers, "WandbLogger", Wandb)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    trained(tmp_path / "run", logger="wandb")
    where = str((tmp_path / "run" / "logs").resolve())
    assert told == [{"name": "run/chat/sft", "group": "run", "project": "mine", "save_dir": where}, "finish"]
