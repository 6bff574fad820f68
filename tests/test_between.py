"""What lies between the products of a layer: values are the family's own bit for bit, gradients by rounding."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignkit.models import adapted, between, forward, lean, lower
from alignkit.models.between import gated, normed


def _beside(name):
    """Another test's module: these lie in no package."""
    spec = importlib.util.spec_from_file_location(f"_{name}", Path(__file__).with_name(f"{name}.py"))
    found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


_lean = _beside("test_lean")
FAMILIES, OTHERS, model_of = _lean.FAMILIES, _lean.OTHERS, _lean.model_of

IDS = torch.tensor([[7, 3, 11, 19, 5], [4, 13, 8, 40, 41]])
"""Ten rows: no multiple of three, which a block has here."""


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch):
    monkeypatch.setattr(between, "ROWS", 3)


def pair(family="llama", **changes):
    """(a model as its family has it, the same routed), of which all weights are learned."""
    own = model_of(family, **changes).requires_grad_(True)
    with torch.no_grad():
        for weights in own.parameters():
            if weights.ndim >= 2:
                weights.mul_(0.25)  # states of a size for which gradients are no matter of luck
    routed = copy.deepcopy(own)
    between.route(routed)
    return own, routed


def routed_parts(model):
    return [name for name, each in model.named_modules() if isinstance(each, between._Routed)]


