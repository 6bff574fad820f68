"""A layer that learns in few passes: its states and gradients are its family's own, and no other layer is taken for
one."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import pickle
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignkit import Groups, Run
from alignkit.data.encode import EncodedGroup
from alignkit.engine import learner
from alignkit.models import adapted, attention, forward, layer, lower, products
from alignkit.models.batch import collate
from alignkit.models.head import token_logprobs


def _beside(name):
    """Another test's module: these lie in no package."""
    spec = importlib.util.spec_from_file_location(f"_{name}", Path(__file__).with_name(f"{name}.py"))
    found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


_lean = _beside("test_lean")
OTHERS, model_of = _lean.OTHERS, _lean.model_of

FAMILIES = ["llama", "mistral", "qwen2", "smollm3"]
GROUPS = [
    EncodedGroup([7, 3, 11, 19, 5, 9], [[6, 17, 9, 23], [8, 5], [21, 14, 30]], None, 0),
    EncodedGroup([7, 3, 40], [[1, 1, 2, 58, 7, 33, 12]], None, 1),
]
PACKED = collate(GROUPS, range(2), [0, 3], pad_id=0, packed=True)
PADDED = collate(GROUPS, range(2), [0, 3], pad_id=0, packed=False)
PIECES = attention.mask_of_pieces(PACKED.pieces, None)


def learns(family="llama", **changes):
    """A model of which all weights are learned, with states of a size for which gradients are no matter of luck."""
    model = model_of(family, **changes).requires_grad_(True)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim >= 2:
                weights.mul_(0.25)
    return model


def routed(model):
    found = copy.deepcopy(model)
    layer.route(found)
    return found


@pytest.fixture
def passes(monkeypatch):
    """Layers that went their fast way, once for each pass."""
    found, real = [], layer.through

    def through(own, *given):
        if given[-1] is not torch.float32:  # but for the pass that compares
            found.append(own)
        return real(own, *given)

    monkeypatch.setattr(layer, "through", through)
    return found


def learned(model, batch=PACKED, mixed=True, within=False, kind=torch.bfloat16):
    """(log-probs, gradients by name), the backward pass within autocast or not."""
    model.zero_grad()
    with torch.autocast("cpu", kind, enabled=mixed):
        states = forward.gather_hidden(forward.hidden_states(model, batch), batch)
        mask = batch.response_mask
        head = forward.bare(model).get_output_embeddings()
        found = token_logprobs(head, states[mask], batch.targets[mask]).logprobs
    total = (found * torch.linspace(-1, 2, len(found))).sum()
    with torch.autocast("cpu", kind, enabled=mixed and within):
        total.backward()
    return found.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def off(found, exact):
    """How far gradients are off, by the size of each: the mean. A bias of keys has none but by rounding."""
    assert found.keys() == exact.keys()
    apart = [
        float((found[name] - right).norm() / right.norm()) for name, right in exact.items() if "k_proj.bias" not in name
    ]
    return sum(apart) / len(apart)


def near(found, wanted):
    """By the largest number, which is no small one but for the bias of keys: what it adds is the same for all."""
    most = wanted.abs().max()
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 2e-6 * most + 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_the_familys_own(family):
    """In float64, but for the norms of families, which are in float32."""
    model = learns(family).double()
    cos, sin = model.model.rotary_emb(torch.zeros(1, 1, 32).double(), PACKED.position_ids)
    torch.manual_seed(1)
    states, slopes = torch.randn(2, 1, PACKED.input_ids.shape[1], 32, dtype=torch.float64)
    for own in model.model.layers:
        window = 8 if family == "mistral" else None
        pieces = attention.mask_of_pieces(PACKED.pieces, window)
        weights = [states.requires_grad_(), *own.parameters()]
        with attention.by_pieces(model.config):
            wanted = own(states, attention_mask=pieces, position_embeddings=(cos, sin))
        turned = getattr(own.self_attn, "use_rope", True)
        found = layer.through(own, states, pieces, (cos, sin) if turned else None, torch.float64)
        near(found, wanted)
        exact = torch.autograd.grad(wanted, weights, slopes)
        for gradient, right in zip(torch.autograd.grad(found, weights, slopes), exact, strict=True):
            near(gradient, right)


@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_they_differ_by_rounding(family, passes):
    own = learns(family)
    fast = routed(own)
    assert family in lower.FAMILIES
    logprobs, gradients = learned(fast)
    assert passes == list(fast.model.layers)
    own_logprobs, own_gradients = learned(own)
    exact_logprobs, exact = learned(own, mixed=False)
    assert 0 < (logprobs - exact_logprobs).abs().mean() <= 1.25 * (own_logprobs - exact_logprobs).abs().mean() < 0.01
    assert off(gradients, exact) <= 1.1 * off(own_gradients, exact) < 0.05
    assert all(each.dtype is torch.float32 for each in gradients.values())


