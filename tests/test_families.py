"""Families of today: each gives its own log-probs, with nothing dropped out, and what cannot be right is refused."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from alignkit import ConfigError, DataError, Groups, LoRA, Policy, Run, Sampler, use
from alignkit.data.encode import EncodedGroup
from alignkit.models import RewardModel
from alignkit.models.batch import collate
from alignkit.models.forward import checkpoint_layers
from alignkit.models.slots import Slots
from alignkit.models.ways import Ways
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


def logprobs_of(policy, shared=False, packed=False):
    batch = collate(GROUPS, [0, 1], [0, 2], pad_id=256, shared=shared, packed=packed)
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


HEADS = {"num_key_value_heads": 2, "head_dim": 8}
WINDOW = {**HEADS, "sliding_window": 8}
KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    **HEADS, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 10000.0,
}  # fmt: skip
TODAY = {
    "llama": {"rope_parameters": ROPE},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "gemma2": WINDOW,
    "gemma3_text": {**WINDOW, **KINDS},
    "mistral": {"sliding_window": 8},
    "mixtral": {},
    "qwen3_moe": {**HEADS, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    "phi": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "olmo2": {},
    "gpt2": {},
    "opt": {},
    "falcon": {},
    "granite": {"logits_scaling": 4.0},
    "hyperclovax": {"logits_scaling": 0.125, "attention_multiplier": 0.3},
    "recurrent_gemma": {
        "lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"], "logits_soft_cap": 3.0,
    },
    "qwen3_next": LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}  # fmt: skip


OTHER_CACHES = {"falcon", "recurrent_gemma", "qwen3_next", "lfm2"}
"""What these attend to, or carry along, is not the library's: their sequences are not read in slots."""


UNPACKED = {"falcon", "recurrent_gemma", "qwen3_next", "lfm2"}
"""Their attention is not asked for in transformers' registry, or not all of them attend."""


def own_logprobs(model, prompt, ids):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids)[:, None])[:, 0].float()


@pytest.mark.parametrize("family", TODAY)
def test_each_family_trains_and_samples_with_its_own_logprobs(family, tmp_path):
    policy = Policy.load(folder_of(family, tmp_path / "m", 3.0, **TODAY[family]))
    model = policy.model
    found = logprobs_of(policy, policy.shares_prompts, policy.packs_rows)
    assert policy.packs_rows == (family not in UNPACKED)
    answers = [(group.prompt_ids, ids) for group in GROUPS for ids in group.responses]
    for ours, (prompt, ids) in zip(found, answers, strict=True):
        torch.testing.assert_close(ours[: len(ids)].detach(), own_logprobs(model, prompt, ids), rtol=0, atol=1e-4)
    with policy.reading() as reader:
        assert isinstance(reader, Slots) == (family not in OTHER_CACHES)
    prompts = Groups.from_prompts(["hello there, how are you", "x", "and another one"])
    for row in Sampler(max_new_tokens=12, batch_size=4).sample(policy, prompts, 2):
        prompt = policy.chat.encode_conversation(row["prompt"], "x").prompt_ids
        for ids, ours in zip(row["response_ids"], row["logprobs"], strict=True):
            torch.testing.assert_close(torch.tensor(ours), own_logprobs(model, prompt, ids), rtol=0, atol=1e-4)


def moved(policy):
    """The same with an adapter that does something."""
    torch.manual_seed(1)
    for name, weights in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    return policy


def likes_to_end(folder, by):
    """Make a folder's model end its turns often."""
    model, end = AutoModelForCausalLM.from_pretrained(folder), tiny_tokenizer().eos_token_id
    with torch.no_grad():
        model.get_output_embeddings().weight[end] *= by
    model.save_pretrained(folder)


