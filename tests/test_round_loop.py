"""The loop of rounds and the trainer: lessons out, means in, and the loop says when to stop."""

from __future__ import annotations

import csv

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from alignkit.engine.fit import fit
from alignkit.engine.learner import Learner
from alignkit.engine.lesson import Lesson
from alignkit.engine.losses import nll
from alignkit.engine.step_metrics import RoundMeans
from alignkit.engine.training_data import TrainingData
from alignkit.errors import DataError
from alignkit.groups import Groups
from alignkit.models import Policy
from alignkit.optimizers import Term, Training
from alignkit.registry.host import PluginHost

NLL = PluginHost(allow=()).build("loss", nll)
DEMOS = Groups.from_rows({"prompt": f"p{i}", "responses": ["x" * (1 + i)]} for i in range(4))
LIMITS = {"max_prompt_tokens": 500, "max_response_tokens": 500}


class Scripted:
    """Rounds of two steps each, that stop after round `last` and keep what they were sent."""

    def __init__(self, data, count, last, skips=False):
        self.data, self.count, self.last, self.skips = data, count, last, skips
        self.sent = []

    def rounds(self):
        for index in range(self.count):
            steps = self.data.steps(2, 1, 10**6, (index,))
            self.sent.append((yield Lesson(self.data, steps, {"number": float(index)}, lambda row: self.skips)))
            yield index == self.last


def learn(count=4, last=99, trainer=None, kind=Learner, **options):
    policy = Policy.load("tiny", trainable=True)
    data, _ = TrainingData.of(policy, DEMOS, **LIMITS)
    made, rows, texts = Scripted(data, count, last, **options), [], []
    learner = kind(policy, NLL, {"loss": Term()}, Training(), made, record=rows.append, tick=texts.append)
    fit(learner, precision="32-true", trainer={"accelerator": "cpu", **(trainer or {})})
    return made, rows, texts


def test_the_loop_is_sent_the_means_of_each_round_with_its_metrics():
    made, rows, texts = learn(count=2)
    assert [row["round"] for row in rows] == [0, 0, 1, 1]
    for index, sent in enumerate(made.sent):
        mine = [row["loss"] for row in rows if row["round"] == index]
        assert sent["loss"] == pytest.approx(sum(mine) / 2, rel=1e-12)
        assert sent["number"] == index == rows[2 * index]["number"]
    assert [str(text).split(", loss")[0] for text in texts] == [
        "round 1/2, step 1/2", "round 1/2, step 2/2", "round 2/2, step 1/2", "round 2/2, step 2/2"
    ]  # fmt: skip


def test_the_trainer_stops_when_the_loop_says_so():
    made, rows, _ = learn(count=5, last=1)
    assert [row["round"] for row in rows] == [0, 0, 1, 1]
    assert len(made.sent) == 2


def test_a_lesson_may_skip_the_rest_of_its_round():
    _, rows, _ = learn(count=3, skips=True)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["round"] for row in rows] == [0, 1, 2]


def test_what_does_not_fit_is_a_problem_with_its_row_and_the_rest_stays_aligned():
    policy = Policy.load("tiny")
    limits = {"max_prompt_tokens": 500, "max_response_tokens": 4}  # the last response has four letters and an end
    data, problems = TrainingData.of(policy, DEMOS, **limits)
    assert [problem.row for problem in problems] == [3]
    assert [row["prompt_id"] for row in data.groups] == [row["prompt_id"] for row in DEMOS.select(range(3))]
    middle, _ = TrainingData.of(policy, DEMOS.select([3, 0]), **limits)
    assert [each.index for each in middle.encoded] == [1]
    assert middle.response_mask.tolist() == [[True, True]]
    with pytest.raises(DataError, match="1 rows cannot be learned from"):
        TrainingData.whole(policy, DEMOS, **limits)


class Silent(Learner):
    """Refuses to tell Lightning anything."""

    def log_dict(self, *args, **kwargs):
        raise AssertionError("nobody reads this")

    log = log_dict


class Reads(L.Callback):
    """Keeps what Lightning's callbacks can see after each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_lightning_is_told_nothing_where_nobody_reads_it():
    _, rows, _ = learn(count=2, kind=Silent)
    assert len(rows) == 4
    with pytest.raises(AssertionError, match="nobody reads"):
        learn(count=1, kind=Silent, trainer={"callbacks": [Reads()]})


def test_a_callback_of_the_user_sees_what_is_logged():
    reads = Reads()
    _, rows, _ = learn(count=2, trainer={"callbacks": [reads]})
    assert [seen["number"] for seen in reads.seen] == [0, 0, 1, 1]
    for row, seen in zip(rows, reads.seen, strict=True):
        assert {name: seen[name] for name in ("loss", "grad_norm", "lr", "step_loss")} == pytest.approx(
            {"step_loss": row["loss"], **{name: row[name] for name in ("loss", "grad_norm", "lr")}}
        )


def test_early_stopping_of_the_user_works():
    stop = EarlyStopping(monitor="number", mode="min", patience=1, check_on_train_epoch_end=True)
    _, rows, _ = learn(count=5, trainer={"callbacks": [stop]})
    assert [row["round"] for row in rows] == [0, 0, 1, 1]


def test_a_logger_of_the_user_gets_every_step(tmp_path):
    learn(count=2, trainer={"logger": CSVLogger(tmp_path, name="", version="")})
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [float(row["number"]) for row in written] == [0, 0, 1, 1]
    assert all(float(row["loss"]) > 0 for row in written)


def test_a_progress_bar_shows_the_loss_of_the_step(capsys):
    class Keeps(Learner):
        def on_train_end(self):
            shown.update(self.trainer.progress_bar_metrics)

    shown = {}
    _, rows, _ = learn(count=1, kind=Keeps, trainer={"enable_progress_bar": True})
    assert shown["step_loss"] == pytest.approx(rows[-1]["loss"])


def test_means_of_a_round_know_nothing_of_the_round_before():
    means = RoundMeans()
    means.update({"a": 1.0, "b": 3.0})
    means.update({"a": 2.0})
    assert means.read() == {"a": 1.5, "b": 3.0}
    means.reset()
    assert means.read() == {}
    means.update({"a": 5.0})
    assert means.read() == {"a": 5.0}
    assert {name.partition(".")[0] for name in means.state()} == {"a"}
    means.reset()
    means.update({"b": 7.0})
    assert means.read() == {"b": 7.0}