def learned(model, mixed=False, ids=IDS):
    """(logits, loss, gradients by name)."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = model(ids, labels=ids, use_cache=False)
    found.loss.backward()
    return found.logits.detach(), found.loss.detach(), {name: w.grad for name, w in model.named_parameters()}


def near(found, wanted, allowed):
    """Gradients by name, by the size of each."""
    assert found.keys() == wanted.keys()
    for name, right in wanted.items():
        if right is None:
            assert found[name] is None, name
            continue
        assert found[name].dtype is right.dtype
        off = (found[name] - right).norm() / right.norm()
        assert off <= allowed, (name, float(off))


def off(found, exact):
    """How far all gradients are off, by their size."""
    return sum((found[name] - exact[name]).norm() / exact[name].norm() for name in exact if "k_proj.bias" not in name)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_the_families_own_and_gradients_too(family):
    assert family in lower.FAMILIES
    own, routed = pair(family)
    layers = range(len(own.model.layers))
    parts = ("mlp", "input_layernorm", "post_attention_layernorm")
    assert set(routed_parts(routed)) == {f"model.layers.{n}.{part}" for n in layers for part in parts}
    logits, loss, gradients = learned(routed)
    own_logits, own_loss, own_gradients = learned(own)
    assert torch.equal(logits, own_logits)
    assert torch.equal(loss, own_loss)
    assert all(own_gradients[name].norm() > 0 for name in own_gradients if not name.endswith("k_proj.bias"))
    near({n: g for n, g in gradients.items() if not n.endswith("k_proj.bias")},
         {n: g for n, g in own_gradients.items() if not n.endswith("k_proj.bias")}, 1e-5)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_values_are_the_same_and_gradients_differ_by_rounding(family):
    own, routed = pair(family)
    logits, loss, gradients = learned(routed, mixed=True)
    own_logits, own_loss, own_gradients = learned(own, mixed=True)
    assert torch.equal(logits, own_logits)
    assert torch.equal(loss, own_loss)
    kept = [name for name in gradients if not name.endswith("k_proj.bias")]  # 0 but for rounding
    near({name: gradients[name] for name in kept}, {name: own_gradients[name] for name in kept}, 0.03)
    exact = learned(own)[2]
    assert off(gradients, exact) <= 1.1 * off(own_gradients, exact)


def test_norms_give_the_type_of_the_products_that_read_them():
    _, routed = pair()
    seen = {}
    names = ("model.layers.0.input_layernorm", "model.layers.1.post_attention_layernorm", "model.norm")
    for name in names:
        routed.get_submodule(name).register_forward_hook(
            lambda _module, _given, found, name=name: seen.__setitem__(name, found.dtype)
        )
    for mixed, low in ((True, torch.bfloat16), (False, torch.float32)):
        learned(routed, mixed)
        assert seen == dict(zip(names, (low, low, torch.float32), strict=True))  # a score is read from the last one


def test_without_gradients_values_are_the_same():
    own, routed = pair()
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            with torch.no_grad():
                assert torch.equal(routed(IDS).logits, own(IDS).logits)
            frozen = [each.requires_grad_(False)(IDS).logits for each in (routed, own)]
            assert torch.equal(*frozen)
            assert not frozen[0].requires_grad
            for each in (routed, own):
                each.requires_grad_(True)


def _of_formulas(x, weight, epsilon):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon))


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_norm_and_unit_are_their_formulas(rows):
    generator = torch.Generator().manual_seed(0)
    x, up = (torch.randn(rows, 64, generator=generator) for _ in range(2))
    weight = torch.randn(64, generator=generator)
    assert torch.equal(normed(x, weight, 0.1, torch.float32), _of_formulas(x, weight, 0.1))
    low = normed(x, weight, 0.1, torch.bfloat16)
    assert torch.equal(low, _of_formulas(x, weight, 0.1).bfloat16())
    assert torch.equal(gated(x, up), nn.functional.silu(x) * up)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_float64(kind):
    """Of slopes that are not contiguous too."""
    generator = torch.Generator().manual_seed(0)
    x, up = (torch.randn(2, 5, 64, generator=generator).requires_grad_() for _ in range(2))
    weight = torch.randn(64, generator=generator).requires_grad_()
    slopes = torch.randn(64, 5, 2, generator=generator).to(kind)
    found = torch.autograd.grad(between._Norm.apply(x, weight, 0.1, kind), (x, weight), slopes.permute(2, 1, 0))
    exact = [each.detach().double().requires_grad_() for each in (x, weight, up)]
    wanted = torch.autograd.grad(_of_formulas(exact[0], exact[1], 0.1), exact[:2], slopes.double().permute(2, 1, 0))
    for mine, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-5, atol=1e-5)
    gate, other = (each.detach().to(kind).requires_grad_() for each in (x, up))
    found = torch.autograd.grad(between._Gated.apply(gate, other), (gate, other), slopes.permute(2, 1, 0))
    own = torch.autograd.grad(nn.functional.silu(gate) * other, (gate, other), slopes.permute(2, 1, 0))
    for mine, right in zip(found, own, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-6 if kind is torch.float32 else 0.0, atol=1e-6)


def test_states_that_are_not_contiguous_go_the_familys_own_way():
    own, routed = (each.model.layers[0] for each in pair())
    states = torch.randn(32, 5, 2).permute(2, 1, 0)
    assert not states.is_contiguous()
    assert torch.equal(routed.input_layernorm(states), own.input_layernorm(states))
    assert torch.equal(routed.mlp(states), own.mlp(states))
    routed.mlp.gate_proj = own.mlp.gate_proj = Turned(own.mlp.gate_proj)
    assert not own.mlp.gate_proj(states).is_contiguous()
    assert torch.equal(routed.mlp(states), own.mlp(states))


class Turned(nn.Module):
    """A product that lies otherwise in memory."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        return self.inner(states).transpose(-1, -2).contiguous().transpose(-1, -2)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_weights_of_other_types_go_the_familys_own_way(kind, monkeypatch):
    own, routed = (each.to(kind) for each in pair())
    monkeypatch.setattr(between, "normed", None)
    logits, loss, gradients = learned(routed)
    own_logits, own_loss, own_gradients = learned(own)
    assert torch.equal(logits, own_logits)
    assert torch.equal(loss, own_loss)
    assert all(torch.equal(gradients[name], own_gradients[name]) for name in gradients)


def test_a_second_route_does_nothing():
    _, routed = pair()
    before = [type(each) for each in routed.modules()]
    adapted.route_all(routed)
    between.route(routed)
    between.route(routed)
    after = [type(each) for each in routed.modules()]
    assert all(new is old for old, new in zip(before, after, strict=True) if old is not nn.Linear)


def test_all_is_routed_where_linear_layers_are():
    own, _ = pair()
    adapted.route_all(own)
    between.route(own)
    assert len(routed_parts(own)) == 6