@pytest.mark.parametrize("family", TODAY)
def test_what_is_exported_is_what_was_trained_for_transformers_and_peft_alone(family, tmp_path):
    """Greedy text, where it stops, and log-probs, from the exported folder; the same of the adapter on its base."""
    base = folder_of(family, tmp_path / "m", 3.0, **TODAY[family])
    likes_to_end(base, -8 if family == "lfm2" else 8)
    policy = moved(Policy.load(base, lora=LoRA(r=2), trainable=True))
    policy.export(tmp_path / "e")
    policy.export_adapter(tmp_path / "a")
    alone, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "e"),
        AutoTokenizer.from_pretrained(tmp_path / "e"),
    )
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a").eval()
    prompts = Groups.from_prompts(["hello there", "x", "and another one", "why?", "how many", "go on"])
    rows = Sampler(max_new_tokens=12, greedy=True).sample(policy, prompts)
    assert any(row["finished"][0] for row in rows)
    for row in rows:
        talk = [{"role": "user", "content": row["prompt"][0]["content"]}]
        asked = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        prompt, ids = asked["input_ids"][0].tolist(), row["response_ids"][0]
        options = {"do_sample": False, "max_new_tokens": 12, "use_cache": family not in OTHER_CACHES}
        written = alone.generate(**asked, **options)[0, len(prompt) :].tolist()
        assert written == ids
        for model in (alone, adapted):
            found = own_logprobs(model, prompt, ids)
            torch.testing.assert_close(found, torch.tensor(row["logprobs"][0]), rtol=0, atol=1e-4)


def test_prompts_are_not_shared_where_attention_goes_by_chunks_longer_than_a_probe(tmp_path):
    chunks = {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 64, "head_dim": 8}
    more = {"no_rope_layers": [1, 0], "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 64}
    policy = Policy.load(folder_of("llama4_text", tmp_path / "m", **chunks, **more))
    assert not policy.shares_prompts
    with policy.reading() as reader:
        assert not isinstance(reader, Slots)


def test_values_come_from_the_same_states_where_logits_are_the_models_own(tmp_path):
    policy = Policy.load(folder_of("hyperclovax", tmp_path / "m", 3.0, **TODAY["hyperclovax"]))
    policy.add_value_head()
    torch.nn.init.normal_(policy.value_head.linear.weight)
    batch = collate(GROUPS, [0, 1], [0, 2], pad_id=256, shared=False)
    both, alone = policy.tensors(batch, ["logprobs", "values"]), policy.tensors(batch, ["values"])
    assert not policy.ways.by_head
    assert torch.equal(both["values"], alone["values"])


def test_a_family_that_no_way_is_right_for_is_refused(tmp_path, monkeypatch):
    base = folder_of("olmo", tmp_path / "m", 3.0)
    from transformers import OlmoForCausalLM

    forward = OlmoForCausalLM.forward

    def padded_otherwise(self, input_ids, attention_mask=None, **options):
        out = forward(self, input_ids, attention_mask=attention_mask, **options)
        return (
            out if attention_mask is None else type(out)(logits=out.logits * 1.5, past_key_values=out.past_key_values)
        )

    Policy.load(base)
    from alignkit.models import ways

    ways._KNOWN.clear()
    monkeypatch.setattr(OlmoForCausalLM, "forward", padded_otherwise)
    monkeypatch.setattr(ways, "scaled_head", lambda model: lambda hidden: 2 * model.lm_head(hidden))
    with pytest.raises(ConfigError, match="other log-probs than olmo's own come of reading it in batches"):
        Policy.load(base)
    ways._KNOWN.clear()


def test_a_wrapped_language_model_is_trained_alone(tmp_path):
    text = {**SMALL, **WINDOW, **KINDS}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"image_token_index": 261, "boi_token_index": 260, "eoi_token_index": 259}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, **tokens
    )
    torch.manual_seed(0)
    wrapped = AutoModelForCausalLM.from_config(config).eval()
    wrapped.save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    policy = Policy.load(tmp_path / "m", lora=LoRA(r=2), trainable=True)
    assert policy.config.model_type == "gemma3_text"
    policy.export(tmp_path / "e")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "e")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, wrapped(ids).logits, rtol=0, atol=1e-5)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    base = folder_of("llama", tmp_path / "m", vocab_size=261)
    for load in (Policy.load, RewardModel.from_policy):
        with pytest.raises(ConfigError, match="the tokenizer has 262 tokens, the model 261 embeddings"):
            load(base)


