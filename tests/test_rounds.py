"""Rounds of improvement: ratio one, KL zero at the start, frozen what must be, samples drawn and kept as asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from alignkit import Batch, ConfigError, DataError, Groups, PolicyOptimizer, Term
from alignkit.engine.assemble import assemble
from alignkit.engine.fit import fit
from alignkit.engine.learner import Learner
from alignkit.engine.lesson import OneRound
from alignkit.engine.losses import nll
from alignkit.engine.reference import Reference
from alignkit.engine.setting import Setting
from alignkit.models import Policy
from alignkit.optimizers import Training
from alignkit.rewards import FunctionReward
from alignkit.sampling import Sampler
from alignkit.testing import DEMOS, PROMPTS, Watched, bound, learn, letters, rollouts, tiny_policy, training_data


def surrogate(logprobs, old_logprobs, advantages):
    """The ratio, to be looked at."""
    ratio = (logprobs - old_logprobs).exp()
    return {"loss": -ratio * advantages, "ratio": ratio}


@dataclass(frozen=True)
class Plain(PolicyOptimizer):
    """Reward minus its mean, no more."""

    loss: object = field(default=surrogate)
    samples_per_prompt: int = 2
    batch_size: int = 2
    epochs: int = 2
    rounds: int = 2
    learning_rate: float = 1e-2
    drop: bool = False

    def terms(self):
        return {"loss": Term(reduction="token"), "ratio": Term(weight=0.0, reduction="token")}

    def prepare(self, groups, state, *, rewards, present, ref_logprobs, logprobs, response_mask, history):
        assert not ref_logprobs.requires_grad
        advantages = (rewards - rewards.mean()).unsqueeze(1) * response_mask
        kept = groups
        if self.drop:
            kept, advantages = groups.select(range(len(groups) - 1)), advantages[: -self.samples_per_prompt]
        metrics = {"kl": float(((logprobs - ref_logprobs) * response_mask).sum()), "history": float(len(history))}
        return Batch(kept, {"advantages": advantages}, metrics, {"rounds": state.get("rounds", 0) + 1})


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ratio_is_exactly_one_before_the_first_step_of_a_round(temperature, drop):
    """P1, bitwise, also where `prepare` kept only some of the groups."""
    policy, optimizer = tiny_policy(), Plain(temperature=temperature, drop=drop)
    seen = []

    class Peeking(Learner):
        def _micro(self, step, batch):
            tensors, _ = assemble(self.model, self.data, batch, self.wanted, temperature=self.temperature)
            same = torch.equal(tensors["logprobs"][batch.response_mask], tensors["old_logprobs"][batch.response_mask])
            seen.append((self.round_index, step is self.steps[0], same))
            return super()._micro(step, batch)

    source = rollouts(policy, optimizer)
    config = Training(learning_rate=1e-2)
    learner = Peeking(policy, bound(optimizer.loss), optimizer.terms(), config, source, temperature=temperature)
    fit(learner, precision="32-true", trainer={"accelerator": "cpu"})
    assert all(same for _, first, same in seen if first)
    assert {r for r, first, _ in seen if first} == {0, 1}
    assert not all(same for _, first, same in seen if not first)


def test_kl_starts_at_exactly_zero_and_then_grows():
    """P3: policy and reference are the same function before the first step."""
    policy, rows = tiny_policy(), []
    optimizer = Plain()
    source = rollouts(policy, optimizer)
    learn(source, optimizer, rows)
    first = [r for r in rows if r["round"] == 0]
    later = [r for r in rows if r["round"] == 1]
    assert {r["kl_per_sequence"] for r in first} == {0.0}
    assert {r["kl_per_token"] for r in first} == {0.0}
    assert all(r["kl_per_sequence"] != 0 for r in later)
    assert source.state == {"rounds": 2}
    assert later[0]["kl"] == pytest.approx(10 * later[0]["kl_per_sequence"], rel=1e-5)  # ten responses; the sign too
    for name in (
        "loss",
        "grad_norm",
        "lr",
        "entropy",
        "reward_mean",
        "reward_std",
        "response_length",
        "eos_rate",
        "ratio",
    ):
        assert name in rows[0], name


def test_reference_and_reward_model_stay_as_they_were():
    """P13: nothing but the policy moves, and what is frozen takes no gradient."""
    policy, reference = tiny_policy(), Policy.load("tiny")
    optimizer = Plain(rounds=1)
    before = [p.clone() for p in reference.parameters()]
    source = rollouts(policy, optimizer, reference=Reference(reference))
    learn(source, optimizer, [])
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in reference.parameters())
    moved = Policy.load("tiny")
    assert any(not torch.equal(a, b) for a, b in zip(policy.parameters(), moved.parameters(), strict=True))


def test_same_seed_same_bytes_and_another_differs():
    def end(seed):
        policy, optimizer = tiny_policy(), Plain(rounds=1)
        learn(rollouts(policy, optimizer, setting=Setting((seed, "stage"), 120)), optimizer, [])
        return torch.cat([p.flatten() for p in policy.parameters()])

    assert torch.equal(end(0), end(0))
    assert not torch.equal(end(0), end(1))


def test_missing_rewards_stop_the_round_with_the_reason():
    def never(response):
        return None

    optimizer = Plain(rounds=1)
    source = rollouts(tiny_policy(), optimizer, reward=FunctionReward(never))
    with pytest.raises(DataError, match="100% of the rewards are missing; the first reason: the reward returned None"):
        source.lesson(source.collect(0), 0)


def test_nan_reward_is_missing_not_a_number():
    def nan(response):
        return float("nan")

    scores = FunctionReward(nan).score(Groups.from_rows([{"prompt": "p", "responses": ["a"]}]))
    assert scores.values == [[None]]
    assert "nan" in scores.reasons[0][0]


def test_truncating_sampler_is_refused_where_ratios_are_taken():
    @dataclass(frozen=True)
    class Cut(Sampler):
        def warp(self, logprobs):
            return logprobs

    with pytest.raises(ConfigError, match="truncat"):
        rollouts(tiny_policy(), Plain(), sampler=Cut())


def test_history_is_scored_again_by_the_current_reward():
    """A score given by an older reward model does not compete with the current one's."""
    old = Groups.from_rows([{"prompt": "p", "responses": ["abc"], "rewards": {"letters": [99.0]}, "iteration": 1}])
    source = rollouts(tiny_policy(), Plain(), history=old)
    assert source.prepare.earlier().rewards("letters")[0] == [[1.0]]