def test_another_activation_keeps_the_familys_unit():
    own, routed = pair(hidden_act="gelu")
    assert len(routed_parts(routed)) == 4
    assert all(type(layer.mlp) is type(other.mlp)
               for layer, other in zip(routed.model.layers, own.model.layers, strict=True))  # fmt: skip
    assert torch.equal(learned(routed)[1], learned(own)[1])


@pytest.mark.parametrize("change", OTHERS)
def test_a_layer_with_something_else_in_it_is_left_alone(change):
    model, _ = pair()
    OTHERS[change](model.model.layers[0])
    own = copy.deepcopy(model)
    between.route(model)
    assert {name.split(".")[2] for name in routed_parts(model)} == {"1"}
    try:
        wanted = learned(own)[1]
    except (RuntimeError, TypeError):
        return  # what was put in there does not fit: nothing to compare
    assert torch.equal(learned(model)[1], wanted)


def test_families_that_are_not_known_are_left_alone():
    model = model_of("llama")
    model.config.model_type = "gemma"  # whose norm multiplies by one more than its weight
    between.route(model)
    between.route(nn.Linear(2, 2))
    assert routed_parts(model) == []


def test_frozen_norms_get_no_gradient():
    both = pair()
    for model in both:
        for name, weights in model.named_parameters():
            weights.requires_grad_("norm" not in name)
    (_, loss, gradients), (_, own_loss, own_gradients) = learned(both[1]), learned(both[0])
    assert torch.equal(loss, own_loss)
    assert gradients["model.layers.0.input_layernorm.weight"] is None
    near(gradients, own_gradients, 1e-5)


def test_norms_alone_are_learned():
    both = pair()
    for model in both:
        for name, weights in model.named_parameters():
            weights.requires_grad_("layernorm" in name)
    (_, loss, gradients), (_, own_loss, own_gradients) = learned(both[1]), learned(both[0])
    assert torch.equal(loss, own_loss)
    assert gradients["model.layers.0.input_layernorm.weight"].norm() > 0
    near(gradients, own_gradients, 1e-5)


@pytest.mark.parametrize("mixed", [False, True])
def test_under_adapters(mixed):
    config = LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = get_peft_model(pair()[0], config)
    routed = copy.deepcopy(own)
    between.route(routed)
    assert len(routed_parts(routed)) == 6
    (logits, _, gradients), (own_logits, _, own_gradients) = learned(routed, mixed), learned(own, mixed)
    assert torch.equal(logits, own_logits)
    assert any(each is not None for each in gradients.values())
    near(gradients, own_gradients, 0.05 if mixed else 1e-5)


def test_a_norm_that_is_wrapped_is_left_alone():
    """PEFT keeps a copy of what it trains beside adapters, and goes back to the first one without them."""
    own = get_peft_model(pair()[0], LoraConfig(target_modules=["q_proj"], modules_to_save=["input_layernorm"]))
    with torch.no_grad():
        for name, weights in own.named_parameters():
            if "modules_to_save" in name:
                weights.add_(1.0)
    routed = copy.deepcopy(own)
    between.route(routed)
    assert routed_parts(routed) == []
    assert torch.equal(routed(IDS).logits, own(IDS).logits)
    with own.disable_adapter(), routed.disable_adapter():
        assert torch.equal(routed(IDS).logits, own(IDS).logits)


def test_copies_of_a_routed_model_are_routed():
    own, routed = pair()
    with torch.no_grad():
        wanted = own(IDS).logits
        for each in (copy.deepcopy(routed), lean.detached(routed), pickle.loads(pickle.dumps(routed))):
            assert torch.equal(each(IDS).logits, wanted)
            assert routed_parts(each) == routed_parts(routed)
    assert all(lean.is_lean(layer) for layer in routed.model.layers)
    routed.load_state_dict(own.state_dict())


@pytest.mark.parametrize("mixed", [False, True])
def test_layers_that_are_computed_again(mixed):
    _, routed = pair()
    once = learned(routed, mixed)
    forward.checkpoint_layers(routed)
    again = learned(routed, mixed)
    assert torch.equal(once[1], again[1])
    assert all(torch.equal(once[2][name], again[2][name]) for name in once[2])
