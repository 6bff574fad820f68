"""The engine: counts over the whole step, ratio one, detached and frozen what must be, a stop before a bad step."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from alignkit.data.encode import encode_groups
from alignkit.engine.assemble import assemble
from alignkit.engine.fit import check_trainer, fit
from alignkit.engine.improve import improvement
from alignkit.engine.judging import Judging
from alignkit.engine.learner import Learner
from alignkit.engine.lesson import OneRound
from alignkit.engine.losses import call_loss, nll
from alignkit.engine.pairs import pairs_of
from alignkit.engine.reduction import Layout, reduce_terms
from alignkit.engine.reference import Reference
from alignkit.engine.setting import Models, Setting
from alignkit.engine.training_data import TrainingData
from alignkit.errors import ConfigError, DataError, NumericError
from alignkit.groups import Groups
from alignkit.models import LoRA, Policy, RewardModel
from alignkit.optimizers import Batch, PolicyOptimizer, Term, Training
from alignkit.registry.host import PluginHost
from alignkit.rewards import FunctionReward
from alignkit.sampling import Sampler

HOST = PluginHost(allow=())


def bound(function):

    return HOST.build("loss", function)


DEMOS = Groups.from_rows(
    {"prompt": f"prompt {i}", "responses": ["x" * (1 + 5 * (i % 4))] * (1 + i % 2)} for i in range(7)
)
PAIRS = Groups.from_rows(
    {"prompt": f"p{i}", "responses": ["yes" * (i + 1), "no" * (4 - i)], "ranks": [1, 2], "rating": "better"}
    for i in range(4)
)


def make_round(model, groups):
    encoded, problems = encode_groups(groups, model.chat, max_prompt_tokens=500, max_response_tokens=500)
    assert not problems
    return TrainingData(groups, list(encoded), shared=model.shares_prompts, pad_id=model.chat.pad_id)


class Watched(Learner):
    """Keeps the gradients of each step."""

    def _clip(self):
        self.gradients = [p.grad.clone() for p in self.parameters() if p.grad is not None]
        return super()._clip()


def one_step(model, groups, loss, term, max_tokens, batch_size=0, learner=Watched, **kwargs):
    data = make_round(model, groups)
    steps = data.steps(batch_size, 1, max_tokens, (0, "order"))
    made = learner(model, bound(loss), {"loss": term}, Training(max_grad_norm=0.0), OneRound(data, steps), **kwargs)
    fit(made, precision="32-true", trainer={"accelerator": "cpu"})
    return made


def tiny(trainable=True):
    policy = Policy.load("tiny", trainable=trainable)
    return policy


@pytest.mark.parametrize("reduction", ["token", "sequence", "group", "constant"])
def test_gradient_is_the_same_whatever_the_micro_batch(reduction):
    """P7. Lengths differ, so a mean of micro-means would differ by far more than rounding."""
    term = Term(reduction=reduction, constant=10.0)
    whole = one_step(tiny(), DEMOS, nll, term, 10**6).gradients
    single = one_step(tiny(), DEMOS, nll, term, 1).gradients
    assert len(whole) == len(single) > 5
    for a, b in zip(whole, single, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * max(1.0, float(a.abs().max())))  # 3e-7 measured


def test_token_reduction_is_the_mean_over_all_tokens():
    """By hand: the sum of all token losses over the number of tokens."""
    policy = tiny()
    rows = []
    one_step(policy, DEMOS, nll, Term(reduction="token"), 60, record=rows.append)
    fresh = tiny()
    data = make_round(fresh, DEMOS)
    total, count = 0.0, 0
    for number in range(len(DEMOS)):
        batch = data.collate([number])
        with torch.no_grad():
            total -= float(fresh.tensors(batch)["logprobs"].sum())
        count += int(batch.response_mask.sum())
    assert rows[0]["loss"] == pytest.approx(total / count, abs=1e-5)


def test_reductions_by_hand():
    """Two responses of one group with 4 and 1 tokens, one of another with 1: the three means differ."""
    values = torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 9.0, 9.0, 9.0], [6.0, 9.0, 9.0, float("nan")]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    layout = Layout({"response_mask": mask}, torch.tensor([0, 0, 1]), torch.zeros(0, dtype=torch.long), 2)
    counts = {"token": 6.0, "sequence": 3.0, "group": 2.0}

    def reduce(reduction):
        total, _ = reduce_terms(
            {"loss": values},
            {"loss": Term(reduction=reduction)},
            ("logprobs",),
            layout,
            lambda kind, _mask: counts[kind],
        )
        return float(total)

    assert reduce("token") == pytest.approx((8 + 0 + 6) / 6)
    assert reduce("sequence") == pytest.approx((2 + 0 + 6) / 3)
    assert reduce("group") == pytest.approx(((2 + 0) / 2 + 6) / 2)
    assert reduce("constant") == pytest.approx(14.0 / 3)


def test_masked_positions_reach_neither_loss_nor_gradient():
    values = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    layout = Layout({"response_mask": mask}, torch.tensor([0]), torch.zeros(0, dtype=torch.long), 1)
    total, _ = reduce_terms({"loss": values}, {"loss": Term()}, ("logprobs",), layout, lambda *_: 1.0)
    (gradient,) = torch.autograd.grad(total, values)
    assert total.item() == 1.0
    assert gradient.tolist() == [[1.0, 0.0]]


def test_pairs_weigh_by_prompt_under_group_reduction():
    """A ranking of three is three pairs but one prompt: it must not count three times a comparison."""
    groups = Groups.from_rows(
        [
            {"prompt": "a", "responses": ["1", "2", "3"], "ranks": [1, 2, 3]},
            {"prompt": "b", "responses": ["1", "2"], "ranks": [2, 1]},
            {"prompt": "c", "responses": ["1", "2"], "ranks": [1, 1]},
        ]
    )
    pairs = pairs_of(groups)
    assert pairs.group.tolist() == [0, 0, 0, 1]
    assert pairs.chosen.tolist() == [0, 0, 1, 4]
    assert pairs.rejected.tolist() == [1, 2, 2, 3]
    layout = Layout({}, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]), 2)
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    total, _ = reduce_terms(
        {"loss": values},
        {"loss": Term(reduction="group")},
        ("chosen_rewards",),
        layout,
        lambda kind, _m: {"pair_group": 2.0}[kind],
    )
    assert float(total) == pytest.approx((2 + 10) / 2)


def test_undeclared_and_weightless_terms_are_refused():
    layout = Layout({"response_mask": torch.ones(1, 1)}, torch.tensor([0]), torch.zeros(0, dtype=torch.long), 1)
    with pytest.raises(ConfigError, match="declared"):
        reduce_terms({"other": torch.ones(1, 1)}, {"loss": Term()}, ("logprobs",), layout, lambda *_: 1.0)
    with pytest.raises(ConfigError, match="weight 0"):
        one_step(tiny(), DEMOS, nll, Term(weight=0), 100)
    with pytest.raises(ConfigError, match="unreduced"):
        reduce_terms({"loss": torch.ones(3)}, {"loss": Term()}, ("labels",), layout, lambda *_: 1.0)


def test_a_loss_that_asks_for_what_is_not_there_is_told():
    def odd(advantages):
        return advantages

    with pytest.raises(ConfigError, match="advantages"):
        call_loss(bound(odd), {"logprobs": torch.zeros(1, 1)})


def test_pair_tensors_of_a_policy_are_sums_over_the_response():
    policy = tiny(trainable=False)
    data = make_round(policy, PAIRS)
    data.tensors["ref_logprobs"] = torch.full((8, 40), -0.5)
    batch = data.collate([2, 0])
    wanted = frozenset({"chosen_logprobs", "ref_rejected_logprobs", "chosen_lengths", "rating"})
    tensors, pair_group = assemble(policy, data, batch, wanted)
    assert pair_group.tolist() == [0, 1]
    alone, _ = assemble(policy, data, data.collate([2]), wanted)
    torch.testing.assert_close(tensors["chosen_logprobs"][0], alone["chosen_logprobs"][0], rtol=0, atol=1e-4)
    assert tensors["chosen_lengths"].tolist() == [len("yes" * 3) + 1, len("yes") + 1]
    assert tensors["ref_rejected_logprobs"].tolist() == [-0.5 * (len("no" * 2) + 1), -0.5 * (len("no" * 4) + 1)]
    assert tensors["rating"].tolist() == [1, 1]


def test_nan_stops_before_the_step():
    def bad(logprobs):
        return logprobs * float("nan")

    policy = tiny()
    before = [p.clone() for p in policy.parameters()]
    with pytest.raises(NumericError, match="not finite"):
        one_step(policy, DEMOS, bad, Term(), 10**6)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_infinite_gradient_stops_before_the_step():
    def steep(logprobs):
        return (logprobs - logprobs.detach()).abs().sqrt()  # 0, with an infinite slope

    policy = tiny()
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
    policy = tiny()
    policy.add_value_head()
    data = make_round(policy, DEMOS)
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


# -- rounds of improve -------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Imitates(PolicyOptimizer):
    """Learns from its samples as they are."""

    samples_per_prompt: int = 2

    def prepare(self, groups, state):
        return Batch(groups)


PROMPTS = Groups.from_prompts([f"prompt number {i}" for i in range(5)])


def letters(response):
    return sum("a" <= c <= "z" for c in response) / max(len(response), 1)


LETTERS = FunctionReward(letters)


def rollouts(policy, optimizer, *, reward=LETTERS, annotator=None, max_missing=0.05, **changes):
    """The rounds by which `policy` is improved; the models among `changes` take their place beside it."""
    models = {"behaviour": policy, "reference": Reference(Policy.load("tiny"))}
    models |= {key: changes.pop(key) for key in ("reference", "value_model") if key in changes}
    made = {
        "losses": [bound(optimizer.loss)],
        "sampler": Sampler(max_new_tokens=12, temperature=optimizer.temperature),
        "prompts": PROMPTS,
        "setting": Setting(seed=(0, "stage"), max_tokens=120),
        "max_response_tokens": 64,
    } | changes
    judging = Judging(made["setting"], reward, annotator, max_missing)
    return improvement(optimizer, models=Models(policy, **models), judging=judging, **made)


def learn(source, policy, optimizer, rows):
    config = Training(**{f: getattr(optimizer, f) for f in Training.__dataclass_fields__})
    learner = Learner(
        policy,
        bound(optimizer.loss),
        optimizer.terms(),
        config,
        source,
        temperature=optimizer.logprob_temperature,
        record=rows.append,
    )
    fit(learner, precision="32-true", trainer={"accelerator": "cpu"})
    return learner


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ratio_is_exactly_one_before_the_first_step_of_a_round(temperature, drop):
    """P1, bitwise, also where `prepare` kept only some of the groups."""
    policy, optimizer = tiny(), Plain(temperature=temperature, drop=drop)
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
    policy, rows = tiny(), []
    optimizer = Plain()
    source = rollouts(policy, optimizer)
    learn(source, policy, optimizer, rows)
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
    policy, reference = tiny(), Policy.load("tiny")
    optimizer = Plain(rounds=1)
    before = [p.clone() for p in reference.parameters()]
    source = rollouts(policy, optimizer, reference=Reference(reference))
    learn(source, policy, optimizer, [])
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in reference.parameters())
    moved = Policy.load("tiny")
    assert any(not torch.equal(a, b) for a, b in zip(policy.parameters(), moved.parameters(), strict=True))


def test_same_seed_same_bytes_and_another_differs():
    def end(seed):
        policy, optimizer = tiny(), Plain(rounds=1)
        learn(rollouts(policy, optimizer, setting=Setting((seed, "stage"), 120)), policy, optimizer, [])
        return torch.cat([p.flatten() for p in policy.parameters()])

    assert torch.equal(end(0), end(0))
    assert not torch.equal(end(0), end(1))


def test_missing_rewards_stop_the_round_with_the_reason():
    def never(response):
        return None

    optimizer = Plain(rounds=1)
    source = rollouts(tiny(), optimizer, reward=FunctionReward(never))
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
        rollouts(tiny(), Plain(), sampler=Cut())


def test_history_is_scored_again_by_the_current_reward():
    """A score given by an older reward model does not compete with the current one's."""
    old = Groups.from_rows([{"prompt": "p", "responses": ["abc"], "rewards": {"letters": [99.0]}, "iteration": 1}])
    source = rollouts(tiny(), Plain(), history=old)
    assert source.prepare.earlier().rewards("letters")[0] == [[1.0]]