def test_dropped_groups_are_sampled_anew():
    calls = []

    @dataclass(frozen=True)
    class Picky(Plain):
        def keep(self, groups):
            calls.append(len(groups))
            return [len(calls) > 1 or i > 0 for i in range(len(groups))]

    source = rollouts(tiny_policy(), Picky(rounds=1))
    groups = source.collect(0)
    assert len(groups) == 5
    assert calls[0] == 5
    assert calls[1] == 5
    first = Sampler(max_new_tokens=12).sample(source.known.models.policy, PROMPTS, 2, seed=(0, "stage", 0, 0))
    assert first[0]["prompt_id"] == groups[4]["prompt_id"]
    assert first[0]["response_ids"] != groups[4]["response_ids"]


def test_what_is_kept_may_depend_on_the_reward_that_is_optimised():
    names = []

    @dataclass(frozen=True)
    class Picky(Plain):
        def keep(self, groups, reward_name):
            names.append(reward_name)
            return None

    rollouts(tiny_policy(), Picky(rounds=1)).collect(0)
    assert set(names) == {"letters"}


@dataclass(frozen=True)
class Imitates(PolicyOptimizer):
    """Learns from its samples as they are."""

    samples_per_prompt: int = 2

    def prepare(self, groups, state):
        return Batch(groups)


@pytest.mark.parametrize(("every", "draws"), [(1, [0, 1, 2, 3]), (2, [0, 0, 1, 1]), (0, [0, 0, 0, 0])])
def test_rounds_that_share_their_samples(every, draws):
    source = rollouts(tiny_policy(), Imitates(rounds=4, sample_every=every, prompts_per_round=2))
    seen = [source.collect(index) for index in range(4)]
    texts = [[row["responses"] for row in groups] for groups in seen]
    assert [texts.index(t) for t in texts] == [draws.index(d) for d in draws]
    assert len(source.collect.sampled) == len(set(draws))


def test_a_lap_with_shared_samples_still_draws_each_prompt():
    assert rollouts(tiny_policy(), Imitates(rounds=0, sample_every=2, prompts_per_round=2)).count == 6


def test_epochs_stop_when_the_method_says_so():
    @dataclass(frozen=True)
    class Brief(Plain):
        def stop_epochs(self, metrics):
            return True

    policy, rows = tiny_policy(), []
    optimizer = Brief(rounds=2)
    learn(rollouts(policy, optimizer), optimizer, rows)
    assert [r["round"] for r in rows] == [0, 1]


def test_early_stopping_puts_the_best_round_back():
    policy = tiny_policy()
    source = rollouts(policy, Plain(rounds=5), heldout=PROMPTS, patience=1)
    values = iter([0.5, 0.9, 0.1])
    parameter = next(p for p in policy.parameters() if p.requires_grad)
    weights = []

    class Told(FunctionReward):
        def score(self, groups):
            from alignkit.rewards import Scores

            value = next(values)
            return Scores([[value] for _ in groups], [[None] for _ in groups])

    source.early_stop.reward = Told(letters)
    stopped = []
    for index in range(3):
        with torch.no_grad():
            parameter.add_(1.0)
        weights.append(parameter.clone())
        stopped.append(source.early_stop.over(index))
    assert stopped == [False, False, True]
    assert source.early_stop.restore_best() == 1
    assert torch.equal(parameter, weights[1])