def test_a_backward_pass_within_autocast_is_the_same():
    """Lightning takes it there; what a norm's gradient sums is float32 all the same."""
    model = routed(learns())
    outside, inside = learned(model)[1], learned(model, within=True)[1]
    assert all(torch.equal(inside[name], right) for name, right in outside.items())


def test_float16(passes):
    own = learns()
    fast = routed(own)
    gradients, exact = learned(fast, kind=torch.float16)[1], learned(own, mixed=False)[1]
    assert len(passes) == 2
    assert off(gradients, exact) <= 1.1 * off(learned(own, kind=torch.float16)[1], exact) < 0.01


def test_layers_that_are_computed_again_give_the_same(passes):
    model = routed(learns())
    logprobs, wanted = learned(model)
    forward.checkpoint_layers(model)
    found, gradients = learned(model)
    assert len(passes) == 2 + 4
    assert torch.equal(found, logprobs)
    assert all(torch.equal(gradients[name], right) for name, right in wanted.items())


def test_rows_that_are_too_short_to_compare_by_decide_nothing(passes):
    own = learns()
    fast = routed(own)
    short = collate([EncodedGroup([7, 3], [[6, 17]], None, 0)], [0], [0], pad_id=0, packed=True)
    assert torch.equal(learned(fast, short)[0], learned(own, short)[0])
    assert not passes
    learned(fast)
    learned(fast, short)
    assert len(passes) == 4