def test_dropped_groups_are_sampled_anew():
    calls = []

    @dataclass(frozen=True)
    class Picky(Plain):
        def keep(self, groups):
            calls.append(len(groups))
            return [len(calls) > 1 or i > 0 for i in range(len(groups))]

    source = rollouts(tiny(), Picky(rounds=1))
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

    rollouts(tiny(), Picky(rounds=1)).collect(0)
    assert set(names) == {"letters"}


@pytest.mark.parametrize(("every", "draws"), [(1, [0, 1, 2, 3]), (2, [0, 0, 1, 1]), (0, [0, 0, 0, 0])])
def test_rounds_that_share_their_samples(every, draws):
    source = rollouts(tiny(), Imitates(rounds=4, sample_every=every, prompts_per_round=2))
    seen = [source.collect(index) for index in range(4)]
    texts = [[row["responses"] for row in groups] for groups in seen]
    assert [texts.index(t) for t in texts] == [draws.index(d) for d in draws]
    assert len(source.collect.sampled) == len(set(draws))


def test_a_lap_with_shared_samples_still_draws_each_prompt():
    assert rollouts(tiny(), Imitates(rounds=0, sample_every=2, prompts_per_round=2)).count == 6


def test_epochs_stop_when_the_method_says_so():
    @dataclass(frozen=True)
    class Brief(Plain):
        def stop_epochs(self, metrics):
            return True

    policy, rows = tiny(), []
    optimizer = Brief(rounds=2)
    learn(rollouts(policy, optimizer), policy, optimizer, rows)
    assert [r["round"] for r in rows] == [0, 1]


