"""Precisions: what is rounded to bfloat16 is what was asked for, and nothing that learns or scores."""

from __future__ import annotations

import gc
import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from alignkit import ConfigError, Groups, LoRA, Run, Term, use
from alignkit.engine.learner import Learner
from alignkit.engine.losses import nll
from alignkit.models import Policy, RewardModel, forward, ways
from alignkit.models.adamw import FloatAdamW
from alignkit.models.head import one_number, token_logprobs
from alignkit.models.tiny import tiny_model
from alignkit.sampling import sampler
from alignkit.testing import DEMOS, PAIRS, TEXTS, one_step, tiny_policy, training_data

CPU = {"accelerator": "cpu"}


def test_what_is_too_small_for_bfloat16_adds_up():
    """Twenty steps of 1e-5 on weights of 0.5 (spacing 2e-3) are those of float32, rounded once; the moments too."""
    plain, rounded = (nn.Parameter(torch.full((4,), 0.5, dtype=kind)) for kind in (torch.float32, torch.bfloat16))
    options: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-5}
    one, other = torch.optim.AdamW([plain], **options), FloatAdamW([{"params": [rounded]}], **options)
    for step in range(20):
        gradient = torch.tensor([1.0, -1.0, 0.25, 2.0**-20]) * (1 + step % 3)
        plain.grad, rounded.grad = gradient.clone(), gradient.bfloat16()
        one.step()
        other.gather()
        other.step()
        other.zero_grad()
    (_, copy) = other.copies[0]
    torch.testing.assert_close(copy, plain, rtol=0, atol=0)
    assert torch.equal(rounded, plain.bfloat16())
    assert rounded[0] < 0.49 < 0.51 < rounded[1]
    assert {value.dtype for value in other.state[copy].values()} == {torch.float32}


def test_gradients_of_a_step_are_summed_in_float32():
    """256 and 1 are 257 in float32, and 256 in bfloat16."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = FloatAdamW([{"params": [weight]}])
    for gradient in (256.0, 1.0):
        weight.grad = torch.tensor([gradient], dtype=torch.bfloat16)
        optimizer.gather()
    assert [p.grad.item() for p in optimizer.with_gradient([weight])] == [257.0]
    assert weight.grad is None


def test_weights_in_float32_are_learned_in_place():
    weight = nn.Parameter(torch.zeros(1))
    assert FloatAdamW([{"params": [weight]}]).param_groups[0]["params"][0] is weight


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_weights_that_were_loaded_get_memory_of_their_own(tmp_path, kind):
    """A step on a file's memory copies it page by page, and would take twenty times as long."""
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.arange(12, dtype=kind).view(4, 3), "frozen": torch.ones(4, dtype=kind)}, file)
    before, states = file.read_bytes(), load_file(file)
    one, other = nn.Linear(3, 4, bias=False), nn.Linear(3, 4)
    one.weight = other.weight = weight = nn.Parameter(states["weight"])
    other.bias = frozen = nn.Parameter(states["frozen"], requires_grad=False)
    places, values = (weight.data_ptr(), frozen.data_ptr()), weight.detach().clone()
    optimizer = FloatAdamW([{"params": [weight]}], lr=0.1)
    assert optimizer.param_groups[0]["params"][0] is one.weight is other.weight is weight
    assert weight.data_ptr() != places[0]
    assert frozen.data_ptr() == places[1]  # no copy of what is not learned
    assert torch.equal(weight, values)
    assert weight.requires_grad
    (one(torch.ones(1, 3, dtype=kind)) + other(torch.ones(1, 3, dtype=kind))).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, 2.0))
    optimizer.step()
    assert not torch.equal(weight, values)
    assert torch.equal(states["weight"], values)
    assert file.read_bytes() == before


