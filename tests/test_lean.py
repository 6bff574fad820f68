"""Layers of few calls: the logits of each family that has them are its own, and no other layer is taken for one."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from alignkit.models import lean, lower, slot_attention, slot_cache, slots, ways
from alignkit.models.lean import Gated, Lean, is_lean
from alignkit.models.packed import packs
from alignkit.models.slots import APART, Slots

SMALL = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 0.01, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""What the norms add shows."""
SIZES = {"small": {}, "big": {"hidden_size": 128, "intermediate_size": 256}}
"""The larger one's queries, keys and values, and its gated unit, are packed."""
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "smollm3": {"no_rope_layers": [1, 0]},
}

PROMPTS = [[7, 3, 11, 19, 5, 9, 8, 40, 41, 2, 17], [4, 13], [7, 3, 11, 50]]
ANSWERS = [[6, 17, 9, 23, 3], [8, 5, 21, 14, 30], [1, 1, 2, 58, 7]]
BEGINNING = [7 + n % 11 for n in range(APART + 6)]
BEGUN = [[*BEGINNING, *prompt] for prompt in PROMPTS]


def model_of(family, size="small", **changes):
    """A model whose norms and biases are no ones and zeros, and whose logits differ."""
    config = AutoConfig.for_model(family, **{**SMALL, **SIZES[size], **FAMILIES[family], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for weights in model.parameters():
            weights.requires_grad_(False)
            if weights.ndim >= 2:
                weights.mul_(8.0)
            else:
                weights.add_(torch.randn(weights.shape) * 0.3)
    return model


def own(model, prompts):
    """Logits [prompts, tokens, V] of the model itself, on each text alone."""
    rows = zip(prompts, ANSWERS, strict=True)
    with torch.no_grad():
        found = [model(torch.tensor([[*a, *b]]), use_cache=False).logits[0, len(a) - 1 :] for a, b in rows]
    return torch.stack(found)


def read(reader, prompts):
    """The same as they are written, one token of each after another."""
    found = [reader.admit(prompts, 1)]
    found += [reader.read(torch.tensor(tokens)) for tokens in zip(*ANSWERS, strict=True)]
    return torch.stack(found, 1)


def by_hand(monkeypatch):
    """Have tokens attend as where torch's kernel is not taken."""
    for module in (slots, slot_attention, slot_cache):
        monkeypatch.setattr(module, "in_one_call", lambda *_: False)


def are_lean(reader):
    return [isinstance(layer, Lean) for layer in reader.body.layers]


def close(found, wanted, allowed=1e-4):
    torch.testing.assert_close(found, wanted, rtol=0, atol=allowed)


def test_each_family_whose_trunk_is_known_has_them():
    assert set(FAMILIES) == lower.FAMILIES
    for family in FAMILIES:
        assert all(is_lean(layer) for layer in model_of(family).model.layers)


@pytest.mark.parametrize("in_one_call", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_families_own(family, size, in_one_call, monkeypatch):
    if not in_one_call:
        by_hand(monkeypatch)
    model = model_of(family, size)
    reader = Slots(model, 0)
    wanted = own(model, PROMPTS)
    assert wanted.std(-1).min() > 0.1
    close(read(reader, PROMPTS), wanted)
    assert all(are_lean(reader))
    layer = reader.body.layers[0]
    packed = packs(torch.empty(256, 128)) and size == "big"
    assert (layer.read.packs, layer.gated.within, layer.down.packs) == (packed, packed, packed)


@pytest.mark.parametrize("in_one_call", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_all_begin_with_is_seen_by_each(family, in_one_call, monkeypatch):
    """Kept apart or in each slot; where torch's kernel is taken, in each slot if a window hides some of it."""
    if not in_one_call:
        by_hand(monkeypatch)
    model = model_of(family)
    wanted, reader, others = own(model, BEGUN), Slots(model, 0), Slots(model, 0)
    others.apart_from = 1000
    close(read(reader, BEGUN), wanted)
    close(read(others, BEGUN), wanted)
    whole = len(BEGINNING)
    assert reader.cache.apart == (0 if family == "mistral" and in_one_call else whole)
    assert others.cache.apart == (0 if in_one_call else whole)
    # Some end and others join, with what began before and with something else.
    reader.keep(torch.tensor([2, 1]))
    more = reader.admit(BEGUN[:1], 2)
    close(more, wanted[:1, 0].expand(2, -1))
    reader.admit([[9, 8, 7]], 1)
    now = reader.read(torch.tensor([ANSWERS[0][0]] * 5))
    close(now[2:4], wanted[:1, 1].expand(2, -1))
    texts = [[*BEGUN[place], *ANSWERS[place], ANSWERS[0][0]] for place in (2, 1)]
    close(now[:2], torch.stack([model(torch.tensor([text])).logits[0, -1] for text in texts]))


def test_a_few_tokens_that_all_begin_with_stand_in_each_slot():
    model = model_of("llama")
    begun = [[*BEGINNING[: APART - 1], *prompt] for prompt in ([50], [51], [52])]
    reader = Slots(model, 0)
    close(read(reader, begun), own(model, begun))
    assert reader.cache.apart == (0 if slot_attention.in_one_call(torch.device("cpu"), None) else APART - 1)


def test_slots_that_were_compared_are_like_others(monkeypatch):
    monkeypatch.setattr(ways, "_SLOTS", {})
    model = model_of("llama")
    first, later = ways.slots_of(model, 0), ways.slots_of(model, 0)
    assert first.apart_from == later.apart_from == APART


def test_a_few_layers_show_how_all_are_read(monkeypatch):
    """The first two, or up to the last of another kind; all of them, where one may read another's number."""
    deep = model_of("llama", num_hidden_layers=5)
    assert len(ways._of_few_layers(deep).model.layers) == 2
    assert len(deep.model.layers) == 5
    OTHERS["a product that is scaled"](deep.model.layers[3])
    assert len(ways._of_few_layers(deep).model.layers) == 4
    mixed = model_of("smollm3", num_hidden_layers=6, no_rope_layers=[1, 1, 1, 0, 1, 1])
    assert len(ways._of_few_layers(mixed).model.layers) == 4
    assert ways._of_few_layers(model_of("llama")) is None
    monkeypatch.setattr(ways, "_SLOTS", {})
    seen, once = [], ways._slots_agree
    monkeypatch.setattr(
        ways, "_slots_agree", lambda model, *more: (seen.append(len(model.model.layers)), once(model, *more))[1]
    )
    for model in (deep, model_of("llama", num_hidden_layers=5)):
        reader = ways.slots_of(model, 0)
        close(read(reader, PROMPTS), own(model, PROMPTS))
    assert seen == [4, 2]
    monkeypatch.setattr(lower, "FAMILIES", frozenset())
    assert ways._of_few_layers(deep) is None


@pytest.mark.parametrize("in_one_call", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_they_differ_by_rounding(family, in_one_call, monkeypatch):
    if not in_one_call:
        by_hand(monkeypatch)
    model = model_of(family, "big")
    for prompts in (PROMPTS, BEGUN):
        wanted = torch.log_softmax(own(model, prompts), -1)
        with torch.autocast("cpu", torch.bfloat16):
            reader = Slots(model, 0)
            found = torch.log_softmax(read(reader, prompts).float(), -1)
        assert all(are_lean(reader))
        assert reader.cache.slots[0].keys.dtype is torch.bfloat16
        assert 0 < (found - wanted).abs().mean() < 0.02 * wanted.std()


@pytest.mark.parametrize("prompts", [PROMPTS, BEGUN])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_other_types(dtype, prompts):
    model = model_of("llama", "big").to(dtype)
    reader = ways.slots_of(model, 0)
    assert all(are_lean(reader))
    found = read(reader, prompts)
    assert found.dtype is dtype
    wanted = own(model.double(), prompts)
    assert (found - wanted).abs().mean() < (1e-5 if dtype is torch.float64 else 0.02 * wanted.std())


class Named(nn.Module):
    """A silu by another class, as families have them."""

    def forward(self, states):
        return nn.functional.silu(states)


@pytest.mark.parametrize(("activation", "silu"), [(Named(), True), (nn.GELU(), False), (nn.ReLU(), False)])
def test_the_activation_is_within_the_product_where_it_is_a_silu(activation, silu):
    torch.manual_seed(0)
    gate, up, states = nn.Linear(128, 256), nn.Linear(128, 256), torch.randn(3, 2, 128)
    with torch.no_grad():
        gated = Gated(gate, up, activation, torch.float32)
        close(gated(states), activation(gate(states)) * up(states), 1e-5)
    assert gated.within == (silu and packs(gate.weight))


def test_another_activation_is_the_families_own():
    model = model_of("llama", "big", hidden_act="gelu")
    reader = Slots(model, 0)
    close(read(reader, PROMPTS), own(model, PROMPTS))
    assert all(are_lean(reader))
    assert not reader.body.layers[0].gated.within


class Scaled(nn.Module):
    """What a layer may have beside the rest."""

    def __init__(self, inner, half=0.5):
        super().__init__()
        self.inner, self.half = inner, half

    def forward(self, *given, **named):
        return self.half * self.inner(*given, **named)


class Twice(LlamaRMSNorm):
    """A norm of a model's own code, with the names of the family's."""

    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


class Wide(nn.Linear):
    """A linear layer that may do more."""


def with_another_module(place):
    def change(layer):
        part = layer.get_submodule(place) if place else layer
        part.more = nn.Identity()

    return change


def replaced(name, make):
    def change(layer):
        parent, _, child = name.rpartition(".")
        inner = layer.get_submodule(parent) if parent else layer
        setattr(inner, child, make(getattr(inner, child)))

    return change


OTHERS = {
    "a module in the layer": with_another_module(""),
    "a module in its attention": with_another_module("self_attn"),
    "a module in its gated unit": with_another_module("mlp"),
    "a norm of another kind": replaced("input_layernorm", lambda norm: nn.LayerNorm(32)),
    "a norm that is scaled": replaced("post_attention_layernorm", Scaled),
    "a norm of somebody else's": lambda layer: setattr(layer.input_layernorm, "__class__", Twice),
    "a product that is scaled": replaced("self_attn.o_proj", Scaled),
    "a linear layer of another class": replaced("mlp.up_proj", lambda each: Wide(32, 64)),
    "a hook": lambda layer: layer.mlp.register_forward_hook(lambda _module, _given, found: 0.5 * found),
    "a hook before a part": lambda layer: layer.mlp.act_fn.register_forward_pre_hook(lambda _, given: (-given[0],)),
    "a norm of the queries alone": lambda layer: layer.self_attn.register_module("q_norm", layer.input_layernorm),
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_layer_with_something_else_in_it_keeps_its_own_code(change):
    model = model_of("llama")
    OTHERS[change](model.model.layers[0])
    for weights in model.parameters():
        weights.requires_grad_(False)
    reader = Slots(model, 0)
    assert are_lean(reader) == [False, True]
    close(read(reader, PROMPTS), own(model, PROMPTS))


def test_other_families_keep_their_own_code(monkeypatch):
    monkeypatch.setattr(lower, "FAMILIES", frozenset())
    model = model_of("llama", "big")
    reader = Slots(model, 0)
    assert are_lean(reader) == [False, False]
    close(read(reader, PROMPTS), own(model, PROMPTS))


def test_adapters_that_are_folded_in_stay_so():
    model = model_of("qwen2")
    plain = own(model, PROMPTS)
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weights, std=0.2)
    adapted.merge_adapter()
    wanted, reader = own(model, PROMPTS), Slots(model, 0)
    assert (wanted - plain).abs().mean() > 0.1
    close(read(reader, PROMPTS), wanted)
    assert all(are_lean(reader))


@pytest.mark.parametrize("mixed", [True, False])
def test_a_small_fault_in_them_is_found_out(mixed, monkeypatch):
    """Under autocast too, where it would pass for rounding."""
    once = lean.Norm.__init__

    def careless(self, norm, dtype):
        once(self, norm, dtype)
        self.epsilon = self.epsilon * 1.2

    model = model_of("llama", "big")
    monkeypatch.setattr(ways, "_SLOTS", {})
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        assert ways.slots_of(model, 0) is not None
        ways._SLOTS.clear()
        monkeypatch.setattr(lean.Norm, "__init__", careless)
        assert ways.slots_of(model, 0) is None