def test_early_stopping_puts_the_best_round_back():
    policy = tiny()
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


def test_prompts_of_rounds_go_around_all():
    source = rollouts(tiny(), Plain(prompts_per_round=2, rounds=5))
    taken = [row["prompt_id"] for index in range(5) for row in source.collect.round_prompts(index)]
    assert sorted(taken[:5]) == sorted(set(taken))
    assert sorted(taken) == sorted([row["prompt_id"] for row in PROMPTS] * 2)


# -- named states ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A base folder, an adapter on it (as after supervised fine-tuning), and probe log-probs of both."""
    folder = tmp_path_factory.mktemp("states")
    Policy.load("tiny").save(folder / "base")
    adapted = Policy.load(folder / "base", lora=LoRA(r=4), trainable=True)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    adapted.save(folder / "sft")
    return folder


def probe(policy, state=None):
    data = make_round(policy, DEMOS)
    batch = data.collate(range(len(DEMOS)))
    if state is None:
        with torch.no_grad():
            return policy.tensors(batch)["logprobs"]
    with policy.state(state):
        return policy.tensors(batch)["logprobs"]


def test_reference_is_a_named_state_never_adapter_off(states):
    """Where V0 is itself an adapter, the reference must be that adapter, not the bare base."""
    policy = Policy.load(states / "sft", lora=LoRA(r=4), trainable=True)
    assert policy.add_state("v0", states / "sft")
    assert policy.add_state("base", states / "base")
    torch.testing.assert_close(probe(policy, "v0"), probe(Policy.load(states / "sft")), rtol=0, atol=1e-6)
    torch.testing.assert_close(probe(policy, "base"), probe(Policy.load(states / "base")), rtol=0, atol=1e-6)
    assert (probe(policy, "v0") - probe(policy, "base")).abs().max() > 0.05
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B.default" in name:
                parameter.zero_()
    torch.testing.assert_close(probe(policy, "v0"), probe(Policy.load(states / "sft")), rtol=0, atol=1e-6)
    torch.testing.assert_close(probe(policy), probe(Policy.load(states / "base")), rtol=0, atol=1e-6)