@pytest.mark.parametrize("lora", [None, LoRA(r=2)])
def test_bf16_true_keeps_adapters_heads_and_rotary_tables_in_float32(tmp_path, lora):
    """And so a policy is its own reference: before any step DPO's loss is ln 2."""
    with Run(tmp_path / "r", quiet=True, precision="bf16-true", trainer=CPU) as run:
        v0 = run.policy("tiny", lora=lora)
        made = run.improve(v0, PAIRS, optimizer=use("dpo", batch_size=2), reference=v0, name="v1")
    first = json.loads((made.policy.path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    policy = made.policy.load(lora=lora, trainable=True, dtype=torch.bfloat16)
    policy.add_value_head()
    kinds = {name: {t.dtype for n, t in policy.named_parameters() if name in n} for name in ("lora_", "value_head")}
    assert kinds == {"lora_": {torch.float32} if lora else set(), "value_head": {torch.float32}}
    for each in (policy, Policy.load("tiny", dtype=torch.bfloat16)):
        assert {b.dtype for b in each.buffers() if b.is_floating_point()} == {torch.float32}
    assert policy.model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_lightning_casts_nothing():
    """Whatever the precision is called, the learner's tensors are as they were loaded."""
    from alignkit.engine.fit import fit
    from alignkit.engine.lesson import OneRound
    from alignkit.optimizers import Training
    from alignkit.testing import bound

    policy = Policy.load("tiny", lora=LoRA(r=2), trainable=True, dtype=torch.bfloat16)
    before = {name: tensor.dtype for name, tensor in [*policy.named_parameters(), *policy.named_buffers()]}
    assert {*before.values()} == {torch.bfloat16, torch.float32}
    data = training_data(policy, DEMOS)
    steps = data.steps(0, 1, 10**6, (0, "order"))
    learner = Learner(policy, bound(nll), {"loss": Term()}, Training(), OneRound(data, steps))
    fit(learner, precision="bf16-true", trainer=CPU)
    assert learner.steps_done == 1
    assert before == {name: tensor.dtype for name, tensor in [*policy.named_parameters(), *policy.named_buffers()]}


def test_16_true_is_refused_for_what_trains_before_a_model_is_loaded(tmp_path, monkeypatch):
    with Run(tmp_path / "r", quiet=True, precision="16-true", trainer=CPU) as run:
        v0 = run.policy("tiny", lora=None)
        monkeypatch.setattr(Policy, "load", lambda *_, **__: pytest.fail("loaded"))
        for verb in (
            lambda: run.sft(v0, DEMOS),
            lambda: run.train_reward(v0, PAIRS, loss="pairwise_ranking"),
            lambda: run.improve(v0, PAIRS, optimizer=use("dpo"), reference=v0),
        ):
            with pytest.raises(ConfigError, match=r"16-true does not train.*bf16-true"):
                verb()
        monkeypatch.undo()
        assert len(run.sample(v0, Groups.from_prompts(["a"]), max_new_tokens=2).groups) == 1


@pytest.mark.parametrize(
    ("kind", "gap", "within"), [(torch.bfloat16, 1e-2, 0.02), (torch.bfloat16, 1e-4, 0.02), (torch.float32, 1e-6, 1e-4)]
)
def test_the_gradient_of_a_confident_token_is_not_lost_in_rounding(kind, gap, within):
    """(onehot - p) W, of a token of probability 1 - `gap`, against float64 from the same weights."""
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=False).to(kind).requires_grad_(False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(50, 16))
    wanted = torch.arange(3)
    direction = nn.functional.normalize(head.weight[wanted].double(), dim=-1)

    low, high = torch.full((3, 1), 0.1).double(), torch.full((3, 1), 100.0).double()
    for _ in range(60):  # how long each state must be is sought by halving
        middle = (low + high) / 2
        logprobs = torch.log_softmax(middle * direction @ head.weight.double().T, -1)
        short = -torch.expm1(logprobs.gather(-1, wanted.unsqueeze(-1))) > gap
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    hidden = (low * direction).to(kind).requires_grad_(True)
    (found,) = torch.autograd.grad(token_logprobs(head, hidden, wanted).logprobs.sum(), hidden)
    probs = head(hidden).detach().double().softmax(-1)  # of the logits as the forward pass has them
    weight = head.weight.double()
    exact = probs.clone()
    exact[range(3), wanted] = 0  # 1 - p without a difference, which float64 would lose here and there too
    right = exact.sum(-1, keepdim=True) * weight[wanted] - exact @ weight
    torch.testing.assert_close(
        found.double(), right, rtol=within, atol=within * float(right.abs().max(-1).values.min())
    )


def test_a_score_is_no_bfloat16_number_under_autocast():
    torch.manual_seed(0)
    head, hidden = nn.Linear(64, 1), torch.randn(40, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = one_number(head, hidden)
        policy = tiny_policy()
        policy.add_value_head()
        nn.init.normal_(policy.value_head.linear.weight)
        values = policy.value_head(hidden)
    torch.testing.assert_close(found, head(hidden).squeeze(-1), rtol=0, atol=0)
    assert not torch.equal(values, values.bfloat16().float())


def test_reward_models_score_in_float32_under_a_mixed_precision():
    model = RewardModel.from_policy("tiny", seed=1)
    batch = training_data(model, PAIRS).collate(range(4))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model.scores(batch)
    assert not bool((scores == scores.bfloat16().float()).any())


def test_a_saved_score_head_comes_back_as_it_was_under_bf16_true(tmp_path):
    model = RewardModel.from_policy("tiny", seed=1, dtype=torch.bfloat16)
    model.save(tmp_path)
    again = RewardModel.load(tmp_path, dtype=torch.bfloat16)
    assert again.body.get_input_embeddings().weight.dtype == torch.bfloat16
    torch.testing.assert_close(again.head.weight, model.head.weight, rtol=0, atol=0)


def test_models_are_gone_with_their_last_name_after_training():
    """Without the collector of circles: the memory of a GPU does not wait for it."""
    gc.collect()
    gc.disable()
    try:
        policy = tiny_policy()
        learner = one_step(policy, DEMOS, nll, Term())
        held = [id(p) for p in policy.parameters()]
        del policy, learner
        left = [t for t in gc.get_objects() if isinstance(t, nn.Parameter) and id(t) in held]
        assert not left
    finally:
        gc.enable()


def test_after_training_the_model_is_put_back_where_it_was_trained(monkeypatch):
    events = []
    cpu, to = Learner.cpu, Learner.to
    monkeypatch.setattr(Learner, "cpu", lambda self: (events.append("taken away"), cpu(self))[1])
    monkeypatch.setattr(Learner, "to", lambda self, *args: (events.append(str(args[0])), to(self, *args))[1])
    one_step(tiny_policy(), DEMOS, nll, Term())
    assert events[-2:] == ["taken away", "cpu"]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_fused_step_is_the_plain_one(decay):
    torch.manual_seed(0)
    weights = [torch.randn(40, 30), torch.randn(7), torch.randn(30, 3).bfloat16()]
    results = []
    for fused in (None, False):
        parameters = [nn.Parameter(each.clone()) for each in weights]
        options = {} if fused is None else {"fused": fused}
        groups = [{"params": parameters, "weight_decay": decay}]
        optimizer = FloatAdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-5, **options)
        assert optimizer.defaults["fused"] is (fused is None)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            optimizer.gather()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        results.append([parameter.detach() for parameter in parameters])
    for mine, theirs, start in zip(*results, weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        assert not torch.equal(mine, start)


@pytest.mark.parametrize(("precision", "computed"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_what_is_computed_outside_a_fit_is_so_as_the_steps_are(tmp_path, monkeypatch, precision, computed):
    """It was float32 in a run of bf16-mixed, but within `improve`."""
    seen = set[torch.dtype]()

    def note() -> None:
        seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)

    def spied(module: Any, name: str) -> None:
        once = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: (note(), once(*args, **kwargs))[1])

    def types_of(call: Any) -> set[torch.dtype]:
        seen.clear()
        call()
        return set(seen)

    def asks(groups: Groups, ctx: Any) -> Groups:
        return ctx.sample(groups)

    def ranking(chosen_rewards: Any, rejected_rewards: Any) -> Any:
        return -nn.functional.logsigmoid(chosen_rewards - rejected_rewards)

    def judges(groups: Groups) -> Groups:
        note()
        return groups

    prompts = PAIRS.without_responses()
    with Run(tmp_path, quiet=True, precision=precision) as run:
        v0 = run.policy("tiny", lora=None)
        reward = run.train_reward(v0, PAIRS, loss=ranking, batch_size=2)
        spied(sampler, "decode")
        spied(forward, "hidden_states")
        few = {"max_new_tokens": 3}
        found = {
            "sample": types_of(lambda: run.sample(v0, prompts, **few)),
            "score": types_of(lambda: run.score(PAIRS, reward)),
            "evaluate": types_of(lambda: run.evaluate(v0, prompts, {"reward": reward}, reference=v0, **few)),
            "transform": types_of(lambda: run.transform(prompts, asks, policy=v0)),
            "annotate": types_of(lambda: run.annotate(PAIRS, judges)),
            "train_reward": types_of(lambda: run.train_reward(v0, PAIRS, loss=ranking, heldout_fraction=0.5, name="m")),
            "sft": types_of(lambda: run.sft(v0, TEXTS, heldout_fraction=0.5, batch_size=2)),
        }
    assert found == {verb: {computed} for verb in found}


def test_how_a_model_is_read_is_tried_without_rounding(monkeypatch):
    """Under autocast shared prompts differ by more than a probe allows, and would be refused for good."""
    for module, name in ((forward, "_PROBED"), (ways, "_KNOWN")):
        monkeypatch.setattr(module, name, {})
    monkeypatch.setattr(forward, "PROVEN", frozenset())
    monkeypatch.setattr(ways, "_found", lambda model, where: torch.is_autocast_enabled("cpu"))
    model, _ = tiny_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert forward.can_share_prompts(model)
        assert forward.can_pack_rows(model)
        assert ways.ways_of(model, "tiny") is False