def test_ids_that_are_no_tokens_are_never_drawn(tmp_path):
    policy = Policy.load(folder_of("llama", tmp_path / "m", vocab_size=600))
    with torch.no_grad():
        policy.model.lm_head.weight[262:] = 3 * policy.model.lm_head.weight[:338].clone()

    class First(Sampler):
        def warp(self, logprobs):
            likeliest = logprobs.topk(2).values[:, -1:]
            return logprobs.masked_fill(logprobs < likeliest, -torch.inf)

    prompts = Groups.from_prompts(["a", "bc"])
    for sampler in (Sampler(max_new_tokens=30), Sampler(max_new_tokens=30, greedy=True), First(max_new_tokens=30)):
        rows = sampler.sample(policy, prompts, 4)
        assert max(id for row in rows for ids in row["response_ids"] for id in ids) < 262
        for row in rows:
            prompt = policy.chat.encode_conversation(row["prompt"], "x").prompt_ids
            ours = torch.tensor(row["logprobs"][0])
            torch.testing.assert_close(
                ours, own_logprobs(policy.model, prompt, row["response_ids"][0]), rtol=0, atol=1e-4
            )


def test_a_value_head_is_as_wide_as_what_the_head_reads(tmp_path):
    policy = Policy.load(folder_of("opt", tmp_path / "m", word_embed_proj_dim=16))
    policy.add_value_head()
    batch = collate(GROUPS, [0, 1], [0, 2], pad_id=256, shared=False)
    assert policy.value_head.linear.in_features == 16
    assert policy.tensors(batch, ["values"])["values"].shape == (3, 3)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj", "biogpt", "mpt"])
def test_positions_that_run_out_are_refused_before_work(family, tmp_path):
    lengths = {"max_position_embeddings": 32, "n_positions": 32, "max_seq_len": 32}
    own = {"gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}}.get(family, {})
    policy = Policy.load(folder_of(family, tmp_path / "m", **{**own, **lengths}))
    assert policy.chat.positions == 32
    with pytest.raises(DataError, match=r"21 tokens of a prompt and max_new_tokens=12 are more than the 32 positions"):
        Sampler(max_new_tokens=12).sample(policy, Groups.from_prompts(["x", "x" * 18]))
    Sampler(max_new_tokens=11).sample(policy, Groups.from_prompts(["x" * 18]))


def test_rotary_positions_do_not_run_out(tmp_path):
    policy = Policy.load(folder_of("llama", tmp_path / "m", max_position_embeddings=32))
    assert policy.chat.positions is None
    Sampler(max_new_tokens=40).sample(policy, Groups.from_prompts(["x"]))


def test_every_verb_says_that_positions_run_out(tmp_path):
    base = folder_of("gpt2", tmp_path / "m", n_positions=32, max_position_embeddings=32)
    long = [{"prompt": f"a{i}", "responses": ["b" * 40, "c"], "ranks": [1, 2]} for i in range(2)]
    prompts = Groups.from_prompts(["x" * 18, *"abcdefgh"])
    with Run(tmp_path / "r", quiet=True) as run:
        v0 = run.policy(base, lora=LoRA(r=2))
        with pytest.raises(DataError, match=r"together have \d\d tokens, and the model has 32 positions"):
            run.sft(v0, Groups.from_rows([{"prompt": "a", "responses": ["b" * 41]}]))
        with pytest.raises(DataError, match="and the model has 32 positions"):
            run.train_reward(v0, Groups.from_rows(long), loss="pairwise_ranking")
        calls = []
        reward = lambda response: calls.append(1) or 1.0  # noqa: E731
        with pytest.raises(DataError, match="the 32 positions that the model has"):
            run.improve(
                v0, prompts, reward=reward, max_new_tokens=12, reference=v0,
                optimizer=use("ppo", rounds=9, prompts_per_round=1),
            )  # fmt: skip
        assert not calls
        short = [{**long[0], "responses": ["b", "c"]}, long[1]]
        with pytest.raises(DataError, match="and the model has 32 positions"):
            run.improve(v0, Groups.from_rows(short), reference=v0, optimizer="dpo")


@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "lm_head"), ("embed_tokens",)])
def test_an_adapter_on_weights_that_two_layers_share_is_refused(targets, tmp_path):
    base = folder_of("llama", tmp_path / "m", tie_word_embeddings=True)
    with pytest.raises(ConfigError, match=r"shares its weights with another layer\. What is sampled from"):
        Policy.load(base, lora=LoRA(r=2, targets=targets), trainable=True)


