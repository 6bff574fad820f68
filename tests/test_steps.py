"""An optimizer step: stopped before it would do harm, with the rates and schedules that were asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignkit import ConfigError, Groups, Run, Term
from alignkit.engine.learner import Learner
from alignkit.engine.lesson import OneRound
from alignkit.engine.losses import nll
from alignkit.errors import NumericError
from alignkit.optimizers import Training
from alignkit.testing import DEMOS, bound, one_step, tiny_policy, training_data
from alignkit.trainer import check_trainer


def test_nan_stops_before_the_step():
    def bad(logprobs):
        return logprobs * float("nan")

    policy = tiny_policy()
    before = [p.clone() for p in policy.parameters()]
    with pytest.raises(NumericError, match="not finite"):
        one_step(policy, DEMOS, bad, Term(), 10**6)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_infinite_gradient_stops_before_the_step():
    def steep(logprobs):
        return (logprobs - logprobs.detach()).abs().sqrt()  # 0, with an infinite slope

    policy = tiny_policy()
    before = [p.clone() for p in policy.parameters()]
    with pytest.raises(NumericError, match="gradient norm"):
        one_step(policy, DEMOS, steep, Term(), 10**6)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


@pytest.mark.parametrize(
    ("schedule", "progress", "wanted"),
    [
        ("constant", 0.7, 1.0),
        ("cosine", 0.1, 1.0),
        ("cosine", 1.0, 0.1),
        ("cosine", 0.55, 0.55),
        ("linear", 0.55, 0.5),
        ("linear", 1.0, 0.0),
    ],
)
def test_schedules(schedule, progress, wanted):
    training = Training(schedule=schedule, warmup_ratio=0.1)
    assert training.factor(progress) == pytest.approx(wanted)
    assert training.factor(0.05) == pytest.approx(0.5)


def test_value_weights_have_a_rate_of_their_own():
    policy = tiny_policy()
    policy.add_value_head()
    data = training_data(policy, DEMOS)
    training = Training(learning_rate=1e-3, weight_decay=0.1)
    learner = Learner(policy, bound(nll), {"loss": Term()}, training, OneRound(data, []), value_learning_rate=5e-2)
    groups = learner.configure_optimizers().param_groups
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert {rates[id(p)] for p in policy.value_head.parameters()} == {5e-2}
    assert {rates[id(p)] for p in policy.model.parameters()} == {1e-3}
    assert all(decay[id(p)] == (0.1 if p.ndim >= 2 else 0.0) for p in policy.parameters())


def test_lightnings_own_arguments_are_refused_by_name():
    with pytest.raises(ConfigError, match="max_grad_norm"):
        check_trainer({"gradient_clip_val": 1.0})
    with pytest.raises(ConfigError, match="batch_size"):
        check_trainer({"accumulate_grad_batches": 4})
    check_trainer({"accelerator": "cpu", "callbacks": []})


COMPARED = Groups.from_rows(
    {"prompt": f"p{i % 3}", "responses": ["yes" * (1 + i), "no" * (1 + i % 2)], "ranks": [1, 2], "rating": "better"}
    for i in range(9)
)
"""Nine comparisons of answers to three prompts, which do not stand side by side."""


def test_comparisons_of_a_prompt_stand_in_one_step_where_that_is_asked():
    data = replace(training_data(tiny_policy(), COMPARED), by_prompt=True)
    steps = data.steps(2, 4, 10**6, (0, "order"))
    prompts = [{number % 3 for number in step.numbers} for step in steps]
    assert [len(step.numbers) for step in steps] == [3] * 12, "a prompt has three, and a step no more than it needs"
    assert all(len(found) == 1 for found in prompts)
    epochs = [[found.pop() for found in prompts[i : i + 3]] for i in range(0, 12, 3)]
    assert all(sorted(order) == [0, 1, 2] for order in epochs)
    assert len({*map(tuple, epochs)}) > 1, "each epoch has an order of its own"
    assert [len(step.numbers) for step in data.steps(4, 1, 10**6, (0,))] == [6, 3]
    apart = replace(data, by_prompt=False).steps(3, 1, 10**6, (0, "order"))
    assert any(len({number % 3 for number in step.numbers}) > 1 for step in apart)


def ranking(chosen_rewards, rejected_rewards):
    return -torch.nn.functional.logsigmoid(chosen_rewards - rejected_rewards)


def test_a_reward_model_that_reads_an_answer_once_learns_the_same(tmp_path):
    def fitted(by_prompt):
        with Run(tmp_path / str(by_prompt), quiet=True, seed=1) as run:
            settings = {"batch_size": 9, "heldout_fraction": 0.0, "name": "reward", "by_prompt": by_prompt}
            made = run.train_reward(run.policy("tiny"), COMPARED, loss=ranking, **settings)
            scores, _ = run.score(COMPARED, made).groups.rewards("reward")
        return [score for row in scores for score in row]

    assert fitted(True) == pytest.approx(fitted(False), abs=1e-4)
