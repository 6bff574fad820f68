"""Float32 products by oneDNN: the same numbers, in the same layers, with the same names."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from alignkit import Batch, PolicyOptimizer
from alignkit.engine.losses import nll
from alignkit.groups import Groups
from alignkit.models import LoRA, Policy, head, products
from alignkit.models.products import Linear, by_onednn, linear, mkl_is_slow, route
from alignkit.optimizers import Term
from alignkit.testing.learning import learn, one_step, rollouts, same_gradients


def ratio(logprobs, old_logprobs, ref_logprobs, advantages):
    return -(logprobs - old_logprobs).exp() * advantages + (logprobs - ref_logprobs) ** 2


@dataclass(frozen=True)
class Compares(PolicyOptimizer):
    loss: object = field(default=ratio)
    samples_per_prompt: int = 3
    rounds: int = 2
    learning_rate: float = 1e-2

    def prepare(self, groups, state, *, rewards, response_mask, logprobs):
        return Batch(groups, {"advantages": rewards.unsqueeze(1) * response_mask})


DEMOS = Groups.from_rows({"prompt": f"p {i}", "responses": ["x" * (1 + i % 4)]} for i in range(4))


@pytest.fixture
def calls(monkeypatch):
    """Counts the products that go through oneDNN."""
    seen = []
    plain = products.onednn
    monkeypatch.setattr(products, "onednn", lambda *given: seen.append(given) or plain(*given))
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (24,)])
def test_values_and_gradients_are_those_of_torch(bias, shape, calls):
    torch.manual_seed(0)
    layer = nn.Linear(24, 10, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(*shape[:-1], 10)
    results = []
    for forced in (True, False):
        with by_onednn(forced):
            found = linear(x, layer.weight, layer.bias)
            gradients = torch.autograd.grad((found * upstream).sum(), [x, *layer.parameters()])
        results.append([found, *gradients])
    assert len(calls) == 3  # the product and its two gradients, of the first alone
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_learns_the_same(lora, checkpointing, calls):
    """All weights or an adapter, whose layers are routed too; activations kept or computed again."""
    found = []
    for forced in (True, False):
        torch.manual_seed(0)
        policy = Policy.load("tiny", trainable=True, lora=lora)
        with by_onednn(forced):
            found.append(one_step(policy, DEMOS, nll, Term(), checkpointing=checkpointing).gradients)
    assert calls
    same_gradients(*found)


def test_what_is_routed_stays_what_it_was():
    policy = Policy.load("tiny", trainable=True, lora=LoRA(r=4))
    linears = [module for module in policy.model.modules() if isinstance(module, nn.Linear)]
    assert linears
    assert all(type(module) is Linear for module in linears)
    layer = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    route(layer)
    again = copy.deepcopy(layer)
    assert list(layer.state_dict()) == list(before)
    with torch.no_grad():
        again.weight.zero_()
    assert torch.equal(layer.weight, before["weight"])  # a copy's product is with its own weight
    assert not again(torch.ones(3)).equal(layer(torch.ones(3)))


def test_gpt2s_layers_take_the_same_way(calls):
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(6, 4)
    x = torch.randn(3, 4)
    wanted = layer(x)
    route(layer)
    with by_onednn(True):
        torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-6)
    assert calls


def test_under_autocast_in_other_types_and_where_small_torch_computes(calls, monkeypatch):
    x, weight = torch.randn(4, 8), torch.randn(6, 8)
    with by_onednn(True), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    with by_onednn(True):
        assert linear(x.double(), weight.double()).dtype == torch.float64
        assert linear(x[:0], weight).shape == (0, 6)
    monkeypatch.setattr(products, "mkl_is_slow", lambda wide: not wide)
    linear(x, weight)
    assert not calls
    monkeypatch.setattr(products, "LEAST", x.numel() * 6)
    linear(x, weight)
    assert len(calls) == 1
    monkeypatch.setattr(products, "WIDE", 6)
    linear(x, weight)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("maker", "flags", "slow", "wide"),
    [
        ("GenuineIntel", "avx2 avx512f", False, False),
        ("AuthenticAMD", "avx2 avx512f", True, True),
        ("AuthenticAMD", "avx2 fma", False, True),
        (None, "avx512f", False, False),
    ],
)
def test_the_processor_is_known_by_its_maker_and_what_it_can_do(tmp_path, maker, flags, slow, wide):
    file = tmp_path / "cpuinfo"
    lines = ([f"vendor_id\t: {maker}"] if maker else []) + [f"flags\t\t: fpu {flags}"]
    file.write_text("".join(f"processor : {n}\n" + "\n".join(lines) + "\n" for n in range(2)))
    for asked, found in ((False, slow), (True, wide)):
        assert mkl_is_slow(asked, str(file)) is (found and torch.backends.mkl.is_available())
        assert not mkl_is_slow(asked, str(tmp_path / "absent"))


def test_frozen_weights_are_cast_once_and_anew_where_they_change():
    layer = Linear(6, 5).requires_grad_(False)
    x = torch.randn(3, 6)

    def found():
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x), products.cast_once(layer.weight)

    plain, weight = found()
    assert weight is layer.weight
    with products.casts_kept():
        kept, low = found()
        assert torch.equal(kept, plain)
        assert low.dtype == torch.bfloat16
        assert found()[1] is low
        own = layer.weight.data
        for _ in range(3):  # as an adapter is folded in and taken out, whose memory may be that of the one before
            layer.weight.data = own + torch.randn_like(own)
            assert torch.equal(found()[1], layer.weight.bfloat16())
            layer.weight.data = own
            assert torch.equal(found()[1], low)
        with torch.no_grad():
            layer.weight.mul_(2)
        assert torch.equal(found()[1], layer.weight.bfloat16())
        layer.requires_grad_(True)
        assert found()[1] is layer.weight
    assert not products._casts


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_mixed_precision_learns_the_same_with_casts_kept(lora, monkeypatch):
    """Sampling with the adapter folded in, the pass before the steps, the reference and the steps: bit for bit."""
    found = []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(products, "cast_once", lambda weight: weight)
            monkeypatch.setattr(head, "cast_once", lambda weight: weight)
        torch.manual_seed(0)
        policy, optimizer = Policy.load("tiny", trainable=True, lora=lora), Compares()
        learn(rollouts(policy, optimizer), optimizer, precision="bf16-mixed")
        found.append([p.detach().clone() for p in policy.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