def test_a_reward_model_refuses_no_tied_head_that_it_does_not_have(tmp_path):
    base = folder_of("llama", tmp_path / "m", tie_word_embeddings=True)
    assert RewardModel.from_policy(base, lora=LoRA(r=2, targets=("q_proj", "embed_tokens"))).adapted


def test_a_target_that_no_layer_has_is_refused(tmp_path):
    for load in (
        lambda **k: Policy.load("tiny", trainable=True, **k),
        lambda **k: RewardModel.from_policy("tiny", **k),
    ):
        with pytest.raises(ConfigError, match=r"no_such.*name linear layers"):
            load(lora=LoRA(r=2, targets=("no_such",)))


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ("embed_tokens", "lm_head", "q_proj")),
        ("mixtral", "all-linear"),
        ("qwen3_moe", "all-linear"),
        ("gpt_oss", "all-linear"),
        ("gpt2", "all-linear"),
    ],
)
def test_what_is_folded_saved_and_exported_is_what_is_trained(family, targets, tmp_path):
    more = {"gpt_oss": {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}}.get(family, TODAY.get(family, {}))
    changes = {} if family == "gpt2" else {"tie_word_embeddings": False}
    base = folder_of(family, tmp_path / "m", 2.0, **{**changes, **({} if family == "llama" else more)})
    lora = LoRA(r=4, targets=targets)
    policy = Policy.load(base, lora=lora, trainable=True)
    trained = [(name, weights) for name, weights in policy.named_parameters() if "lora_" in name]
    assert trained
    assert all(weights.requires_grad for _, weights in trained)
    for _, weights in trained:
        torch.nn.init.normal_(weights, std=0.2)
    wanted = logprobs_of(policy).detach()
    assert (wanted - logprobs_of(Policy.load(base)).detach()).abs().max() > 1e-2

    def close(found):
        torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=2e-4)

    batch = collate(GROUPS, [0, 1], [0, 2], pad_id=256, shared=False)
    with policy.generating():
        close(policy.tensors(batch)["logprobs"])
    close(logprobs_of(policy))
    with policy.reading() as reader:
        assert isinstance(reader, Slots)
        first, answer = GROUPS[1].prompt_ids, GROUPS[1].responses[0]
        logits = torch.stack([reader.admit([first], 1)[0], reader.read(torch.tensor(answer[:1]))[0]])
    found = torch.log_softmax(logits, -1).gather(-1, torch.tensor(answer)[:, None])[:, 0]
    torch.testing.assert_close(found, wanted[2, :2], rtol=0, atol=2e-4)
    policy.save(tmp_path / "a")
    policy.export(tmp_path / "e")
    close(logprobs_of(Policy.load(tmp_path / "a", lora=lora, trainable=True)))
    close(logprobs_of(Policy.load(tmp_path / "e")))
    policy.fold()
    close(logprobs_of(policy))


