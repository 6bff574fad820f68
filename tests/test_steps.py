"""An optimizer step: stopped before it would do harm, with the rates and schedules that were asked for."""

from __future__ import annotations

import pytest
import torch

from alignkit import ConfigError, Term
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