def test_the_same_is_computed_without_gradients(passes):
    """What a round knows from before its step is what the step computes, bit for bit."""
    model = routed(learns())
    wanted, _ = learned(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = forward.gather_hidden(forward.hidden_states(model, PACKED), PACKED)[PACKED.response_mask]
        found = token_logprobs(model.lm_head, states, PACKED.targets[PACKED.response_mask]).logprobs
    assert torch.equal(found, wanted)
    assert len(passes) == 4


@pytest.mark.parametrize("frozen", ["layers.0", "mlp", "norm", "q_proj", "o_proj", "embed_tokens", "gate_proj"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_is_as_it_was(frozen):
    model = routed(learns())
    _, wanted = learned(model)
    for name, weights in model.named_parameters():
        weights.requires_grad_(frozen not in name)
    _, found = learned(model)
    assert found.keys() == {name for name in wanted if frozen not in name}
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def adapted_model(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], layers_to_transform=[0]))


def with_a_hook(model):
    model.model.layers[0].self_attn.o_proj.register_forward_hook(lambda _module, _given, found: found * 0.5)
    return model


def in_sixteen(model):
    model.model.layers[0].to(torch.bfloat16)
    return model


@pytest.mark.parametrize("change", [adapted_model, with_a_hook, in_sixteen])
def test_a_layer_that_became_another_keeps_its_familys_own_code(change, passes):
    fast = change(routed(learns()))
    second = forward.bare(fast).model.layers[1]
    own = change(learns())
    for name, weights in fast.named_parameters():
        own.get_parameter(name).data.copy_(weights)
    logprobs, _ = learned(fast)
    wanted, _ = learned(own)
    assert (logprobs - wanted).abs().max() < 0.1
    assert passes == [second]


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_a_hook_that_comes_later_is_called(kind, passes):
    model, seen = routed(learns()), []
    learned(model)
    hook = getattr(model.model.layers[1].mlp.up_proj, f"register_{kind}")(lambda *_: seen.append(1))
    learned(model)
    hook.remove()
    learned(model)
    first, second = model.model.layers
    assert passes == [first, second, first, first, second]
    assert len(seen) == 1


@pytest.mark.parametrize("what", ["its forward", "its activation"])
def test_what_is_put_in_a_parts_place_later_is_taken(what, passes):
    model = routed(learns())
    learned(model)
    gated = model.model.layers[1].mlp
    if what == "its forward":
        gated.forward = torch.zeros_like
    else:
        gated.act_fn = nn.Softplus()
    learned(model)
    first, second = model.model.layers
    assert passes == [first, second, first]


@pytest.mark.parametrize("change", OTHERS)
def test_a_layer_with_something_else_in_it_keeps_its_own_code(change):
    model = learns()
    OTHERS[change](model.model.layers[0])
    layer.route(model)
    assert [isinstance(each, layer._Routed) for each in model.model.layers] == [False, True]


def test_another_activation_and_other_families_keep_their_own_code(monkeypatch):
    model = learns()
    model.model.layers[0].mlp.act_fn = nn.GELU()
    gelu = learns(hidden_act="gelu")
    for each in (model, gelu):
        layer.route(each)
    assert not any(isinstance(each, layer._Routed) for each in gelu.model.layers)
    monkeypatch.setattr(lower, "FAMILIES", frozenset())
    assert not any(isinstance(each, layer._Routed) for each in routed(learns()).model.layers)


@pytest.mark.parametrize("kind", ["padded", "without autocast", "norms of queries", "a cache"])
def test_other_ways_to_read_are_the_familys_own(kind, passes):
    own = learns("qwen3" if kind == "norms of queries" else "llama")
    fast = routed(own)
    if kind == "a cache":
        found, wanted = [], []
        for model, out in ((fast, found), (own, wanted)):
            with torch.autocast("cpu", torch.bfloat16), attention.by_pieces(model.config):
                mask = attention.mask_of_pieces([(4, -1)], None)
                out.append(model(torch.tensor([[7, 3, 11, 19]]), attention_mask=mask, use_cache=True).logits)
        assert torch.equal(found[0], wanted[0])
    else:
        given = (PADDED if kind == "padded" else PACKED), kind != "without autocast"
        found, wanted = learned(fast, *given), learned(own, *given)
        assert torch.equal(found[0], wanted[0])
        assert all(torch.equal(found[1][name], right) for name, right in wanted[1].items())
    assert not passes


@pytest.mark.parametrize("fault", ["epsilon", "turns"])
def test_a_small_fault_in_it_is_found_out(fault, monkeypatch, passes):
    """Under autocast it would pass for rounding."""
    if fault == "epsilon":
        real = layer.normed
        monkeypatch.setattr(layer, "normed", lambda x, weight, epsilon, kind: real(x, weight, epsilon * 1.2, kind))
    else:
        monkeypatch.setattr(layer, "_turned", lambda states, turns: states)
    own = learns()
    fast = routed(own)
    found, wanted = learned(fast), learned(own)
    assert not passes
    assert torch.equal(found[0], wanted[0])


def test_weights_are_cast_once_in_a_step_and_anew_when_they_change():
    model = learns()
    weights = [model.model.layers[0].mlp.gate_proj.weight, model.model.layers[0].mlp.up_proj.weight]
    cast = lambda: products.cast_together(weights, torch.bfloat16)  # noqa: E731
    alone = cast()
    torch.testing.assert_close(alone, torch.cat(weights).bfloat16(), rtol=0, atol=0)
    assert cast() is not alone
    with products.casts_kept():
        assert cast() is not cast()  # they are trained
        with products.casts_of_a_step():
            first = cast()
            assert cast() is first
            with torch.no_grad():
                weights[1].mul_(2.0)
            second = cast()
            torch.testing.assert_close(second, torch.cat(weights).bfloat16(), rtol=0, atol=0)
            assert cast() is second
            weights[0].data = weights[0].data * 3.0
            torch.testing.assert_close(cast(), torch.cat(weights).bfloat16(), rtol=0, atol=0)
            assert products.cast_together(weights, torch.float16).dtype is torch.float16
        for each in weights:
            each.requires_grad_(False)
        assert cast() is cast()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_several_micro_batches_casts_once(tmp_path, monkeypatch, checkpointing):
    """But not where memory is saved by computing layers again. What is learned is the same."""
    made, real = [], products.cast_together

    def counted(weights, kind):
        found = real(weights, kind)
        if kind is torch.bfloat16:  # not while a layer is compared
            made.append((id(weights[0]), found))
        return found

    rows = Groups.from_rows({"prompt": f"say {n}", "responses": [f"{n} and more"]} for n in range(6))
    learned_by = {}
    for kept in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(products, "cast_together", counted)
            if not kept:
                patch.setattr(learner, "casts_of_a_step", contextlib.nullcontext)
            made.clear()
            with Run(tmp_path / f"{kept}", precision="bf16-mixed", max_tokens=24, quiet=True) as run:
                options = {"epochs": 1, "batch_size": 6, "checkpointing": checkpointing}
                found = run.sft(run.policy("tiny", lora=None), rows, learning_rate=1e-2, **options)
            learned_by[kept] = {name: w.clone() for name, w in found.load().model.named_parameters()}
        first = [low for weights, low in made if weights == made[0][0]]
        assert len(first) > 2
        assert (len(set(map(id, first))) == 1) is (kept and not checkpointing)
    assert all(torch.equal(learned_by[True][name], right) for name, right in learned_by[False].items())


def test_it_is_copied_pickled_and_routed_once():
    fast = routed(learns())
    kind = type(fast.model.layers[0])
    adapted.route_all(fast)
    assert type(fast.model.layers[0]) is kind
    assert kind.__name__ == "LlamaDecoderLayer"
    wanted, _ = learned(fast)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(again.model.layers[0]) is kind
        found, _ = learned(again)
        assert torch.equal(found, wanted)