def test_another_adapter_than_the_folders_is_refused_and_its_own_is_recorded(tmp_path):
    base, own = folder_of("llama", tmp_path / "m"), LoRA(r=4, targets=("q_proj", "v_proj"))
    Policy.load(base, lora=own, trainable=True).save(tmp_path / "a")
    for other in (LoRA(r=8, targets=own.targets), LoRA(r=4, alpha=1, targets=own.targets), LoRA(r=4)):
        with pytest.raises(ConfigError, match=r"adapter of r=4, alpha=8 on q_proj, v_proj; asked for is LoRA"):
            Policy.load(tmp_path / "a", lora=other, trainable=True)
    with Run(tmp_path / "r", quiet=True) as run:
        handle = run.policy(tmp_path / "a")
        assert (handle.lora.r, handle.lora.alpha, set(handle.lora.targets)) == (4, 8, {"q_proj", "v_proj"})
        with pytest.raises(ConfigError, match="asked for is LoRA"):
            run.policy(tmp_path / "a", lora=LoRA(r=8), name="other")
    Policy.load(base, lora=LoRA(r=4), trainable=True).save(tmp_path / "all")
    assert Policy.load(tmp_path / "all", lora=LoRA(r=4), trainable=True).adapted


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", "all-linear"),
        ("llama", ("q_proj",)),
        ("gpt2", "all-linear"),
        ("gpt2", ("c_attn",)),
        ("mixtral", ("q_proj",)),
    ],
)
def test_the_last_layers_alone_are_adapted(family, targets, tmp_path):
    base, own = folder_of(family, tmp_path / "m", **TODAY.get(family, {})), LoRA(r=2, targets=targets, layers=1)
    policy = Policy.load(base, lora=own, trainable=True)
    every = Policy.load(base, lora=LoRA(r=2, targets=targets), trainable=True)
    trained, all_of_them = ({n for n, w in p.named_parameters() if w.requires_grad} for p in (policy, every))
    assert trained == {name for name in all_of_them if ".1." in name.split("lora_")[0]}
    assert trained
    most = Policy.load(base, lora=LoRA(r=2, targets=targets, layers=9), trainable=True)
    assert {n for n, w in most.named_parameters() if w.requires_grad} == all_of_them
    policy.save(tmp_path / "a")
    again = Policy.load(tmp_path / "a", lora=own, trainable=True)
    assert {n for n, w in again.named_parameters() if w.requires_grad} == trained
    for other in (LoRA(r=2, targets=targets), LoRA(r=2, targets=targets, layers=2)):
        with pytest.raises(ConfigError, match="asked for is LoRA"):
            Policy.load(tmp_path / "a", lora=other, trainable=True)
    with Run(tmp_path / "r", quiet=True) as run:
        assert run.policy(tmp_path / "a").lora.layers == 1
    with pytest.raises(ConfigError, match="layers=0 must be at least 1"):
        LoRA(layers=0)
    with pytest.raises(ConfigError, match="experts stand in one tensor"):
        Policy.load(folder_of("mixtral", tmp_path / "e", **TODAY["mixtral"]), lora=LoRA(layers=1), trainable=True)


@pytest.mark.parametrize("change", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}])
def test_an_adapter_that_is_more_than_two_matrices_is_refused(change, tmp_path):
    from peft import LoraConfig, get_peft_model

    base, lora = folder_of("llama", tmp_path / "m"), LoRA(r=2)
    policy = Policy.load(base, lora=lora, trainable=True)
    policy.save(tmp_path / "a")
    get_peft_model(model_of("llama"), LoraConfig(r=2, target_modules="all-linear", **change)).save_pretrained(
        tmp_path / "a"
    )
    with pytest.raises(ConfigError):
        Policy.load(tmp_path / "a")


@pytest.mark.parametrize("family", ["granite", "cohere"])
def test_a_reward_model_of_a_family_without_a_classifier_is_refused(family, tmp_path):
    base = folder_of(family, tmp_path / "m")
    with pytest.raises(ConfigError, match=f"no sequence classifier of the family {family}"):
        RewardModel.from_policy(base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3", "falcon"])
def test_rounding_in_other_precisions_is_not_taken_for_another_model(family, dtype, tmp_path):
    policy = Policy.load(folder_of(family, tmp_path / "m", 3.0, **TODAY[family]), dtype=dtype)
    assert policy.ways == Ways()


@pytest.mark.parametrize("chosen", [[0], 0, [1], 1])
def test_an_adapter_of_other_layers_from_elsewhere_goes_on(chosen, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = folder_of("llama", tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=chosen, layers_pattern="layers")
    get_peft_model(model, config).save_pretrained(tmp_path / "a")
    with Run(tmp_path / "r", quiet=True) as run:
        handle = run.policy(tmp_path / "a", base=base)
    policy = Policy.load(tmp_path / "a", base=base, lora=handle.lora, trainable=True)
    place = chosen if isinstance(chosen, int) else chosen[0]
    assert all(f"layers.{place}." in name for name, weight in policy.named_parameters() if weight.requires_grad)


def test_layers_of_models_without_one_stack_are_refused():
    with pytest.raises(ConfigError, match="do not stand in one list"):
        LoRA(layers=1).config(NoStack())


class NoStack(torch.nn.Module):
    """Two towers of two layers each."""

    def __init__(self):
        super().__init__()
        self.config = AutoConfig.for_model("llama", num_hidden_layers=2)
        self.seeing, self.reading = (torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)]) for _ in range(2))
