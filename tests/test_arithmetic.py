"""Floating-point operations by hand, and against PyTorch's own count of the products that it multiplies out."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from alignkit.data.encode import EncodedGroup
from alignkit.engine.assemble import assemble, passes
from alignkit.engine.training_data import TrainingData
from alignkit.groups import Groups
from alignkit.models import LoRA, Policy, RewardModel
from alignkit.models.arithmetic import Arithmetic, Flops, Reading

# The tiny model: hidden 64, 4 heads of 16, keys and values of 32, feed-forward 128, 262 tokens, 2 layers.
BODY = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
HEAD = 262 * 64
PAIR = 4 * 64 * 2
ADAPTER = 2 * 4 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))  # rank 4
GROUPS = [EncodedGroup([1, 2, 3], [[4, 5], [6, 7, 8, 9]], None, 0), EncodedGroup([1, 2], [[3]], [False, True], 1)]


def test_what_goes_through_is_read_off_the_lengths():
    shared, plain = Reading.of_groups(GROUPS, True), Reading.of_groups(GROUPS, False)
    assert (shared.tokens, shared.learned, shared.responses) == (3 + 2 + 4 + 2 + 1, 2 + 4 + 2, 3)
    assert (plain.tokens, plain.learned, plain.responses) == (5 + 7 + 3, 2 + 4 + 2, 3)
    # 1 + 2 + 3 of the prompt, 4 + 5 and 4 + 5 + 6 + 7 of its responses; then 1 + 2 and 3
    assert shared.pairs() == 6 + 9 + 22 + 3 + 3
    assert plain.pairs() == 15 + 28 + 6
    assert shared.pairs(window=3) == (1 + 2 + 3) + 2 * 3 + 4 * 3 + 3 + 3
    assert plain.pairs(causal=False) == 25 + 49 + 9


def test_of_samples_the_last_token_is_never_read():
    written = Reading.of_samples([3, 2], [[4, 1], [2, 2]])
    assert written.tokens == 3 + 3 + 2 + 1 + 1
    assert written.learned == (1 + 3 + 0) + (1 + 1 + 1)
    assert written.pairs() == (1 + 2 + 3) + (4 + 5 + 6) + (1 + 2) + 3 + 3


def test_full_training_costs_twice_as_much_backward():
    policy = Policy.load("tiny", trainable=True)
    reading = Reading(((0, 5), (5, 7)), learned=2)
    forward = 2 * BODY * 7 + 2 * HEAD * 2 + PAIR * 28
    assert policy.flops(reading) == Flops(forward, 0)
    assert policy.flops(reading, gradient=True) == Flops(forward, 2 * forward)


def test_frozen_weights_pass_the_gradient_on_and_get_none():
    policy = Policy.load("tiny", lora=LoRA(r=4), trainable=True)
    reading = Reading(((0, 7),), learned=3)
    attention = PAIR * 28
    forward = 2 * (BODY + ADAPTER) * 7 + 2 * HEAD * 3 + attention
    backward = 2 * BODY * 7 + 4 * ADAPTER * 7 + 2 * HEAD * 3 + 2 * attention
    assert policy.flops(reading, gradient=True) == Flops(forward, backward)
    folded = 2 * BODY * 7 + 2 * HEAD * 3 + attention
    assert policy.flops(reading, folded=True) == Flops(folded, 0)
    policy.add_state("v0", policy.base)
    assert policy.flops(reading, state="v0") == Flops(folded, 0)


def test_values_cost_their_head_and_no_logits():
    policy = Policy.load("tiny", trainable=True)
    policy.add_value_head()
    reading = Reading(((0, 7),), learned=3)
    trunk = 2 * BODY * 7 + PAIR * 28
    assert policy.flops(reading, ("values",)) == Flops(trunk + 2 * 64 * 3, 0)
    assert policy.flops(reading, ("entropy", "values")) == Flops(trunk + 2 * (64 + HEAD) * 3, 0)


def test_a_reward_model_reads_one_state_of_each_response():
    reading = Reading(((0, 5), (5, 7), (5, 8)), learned=5, responses=2)
    trunk = PAIR * (15 + 13 + 21)
    full = RewardModel.from_policy("tiny")
    forward = 2 * BODY * 10 + 2 * 64 * 2 + trunk
    assert full.flops(reading, gradient=True) == Flops(forward, 2 * forward)
    adapted = RewardModel.from_policy("tiny", lora=LoRA(r=4))
    assert adapted.flops(reading, folded=True) == Flops(forward, 0)
    backward = 2 * BODY * 10 + 4 * ADAPTER * 10 + 4 * 64 * 2 + 2 * trunk  # the score head is trained whole
    assert adapted.flops(reading, gradient=True) == Flops(forward + 2 * ADAPTER * 10, backward)


def made(**options):
    config = AutoConfig.for_model(**options)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config), config


def test_of_experts_those_count_that_a_token_meets():
    model, config = made(
        model_type="mixtral", hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, vocab_size=50, sliding_window=None,
    )  # fmt: skip
    assert Arithmetic.of(model).body == 4 * 16 * 16 + 8 * 16 + 2 * (3 * 16 * 24)
    assert config.num_experts_per_tok == 2


def test_windows_bind_the_layers_that_have_them():
    model, _ = made(
        model_type="gemma3_text", hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, vocab_size=50, sliding_window=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    assert Arithmetic.of(model).layers == {(16, 4): 2, (16, None): 1}
    gpt2, _ = made(model_type="gpt2", n_embd=16, n_layer=2, n_head=4, vocab_size=50, n_positions=32)
    counted = Arithmetic.of(gpt2)
    assert (counted.body, counted.layers) == (2 * 12 * 16 * 16, {(16, None): 2})  # look-ups of positions cost nothing


@pytest.mark.parametrize("lora", [None, LoRA(r=4), LoRA(r=4, layers=1)])
def test_pytorch_counts_the_same_products(lora):
    """One row. PyTorch counts no attention on a CPU, and the head again where it is checkpointed. Under an adapter the
    inputs of the first adapted layer's queries, keys and values get no gradient; what is below it has none."""
    policy = Policy.load("tiny", lora=lora, trainable=True)
    groups = Groups.from_rows([{"prompt": "abc", "responses": ["defgh"]}])
    data = TrainingData.whole(policy, groups, max_prompt_tokens=99, max_response_tokens=99)
    reading, wanted = data.reading([0]), frozenset({"logprobs"})
    with FlopCounterMode(display=False) as seen:
        tensors, _ = assemble(policy, data, data.collate([0]), wanted)
        tensors["logprobs"].sum().backward()
    [counted] = passes(policy, reading, wanted, gradient=True)
    products = sum(counted) - (2 if lora and lora.layers else 3) * PAIR * reading.pairs()  # of two layers
    first = 2 * (64 * 64 + 2 * 64 * 32 + 3 * 4 * 64) * reading.tokens
    assert seen.get_total_flops() == products + (2 * HEAD * reading.learned if lora is None else -first)


def test_nothing_goes_below_the_adapters_whatever_the_layers_are_called():
    from alignkit.models.lora import adapt

    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", n_embd=16, n_layer=3, n_head=4, vocab_size=50, n_positions=32)
    )
    counted = Arithmetic.of(adapt(model, LoRA(r=2, layers=1)))
    assert (counted.body, counted.below) == (3 * 12 * 16 * 16, 2 * 12 * 16 * 16)
    assert counted.behind == {(16, None): 1}