def test_rounds_are_compared_on_the_prompts_that_both_have_a_reward_of():
    """The hard prompt has no reward in the second round, whose mean is higher for it and whose scores are worse."""
    source = rollouts(tiny_policy(), Plain(rounds=5), heldout=PROMPTS.select(range(3)), patience=3)
    rounds = iter([[0.9, 0.1, 0.9], [0.8, None, 0.8], [0.9, 0.2, None], [None, 0.3, 0.9]])

    class Told(FunctionReward):
        def score(self, groups):
            from alignkit.rewards import Scores

            told = next(rounds)
            return Scores([[value] for value in told], [[None if v is not None else "lost"] for v in told])

    source.early_stop.reward, best = Told(letters), []
    for index in range(4):
        source.early_stop.over(index)
        best.append(source.early_stop.best_round)
    assert best == [0, 0, 2, 3]


def test_prompts_of_rounds_go_around_all():
    source = rollouts(tiny_policy(), Plain(prompts_per_round=2, rounds=5))
    taken = [row["prompt_id"] for index in range(5) for row in source.collect.round_prompts(index)]
    assert sorted(taken[:5]) == sorted(set(taken))
    assert sorted(taken) == sorted([row["prompt_id"] for row in PROMPTS] * 2)


@pytest.mark.parametrize("rounds", [5, 0])
def test_prompts_of_rounds_come_as_they_were_given_where_a_method_wants_that(rounds):
    given = [row["prompt_id"] for row in PROMPTS]
    for shuffle in (True, False):
        source = rollouts(tiny_policy(), Plain(prompts_per_round=2, rounds=rounds, shuffle=shuffle))
        taken = [row["prompt_id"] for index in range(5) for row in source.collect.round_prompts(index)]
        assert (taken[: len(given)] == given) is not shuffle
    if rounds:
        assert taken == given * 2, "around and around"


def peeked(policy, optimizer, precision="32-true", checkpointing=False, value_model=None):
    """Whether the first step of each round saw a ratio of exactly 1."""
    seen = []

    class Peeking(Learner):
        def _micro(self, step, batch):
            tensors, _ = assemble(
                self.model, self.data, batch, self.wanted, temperature=self.temperature, value_model=self.value_model
            )
            if step is self.steps[0]:
                seen.append(torch.equal(tensors["logprobs"], tensors["old_logprobs"] * batch.response_mask))
            return super()._micro(step, batch)

    source = rollouts(policy, optimizer, value_model=value_model)
    learner = Peeking(
        policy, bound(optimizer.loss), optimizer.terms(), Training(learning_rate=1e-2), source, value_model=value_model
    )
    fit(learner, precision=precision, trainer={"accelerator": "cpu"}, checkpointing=checkpointing)
    return seen


def test_ratio_is_one_under_mixed_precision():
    assert all(peeked(tiny_policy(), Plain(rounds=2), precision="bf16-mixed"))


def test_ratio_is_one_and_gradient_the_same_with_gradient_checkpointing():
    assert all(peeked(tiny_policy(), Plain(rounds=2), checkpointing=True))

    def gradients(checkpointing):
        policy = tiny_policy()
        data = training_data(policy, DEMOS)
        steps = data.steps(0, 1, 10**6, (0, "order"))
        learner = Watched(policy, bound(nll), {"loss": Term()}, Training(), OneRound(data, steps))
        fit(learner, precision="32-true", trainer={"accelerator": "cpu"}, checkpointing=checkpointing)
        return learner.gradients

    for a, b in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def valued(logprobs, old_logprobs, advantages, values, old_values):
    return {"loss": -(logprobs - old_logprobs).exp() * advantages, "value_loss": (values - 1.0 - 0 * old_values) ** 2}


@dataclass(frozen=True)
class Valued(Plain):
    """With a value to learn: 1 everywhere."""

    loss: object = field(default=valued)

    def terms(self):
        return {"loss": Term(reduction="token"), "value_loss": Term(reduction="token")}


@pytest.mark.parametrize("kind", ["head", "separate"])
def test_value_model_learns_on_the_trunk_or_on_its_own(kind):
    policy, rows = tiny_policy(), []
    optimizer = Valued(rounds=3, value_learning_rate=3e-2)
    value_model = None
    if kind == "head":
        policy.add_value_head()
    else:
        value_model = tiny_policy()
        value_model.add_value_head()
    source = rollouts(policy, optimizer, value_model=value_model)
    learner = Learner(
        policy,
        bound(optimizer.loss),
        optimizer.terms(),
        Training(learning_rate=1e-3),
        source,
        record=rows.append,
        value_model=value_model,
        value_learning_rate=3e-2,
    )
    fit(learner, precision="32-true", trainer={"accelerator": "cpu"})
    assert rows[0]["value_loss"] == pytest.approx(1.0)  # the head starts at zero
    assert rows[-1]["value_loss"] < 0.5
