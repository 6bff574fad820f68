"""Families of today: each gives its own log-probs, with nothing dropped out, and what cannot be right is refused."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignkit import ConfigError, LoRA, Policy
from alignkit.data.encode import EncodedGroup
from alignkit.models import RewardModel
from alignkit.models.batch import collate
from alignkit.models.forward import checkpoint_layers
from alignkit.testing import tiny_tokenizer

SMALL = {
    "vocab_size": 262, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 256, "bos_token_id": 257,
    "eos_token_id": 257,
}  # fmt: skip
MORE = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "mixtral": {"num_local_experts": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


def model_of(family, scale=1.0, **changes):
    """A tiny model of a family; weights that are `scale` times as large make logits that differ."""
    config = AutoConfig.for_model(family, **{**SMALL, **MORE.get(family, {}), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    for weights in model.parameters():
        if weights.ndim >= 2:
            weights.data.mul_(scale)
    return model


def folder_of(family, folder, scale=1.0, **changes):
    model = model_of(family, scale, **changes)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


GROUPS = [EncodedGroup([5, 6, 7, 8], [[9, 10, 11], [12, 13]], None, 0), EncodedGroup([20], [[21, 22]], None, 1)]


def logprobs_of(policy, shared=False):
    batch = collate(GROUPS, [0, 1], [0, 2], pad_id=256, shared=shared)
    return policy.tensors(batch)["logprobs"]


RATES = ["attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "dropout", "layerdrop"]
RATES += ["activation_dropout", "residual_dropout", "classifier_dropout"]


@pytest.mark.parametrize("family", ["opt", "gpt2", "bloom", "mpt", "falcon", "phi", "biogpt", "mistral"])
def test_nothing_is_dropped_out_with_activations_computed_again(family):
    model = model_of(family, **dict.fromkeys(RATES, 0.5))
    for module in model.modules():
        if hasattr(module, "attn_dropout_p"):
            module.attn_dropout_p = 0.5
    policy = Policy(model, tiny_tokenizer())
    wanted = logprobs_of(policy)
    wanted.sum().backward()
    weights = model.get_input_embeddings().weight
    gradient, weights.grad = weights.grad, None
    calls = []
    checkpoint_layers(policy)
    policy.train()  # as whoever trains may call it
    assert not any(module.training for module in policy.modules())
    last = [module for module in model.modules() if "forward" in vars(module)][-1]
    last.register_forward_hook(lambda *_: calls.append(1))
    again = vars(last)["forward"]
    inner = again.args[0]
    last.forward = type(again)(again.func, lambda *a, **k: (calls.append(2), inner(*a, **k))[1])
    found = logprobs_of(policy)
    found.sum().backward()
    assert torch.equal(found, wanted)
    torch.testing.assert_close(weights.grad, gradient, rtol=0, atol=1e-6)
    assert calls.count(2) == 2, "the layer's activations were kept"


def test_what_cannot_be_computed_again_is_refused():
    with pytest.raises(ConfigError, match=r"Linear has no layers whose activations could be computed again"):
        checkpoint_layers(torch.nn.Linear(2, 2))


def test_an_adapter_that_was_trained_with_dropout_elsewhere_drops_nothing(tmp_path):
    base = folder_of("opt", tmp_path / "m")
    Policy.load(base, lora=LoRA(r=4), trainable=True).save(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_dropout": 0.5}))
    policy = Policy.load(tmp_path / "a", lora=LoRA(r=4), trainable=True)
    for name, weights in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    policy.train()
    assert torch.equal(logprobs_of(policy), logprobs_of(policy))
    assert policy.model.peft_config["default"].lora_dropout == 0.5


@pytest.mark.parametrize("kind", ["adapter", "whole", "reward"])
def test_the_configuration_keeps_the_rates_of_dropout(kind, tmp_path):
    base = folder_of("gpt2", tmp_path / "m", attn_pdrop=0.2)
    if kind == "reward":
        RewardModel.from_policy(base).save(tmp_path / "e")
    else:
        Policy.load(base, lora=LoRA(r=4) if kind == "adapter" else None, trainable=True).export(tmp_path / "e")
    written = json.loads((tmp_path / "e" / "config.json").read_text())
    assert [written[name] for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")] == [0.1, 0.1, 0.2]