def test_switching_states_leaves_gradients_where_they_were(states):
    policy = Policy.load(states / "sft", lora=LoRA(r=4), trainable=True)
    policy.add_state("v0", states / "sft")
    before = {n: p.requires_grad for n, p in policy.named_parameters()}
    assert any(before.values())
    assert not any(flag for n, flag in before.items() if "lora_" not in n or ".default." not in n)
    probe(policy, "v0")
    assert {n: p.requires_grad for n, p in policy.named_parameters()} == before
    with policy.generating():
        pass
    assert {n: p.requires_grad for n, p in policy.named_parameters()} == before


def test_generation_folds_the_adapter_and_gives_the_same_tensors_back(states):
    policy = Policy.load(states / "sft")
    inside = probe(policy)
    weights = {n: p.data_ptr() for n, p in policy.named_parameters()}
    with policy.generating() as model:
        ids = torch.tensor([policy.chat.encode_prompt([{"role": "user", "content": "x"}])])
        folded = model(ids).logits
    assert {n: p.data_ptr() for n, p in policy.named_parameters()} == weights
    assert torch.equal(probe(policy), inside)
    with torch.no_grad():
        torch.testing.assert_close(policy.model(ids).logits, folded, rtol=0, atol=2e-5)  # 3e-6 measured


