"""Bases in four bits under an adapter: what they compute, learn and leave behind."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch

from alignkit import ConfigError, Groups, LoRA, Run, use
from alignkit.models import Policy, four_bit, response_logprobs
from alignkit.models.four_bit import is_quantized, numbers_in

DEMOS = Groups.from_rows([{"prompt": f"p{n}", "responses": ["abcab"]} for n in range(4)])
PROMPT, ANSWERS = [300 % 256, 97, 98, 260], [[97, 98, 99], [120, 121]]

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(four_bit.PACKAGE) is None, reason="four bits need bitsandbytes: pip install bitsandbytes"
)


def lora() -> LoRA:
    return LoRA(r=4, quantize="nf4")


def linear_weights(policy: Policy) -> dict[str, Any]:
    """Of the base, by the names they have without an adapter."""
    cut = {name.replace("base_model.model.", "").replace(".base_layer", ""): w for name, w in policy.named_parameters()}
    return {name: w for name, w in cut.items() if name.endswith("proj.weight")}


def test_without_the_package_there_is_one_error_with_the_remedy(monkeypatch):
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package bitsandbytes, which is not installed.*pip install"):
        LoRA(quantize="nf4")
    assert LoRA().quantize is None


def test_a_type_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"quantize='int4'.*use nf4 or fp4"):
        LoRA(quantize="int4")


@needs_package
def test_it_computes_as_the_rounded_weights_do():
    """The same numbers as of a plain model whose linear layers hold what four bits leave of their weights."""
    import bitsandbytes as bnb

    small = Policy.load("tiny", lora=lora(), trainable=True)
    plain = Policy.load("tiny")
    rounded = linear_weights(small)
    originals = dict(plain.named_parameters())
    assert len(rounded) > 4
    for name, weight in rounded.items():
        values = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        error = (values - originals[name]).norm() / originals[name].norm()
        assert 0.02 < error < 0.2, name  # NormalFloat of 4 bits, in blocks of 64
        assert weight.numel() * weight.element_size() == originals[name].numel() / 2
        assert numbers_in(weight) == originals[name].numel()
        originals[name].data.copy_(values)
    ours = response_logprobs(small, [PROMPT], [ANSWERS])
    theirs = response_logprobs(plain, [PROMPT], [ANSWERS])
    assert ours[0] == pytest.approx(theirs[0], abs=1e-3)
    heads = [p for name, p in small.named_parameters() if "embed" in name or "head" in name]
    assert heads
    assert not any(hasattr(p, "quant_state") for p in heads)


@needs_package
def test_an_adapter_learns_over_it_and_is_exported_with_the_base_as_it_is(tmp_path):
    with Run(tmp_path / "run", quiet=True) as run:
        v0 = run.policy("tiny", lora=lora())
        tuned = run.sft(v0, DEMOS, batch_size=4, max_steps=8, learning_rate=5e-3, schedule="constant", warmup_ratio=0)
        folder = run.export(tuned)
    losses = [json.loads(line)["loss"] for line in (tuned.path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.2
    adapted, exported, base = Policy.load(tuned.model_folder), Policy.load(folder), Policy.load("tiny")
    assert not is_quantized(adapted)
    adapted.fold()
    for name, weight in adapted.model.state_dict().items():
        assert torch.allclose(exported.model.state_dict()[name], weight, atol=1e-6), name
    same = [torch.equal(a, b) for a, b in zip(exported.parameters(), base.parameters(), strict=True)]
    assert not all(same)  # linear layers learned
    assert any(same)  # embeddings did not


@needs_package
def test_it_samples_and_improves_over_it(tmp_path):
    """Sampled from and trained in four bits, so that the ratio to what sampled is 1."""
    with Run(tmp_path / "run", quiet=True) as run:
        v0 = run.policy("tiny", lora=lora())
        grpo = use("grpo", samples_per_prompt=2, prompts_per_round=2, rounds=2, learning_rate=1e-3)
        prompts = Groups.from_prompts(["one", "two"])
        made = run.improve(v0, prompts, optimizer=grpo, reward=length, reference=v0, max_new_tokens=5)
    rows = [json.loads(line) for line in (made.policy.path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert rows[0]["clip_fraction"] == 0
    assert rows[0]["sampler_mismatch"] < 1e-3


@needs_package
def test_reward_models_learn_over_it(tmp_path):
    ranked = Groups.from_rows([{"prompt": f"p{n}", "responses": ["ab", "cd"], "ranks": [1, 2]} for n in range(4)])
    with Run(tmp_path / "run", quiet=True) as run:
        reward = run.train_reward(
            run.policy("tiny", lora=lora()), ranked, loss="pairwise_ranking", max_steps=6, heldout_fraction=0,
            learning_rate=1e-2,
        )  # fmt: skip
        scored = run.score(ranked, reward)
    values, _ = scored.groups.rewards("reward")
    assert all(better > worse for better, worse in values)


@needs_package
def test_it_is_not_exported_from_memory():
    with pytest.raises(ConfigError, match=r"four bits, into which no adapter.*export Policy.load"):
        Policy.load("tiny", lora=lora(), trainable=True).export("nowhere")


def length(response: str) -> float:
    return float(len(response))
