"""A round does nothing twice; one without anything to learn from is left out; labels that no loss reads are said."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest
import torch

from alignkit import Batch, Groups, PolicyOptimizer, Term
from alignkit.engine import training_data as training_data_module
from alignkit.engine.checks import unread
from alignkit.engine.fit import fit
from alignkit.engine.known import Asked, Known
from alignkit.engine.learner import Learner
from alignkit.engine.lesson import OneRound
from alignkit.engine.setting import Setting
from alignkit.optimizers import Training
from alignkit.plugin import NothingToLearnError
from alignkit.testing import bound, learn, ranking, rollouts, tiny_policy, training_data


def follow(logprobs, advantages):
    return -logprobs * advantages


@dataclass(frozen=True)
class Choosy(PolicyOptimizer):
    """Keeps the samples of those calls of `keep` that are to be kept."""

    loss: object = field(default=follow)
    kept: tuple[bool, ...] = ()
    prepared: tuple[bool, ...] = ()
    samples_per_prompt: int = 2
    learning_rate: float = 1e-2
    asked: list[int] = field(default_factory=list)

    def keep(self, groups):
        self.asked.append(len(groups))
        return [self.kept[len(self.asked) - 1]] * len(groups) if self.kept else None

    def prepare(self, groups, state, *, rewards, response_mask):
        count = state.get("prepared", 0)
        if self.prepared and not self.prepared[count]:
            return Batch(groups.select([]), state={**state, "prepared": count + 1})
        return Batch(
            groups, {"advantages": rewards.unsqueeze(1) * response_mask}, state={**state, "prepared": count + 1}
        )

    def update(self, state, metrics):
        return {**state, "updated": state.get("updated", 0) + 1}


def improved(optimizer, **changes):
    """(the rounds, what was logged, what was said, the policy)."""
    said, rows, policy = [], [], tiny_policy()
    setting = Setting(seed=(0, "stage"), max_tokens=120, say=said.append)
    source = rollouts(policy, optimizer, setting=setting, **changes)
    source.collect.resample = 0  # `keep` is asked once a round
    learn(source, optimizer, rows)
    return source, rows, said, policy


def test_a_round_whose_samples_are_all_refused_is_left_out_and_the_stage_goes_on():
    source, rows, said, _ = improved(Choosy(kept=(True, False, True, False), rounds=4))
    assert [row["round"] for row in rows] == [0, 2]
    assert source.left_out == [1, 3]
    assert source.state == {"prepared": 2, "updated": 2}
    assert [text.split(".")[0] for text in said if "left out" in text] == [
        f"round {n}/4: left out, there is nothing to learn from" for n in (2, 4)
    ]
    assert len(source.collect.sampled) == 2


def test_a_round_that_is_left_out_changes_no_weight():
    *_, alone = improved(Choosy(kept=(True,), rounds=1, schedule="constant"))
    *_, with_more = improved(Choosy(kept=(True, False, False), rounds=3, schedule="constant"))
    for (name, one), other in zip(alone.named_parameters(), with_more.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_round_of_which_prepare_keeps_nothing_is_left_out():
    source, rows, said, _ = improved(Choosy(prepared=(True, False), rounds=2))
    assert ([row["round"] for row in rows], source.left_out) == ([0], [1])
    assert any("prepare kept nothing" in text for text in said)


def test_rounds_of_one_sampling_are_left_out_together():
    """Rounds 2 and 3 share samples that are refused: they do not learn from those of rounds 0 and 1 again."""
    source, rows, _, _ = improved(Choosy(kept=(True, False), rounds=4, sample_every=2))
    assert ([row["round"] for row in rows], source.left_out) == ([0, 1], [2, 3])


def test_where_no_round_has_anything_it_is_an_error():
    with pytest.raises(NothingToLearnError, match="kept none of the groups"):
        improved(Choosy(kept=(False, False), rounds=2))
    source, rows, _, _ = improved(Choosy(kept=(False, True), rounds=2))
    assert ([row["round"] for row in rows], source.left_out) == ([1], [0])


# -- nothing twice ---------------------------------------------------------------------------------------------------


def ratio(logprobs, old_logprobs, advantages):
    return -(logprobs - old_logprobs).exp() * advantages


@dataclass(frozen=True)
class Compares(PolicyOptimizer):
    loss: object = field(default=ratio)
    samples_per_prompt: int = 3
    rounds: int = 2
    learning_rate: float = 1e-2

    def prepare(self, groups, state, *, rewards, response_mask, logprobs):
        return Batch(groups, {"advantages": rewards.unsqueeze(1) * response_mask})


def counted(monkeypatch, kept_cells):
    """(how many batches were laid out, how many of them were learned from, what was logged)."""
    laid_out, learned, rows = [], [], []
    real = training_data_module.collate

    def counting(groups, numbers, *arguments, **options):
        laid_out.append(numbers)
        return real(groups, numbers, *arguments, **options)

    class Counting(Learner):
        def training_step(self, step, batch_idx):
            learned.extend(step.micro)
            super().training_step(step, batch_idx)

    monkeypatch.setattr(training_data_module, "KEPT_CELLS", kept_cells)
    monkeypatch.setattr(training_data_module, "collate", counting)
    optimizer = Compares()
    learn(rollouts(tiny_policy(), optimizer), optimizer, rows, Counting)
    monkeypatch.undo()
    return len(laid_out), len(learned), rows


def test_the_pass_before_a_step_and_the_step_share_their_batches(monkeypatch):
    once, learned, rows = counted(monkeypatch, 1 << 20)
    twice, _, same = counted(monkeypatch, 0)
    assert rows == same
    assert learned > 2
    assert twice - once == learned
    some, _, _ = counted(monkeypatch, 130)  # room for one batch of about 120 cells in each of the two rounds
    assert twice - some == 2


@dataclass(frozen=True)
class Alone(PolicyOptimizer):
    """Compares with the log-probs from before the first step, which `prepare` has no use for."""

    loss: object = field(default=ratio)
    samples_per_prompt: int = 3
    rounds: int = 2
    batch_size: int = 0
    learning_rate: float = 1e-2

    def prepare(self, groups, state, *, rewards, response_mask):
        return Batch(groups, {"advantages": rewards.unsqueeze(1) * response_mask})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_no_pass_is_taken_before_the_only_step_of_a_round_and_nothing_else_changes(monkeypatch, precision):
    """What it compares with is what its own forward pass gives: bit for bit what the pass before would have given."""

    def improve_by(optimizer):
        passes, rows, policy, watched = [], [], tiny_policy(), []
        known, real = [], Known.work_out

        def counting(self, data, micro, names):
            passes.append(set(names))
            return real(self, data, micro, names)

        class Watching(Learner):
            def _reduce(self, data, step, batch, objectives, tensors, pair_group):
                watched.append(float((tensors["logprobs"].detach() - tensors["old_logprobs"]).abs().max()))
                known.append(tensors["old_logprobs"].requires_grad)
                return super()._reduce(data, step, batch, objectives, tensors, pair_group)

        with monkeypatch.context() as patch:
            patch.setattr(Known, "work_out", counting)
            learn(rollouts(policy, optimizer), optimizer, rows, Watching, precision)
        assert not any(known)
        return [each for each in passes if "logprobs" in each and "ref_logprobs" not in each], rows, policy, watched

    passes, rows, policy, watched = improve_by(Alone())
    assert not passes
    assert set(watched) == {0.0}
    monkeypatch.setattr(Asked, "left_to_the_step", lambda self, steps: set())
    before, plain_rows, plain, plain_watched = improve_by(Alone())
    assert len(before) == 2
    assert set(plain_watched) == {0.0}
    assert rows == plain_rows
    for one, other in zip(policy.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"epochs": 2}])
def test_a_round_of_several_steps_compares_with_before_the_first(changes):
    moved = []

    class Watching(Learner):
        def _reduce(self, data, step, batch, objectives, tensors, pair_group):
            moved.append(float((tensors["logprobs"].detach() - tensors["old_logprobs"]).abs().max()))
            return super()._reduce(data, step, batch, objectives, tensors, pair_group)

    optimizer = Alone(rounds=1, **changes)
    learn(rollouts(tiny_policy(), optimizer), optimizer, [], Watching)
    assert max(moved) > 1e-3


# -- soft labels -----------------------------------------------------------------------------------------------------


def certain(chosen_logprobs, rejected_logprobs):
    return rejected_logprobs - chosen_logprobs


def soft(chosen_logprobs, rejected_logprobs, preference_prob):
    return preference_prob * (rejected_logprobs - chosen_logprobs)


def listwise(rewards, ranks, group_mask):
    return rewards.sum(-1)


def rows_with(*probs):
    return Groups.from_rows(
        {"prompt": f"p{i}", "responses": ["aa", "b"], "ranks": [1, 2], "preference_prob": prob}
        for i, prob in enumerate(probs)
    )


def test_soft_labels_that_no_loss_reads_are_said():
    groups = rows_with(0.6, None, 1.0, 0.0)
    for loss in (certain, listwise):
        [text] = unread(groups, [bound(loss)])
        assert f"loss {bound(loss).name} takes no soft labels: 2 of 4 rows" in text
    assert unread(groups, [bound(soft)]) == []
    assert unread(groups, [bound(certain), bound(soft)]) == []
    assert unread(groups, [bound(follow)]) == []  # it imitates, and compares nothing
    assert unread(rows_with(1.0, None), [bound(certain)]) == []
    unranked = groups.with_columns({"ranks": [None] * 4})
    assert unread(unranked, [bound(certain)]) == []


def test_they_are_said_once_a_stage(caplog):
    policy = tiny_policy()
    data = training_data(policy, rows_with(0.6, 0.7))
    for loss, times in ((ranking, 1), (soft, 0)):
        caplog.clear()
        rounds = OneRound(data, data.steps(1, 2, 10**6, (0,)))
        learner = Learner(policy, bound(loss), {"loss": Term()}, Training(), rounds)
        with caplog.at_level(logging.WARNING, logger="alignkit"):
            fit(learner, precision="32-true", trainer={"accelerator": "cpu"})
            learner._say_what_is_not_read(learner.lesson)
        assert caplog.text.count("takes no soft labels") == times