def test_another_base_is_not_a_state(states, tmp_path):
    other = Policy.load("tiny")
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    other.save(tmp_path / "other")
    policy = Policy.load(states / "sft", lora=LoRA(r=4), trainable=True)
    assert not policy.add_state("v0", tmp_path / "other")
    with pytest.raises(ConfigError, match="no state"), policy.state("v0"):
        pass


def test_changed_base_is_refused(states, tmp_path):
    import shutil

    shutil.copytree(states, tmp_path / "copy")
    changed = Policy.load(tmp_path / "copy" / "base")
    with torch.no_grad():
        next(changed.parameters()).add_(1.0)
    changed.save(tmp_path / "copy" / "base")
    with pytest.raises(ConfigError, match="was trained on base"):
        Policy.load(tmp_path / "copy" / "sft")


def test_export_merges_into_a_plain_folder(states, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = Policy.load(states / "sft")
    policy.export(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    ids = torch.tensor([policy.chat.encode_prompt([{"role": "user", "content": "hello"}])])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, policy.model(ids).logits, rtol=0, atol=2e-5)
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert not list((tmp_path / "plain").glob("*.bin"))


# -- reward models -----------------------------------------------------------------------------------------------------


def test_scores_are_read_at_the_last_token_whatever_pad_is(states):
    """P11: with pad = EOS, transformers would read one token too early."""
    model = RewardModel.from_policy(states / "base", seed=1)
    data = make_round(model, PAIRS)
    scores = {}
    for pad in (model.chat.pad_id, model.chat.end_ids[0], 5):
        data.pad_id = pad
        batch = data.collate(range(4))
        with torch.no_grad():
            scores[pad] = model.scores(batch)
    values = list(scores.values())
    assert all(torch.equal(values[0], other) for other in values[1:])
    ids = torch.tensor([data.encoded[1].prompt_ids + data.encoded[1].responses[0]])
    with torch.no_grad():
        hidden = model.body(ids).last_hidden_state[0, -1]
        torch.testing.assert_close(values[0][2], model.head(hidden)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_reward_model_is_saved_and_loaded_as_it_was(states, tmp_path, lora):
    model = RewardModel.from_policy(states / "sft", lora=lora, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim == 2 and parameter.numel() < 5000:
                parameter.add_(0.02)
    data = make_round(model, PAIRS)
    batch = data.collate(range(4))
    folder = tmp_path / "rm"
    model.save(folder)
    again = RewardModel.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(again.scores(batch), model.scores(batch), rtol=0, atol=1e-6)
        with again.scoring():
            torch.testing.assert_close(again.scores(batch), model.scores(batch), rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in again.parameters())


def test_foreign_classifier_goes_through_its_own_forward(tmp_path):
    """An encoder with a classification head of its own: not pooled by us, one row per response."""
    from transformers import BertConfig, BertForSequenceClassification

    from alignkit.models.tiny_tokenizer import tiny_tokenizer

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = RewardModel.load(tmp_path)
    assert not model.pools_here
    assert not model.shares_prompts
    data = make_round(model, PAIRS)
    batch = data.collate([0])
    ids = torch.tensor([data.encoded[0].prompt_ids + data.encoded[0].responses[1]])
    with torch.no_grad():
        torch.testing.assert_close(model.scores(batch)[1], model.model(ids).logits[0, 0], rtol=0, atol=1e-5)


# -- precision, checkpointing, value models ----------------------------------------------------------------------------


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
    assert all(peeked(tiny(), Plain(rounds=2), precision="bf16-mixed"))


def test_ratio_is_one_and_gradient_the_same_with_gradient_checkpointing():
    assert all(peeked(tiny(), Plain(rounds=2), checkpointing=True))

    def gradients(checkpointing):
        policy = tiny()
        data = make_round(policy, DEMOS)
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
    policy, rows = tiny(), []
    optimizer = Valued(rounds=3, value_learning_rate=3e-2)
    value_model = None
    if kind == "head":
        policy.add_value_head()
    else:
        value_model = tiny()
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
