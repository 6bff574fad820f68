"""What leaves a run: in the base's dtype, with the ends and settings that belong, as others' libraries read it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from alignkit import ConfigError, Groups, LoRA, Run
from alignkit.data import ChatFormat
from alignkit.engine.scoring import Scorer
from alignkit.models import Policy, RewardModel
from alignkit.models.tiny_tokenizer import tiny_tokenizer

ROWS = Groups.from_rows([{"prompt": f"q{n}", "responses": [f"yes {n}"]} for n in range(4)])
PAIRS = Groups.from_rows([{"prompt": f"q{n}?", "responses": ["a good answer", "b"], "ranks": [1, 2]} for n in range(4)])
IDS = torch.tensor([[1, 5, 9, 30, 44]])


def folder_of(
    folder: Path, tokenizer: Any = None, tie: bool = False, dtype: torch.dtype = torch.float32, **generation: Any
) -> Path:
    tokenizer = tokenizer or tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tie, pad_token_id=None, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, attention_dropout=0.25,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    generation = {"eos_token_id": tokenizer.eos_token_id, **generation}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer.save_pretrained(folder)
    return folder


def read(folder: Path, name: str = "config.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def dtypes(folder: Path) -> dict[str, torch.dtype]:
    with safe_open(folder / "model.safetensors", "pt") as opened:
        return {name: opened.get_tensor(name).dtype for name in opened.keys()}  # noqa: SIM118


# ---- dtype, settings, ties ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [LoRA(r=2), None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_export_has_the_dtype_of_its_base_however_many_stages_lie_between(
    dtype: torch.dtype, lora: LoRA | None, tmp_path: Path
) -> None:
    base = folder_of(tmp_path / "m", dtype=dtype)
    with Run(tmp_path / "r", quiet=True) as run:
        learned = run.sft(run.policy(base, lora=lora), ROWS, epochs=1, name="one")
        learned = run.sft(learned, ROWS, epochs=1, name="two")
        out = run.export(learned)
        wide = run.export(learned, dtype="float32", name="wide")
    assert set(dtypes(out).values()) == {dtype}
    assert read(out)["dtype"] == str(dtype).removeprefix("torch.")
    assert set(dtypes(wide).values()) == {torch.float32}
    with torch.no_grad():
        trained = learned.load()
        exact = AutoModelForCausalLM.from_pretrained(wide)(IDS).logits
        with trained.generating() as model:
            torch.testing.assert_close(exact, model(IDS).logits, rtol=0, atol=1e-5)
        near = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(IDS).logits
    assert float((near - exact).abs().max()) < (1e-5 if dtype == torch.float32 else 0.05)


def test_a_policy_of_a_stage_that_another_run_brings_in_remembers_its_base(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "m", dtype=torch.bfloat16)
    with Run(tmp_path / "r", quiet=True) as run:
        learned = run.sft(run.policy(base, lora=None), ROWS, epochs=1)
    with Run(tmp_path / "s", quiet=True) as run:
        out = run.export(run.policy(learned.model_folder, lora=None))
    assert set(dtypes(out).values()) == {torch.bfloat16}


@pytest.mark.parametrize("lora", [LoRA(r=2), None])
@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
        {"do_sample": True, "top_k": 7},
        {"repetition_penalty": 2},
    ],
)
def test_how_a_model_is_generated_from_stays_as_it_came(
    settings: dict[str, Any], lora: LoRA | None, tmp_path: Path
) -> None:
    Policy.load(folder_of(tmp_path / "m", **settings), lora=lora, trainable=True).export(tmp_path / "e")
    written = read(tmp_path / "e", "generation_config.json")
    assert {name: written.get(name) for name in ("do_sample", *settings)} == {"do_sample": None, **settings}


@pytest.mark.parametrize("lora", [LoRA(r=2), None])
@pytest.mark.parametrize("said", [True, False])
def test_what_is_not_tied_is_not_tied_by_an_export(said: bool, lora: LoRA | None, tmp_path: Path) -> None:
    base = folder_of(tmp_path / "m")
    (base / "config.json").write_text(json.dumps({**read(base), "tie_word_embeddings": said}))
    policy = Policy.load(base, lora=lora, trainable=True)
    policy.export(tmp_path / "e")
    assert not read(tmp_path / "e")["tie_word_embeddings"]
    with torch.no_grad():
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "e")(IDS).logits
        torch.testing.assert_close(exported, policy.model(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora", [LoRA(r=2), None])
def test_what_is_tied_stays_tied(lora: LoRA | None, tmp_path: Path) -> None:
    base = folder_of(tmp_path / "m", tie=True)
    Policy.load(base, lora=lora, trainable=True).export(tmp_path / "e")
    assert read(tmp_path / "e")["tie_word_embeddings"]
    assert dtypes(tmp_path / "e").keys() == dtypes(base).keys()
    assert read(tmp_path / "e")["attention_dropout"] == 0.25


# ---- ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
def test_an_export_ends_with_the_added_token_that_its_template_writes(special: bool, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|done|>", "<|pause|>"], special_tokens=special)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|done|>")
    done, pause = tokenizer.convert_tokens_to_ids(["<|done|>", "<|pause|>"])
    eos = tokenizer.eos_token_id
    policy = Policy.load(folder_of(tmp_path / "m", tokenizer, eos_token_id=[eos, pause]))
    assert policy.chat.end_ids == (done, eos, pause)
    policy.export(tmp_path / "e")
    assert read(tmp_path / "e", "generation_config.json")["eos_token_id"] == [done, eos, pause]


# ---- reward models ----------------------------------------------------------------------------------------------


def without_pad() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    return tokenizer


@pytest.mark.parametrize("lora", [LoRA(r=2), None])
@pytest.mark.parametrize("make", [without_pad, tiny_tokenizer])
def test_an_exported_reward_model_is_a_classifier_that_scores_batches_alone(
    make: Any, lora: LoRA | None, tmp_path: Path
) -> None:
    base = folder_of(tmp_path / "m", make(), dtype=torch.bfloat16)
    with Run(tmp_path / "r", quiet=True) as run:
        reward = run.train_reward(run.policy(base, lora=lora), PAIRS, loss="pairwise_ranking", learning_rate=1e-2)
        out, wide = run.export(reward), run.export(reward, dtype="float32", name="wide")
        values = reward.score(PAIRS).values
    assert dtypes(out).pop("score.weight") == torch.float32
    assert set(dtypes(out).values()) == {torch.bfloat16, torch.float32}
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(wide), AutoTokenizer.from_pretrained(wide)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.pad_token_id not in RewardModel.load(wide).chat.end_ids
    chat = RewardModel.load(wide).chat
    for row, scores in zip(PAIRS, values, strict=True):
        texts = [chat.encode_conversation(row["prompt"], text) for text in row["responses"]]
        padded = tokenizer.pad({"input_ids": [t.prompt_ids + t.response_ids for t in texts]}, return_tensors="pt")
        with torch.no_grad():
            found = model(**padded).logits[:, 0]
        torch.testing.assert_close(found, torch.tensor(scores), rtol=0, atol=1e-4)
    again = Scorer.load(wide).score(PAIRS).values
    torch.testing.assert_close(torch.tensor(again), torch.tensor(values), rtol=0, atol=1e-4)


def test_an_end_is_no_padding_where_the_tokenizer_pads_with_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    chat = ChatFormat(tokenizer)
    assert tokenizer.pad_token_id in chat.end_ids
    assert chat.id_beside_ends() not in chat.end_ids
    assert isinstance(chat.id_beside_ends(), int)


def test_a_reward_model_is_exported_with_its_zero_at_given_rows(tmp_path: Path) -> None:
    with Run(tmp_path / "r", quiet=True) as run:
        reward = run.train_reward(run.policy("tiny"), PAIRS, loss="pairwise_ranking", learning_rate=1e-2)
        out = run.export(reward, centre=ROWS)
        again = run.reward_model(out, name="again")
        twice = run.export(again, centre=PAIRS, name="twice")
        before, shown, after = (torch.tensor(each.score(rows).values) for each, rows in
                                ((reward, PAIRS), (reward, ROWS), (again, PAIRS)))  # fmt: skip
        with pytest.raises(ConfigError, match="centre, and this is no reward model"):
            run.export(run.policy("tiny", name="p"), centre=ROWS, name="wrong")
    mean = float(shown.mean())
    assert abs(mean) > 1e-3
    torch.testing.assert_close(after, before - mean, rtol=0, atol=1e-5)
    assert (read(out)["mean"], read(out)["std"]) == (pytest.approx(mean, abs=1e-6), 1.0)
    assert read(twice)["mean"] == pytest.approx(float(before.mean()), abs=1e-5)


def test_a_reward_model_of_a_stage_has_a_pad_id_too(tmp_path: Path) -> None:
    RewardModel.from_policy(folder_of(tmp_path / "m", without_pad())).save(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[1, 2, 3], [4, 5, 6]])).logits.shape == (2, 1)


# ---- adapters ---------------------------------------------------------------------------------------------------


def test_an_exported_adapter_is_a_peft_folder_that_moves_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForCausalLM

    with Run(tmp_path / "r", quiet=True) as run:
        learned = run.sft(run.policy("tiny", lora=LoRA(r=2)), ROWS, epochs=8, learning_rate=1e-2)
        out = run.export(learned, adapter=True)
    assert (out / "README.md").read_text().startswith("---")
    assert not list(out.glob("model*.safetensors"))
    with learned.load().generating() as model:
        wanted = model(IDS).logits
    (tmp_path / "r").rename(tmp_path / "elsewhere")
    out = tmp_path / "elsewhere" / out.relative_to(tmp_path / "r")
    named = read(out, "adapter_config.json")["base_model_name_or_path"]
    assert not os.path.isabs(named)
    assert (out / named / "config.json").is_file()
    with torch.no_grad():
        torch.testing.assert_close(Policy.load(out).model(IDS).logits, wanted, rtol=0, atol=1e-5)
        monkeypatch.chdir(out)
        alone = AutoPeftModelForCausalLM.from_pretrained(".")
        torch.testing.assert_close(alone(IDS).logits, wanted, rtol=0, atol=1e-5)
    assert read(out, "generation_config.json")["eos_token_id"] == alone.config.eos_token_id


def test_an_adapter_is_exported_of_a_policy_that_has_one(tmp_path: Path) -> None:
    with Run(tmp_path / "r", quiet=True) as run:
        whole = run.policy("tiny", lora=None)
        with pytest.raises(ConfigError, match="the policy has none: all of its weights are trained"):
            run.export(whole, adapter=True)
        reward = run.train_reward(run.policy("tiny", name="p"), PAIRS, loss="pairwise_ranking", epochs=1)
        with pytest.raises(ConfigError, match="export it whole: its score head belongs to it"):
            run.export(reward, adapter=True)
        with pytest.raises(ConfigError, match="there is no adapter"):
            Policy.load("tiny").export_adapter(tmp_path / "x")


# ---- peft's folders ---------------------------------------------------------------------------------------------


def peft_folder(folder: Path, base: Path, beside: bool = False, **more: Any) -> Any:
    """What peft leaves, and its model."""
    from peft import LoraConfig, get_peft_model

    plain = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(plain, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **more))
    torch.manual_seed(3)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(folder)
    if beside:
        tiny_tokenizer().save_pretrained(folder)
        plain.config.save_pretrained(folder)
    return model.eval()


def edit(folder: Path, name: str = "adapter_config.json", **changes: Any) -> None:
    (folder / name).write_text(json.dumps({**read(folder, name), **changes}))


@pytest.mark.parametrize("beside", [False, True])
def test_a_policy_of_pefts_folder_goes_on_from_there(
    beside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = folder_of(tmp_path / "m", dtype=torch.bfloat16)
    theirs = peft_folder(tmp_path / "a", base, beside)
    with Run(tmp_path / "r") as run:
        policy = run.policy(tmp_path / "a")
        assert policy.lora == LoRA(4, 8, ("q_proj",))
        learned = run.sft(policy, ROWS, epochs=1, learning_rate=1e-12)
        out = run.export(learned)
    assert f"a is an adapter; its base is {base}" in capsys.readouterr().out
    with torch.no_grad():
        wanted = theirs.float()(IDS).logits
        for one in (policy, learned):
            torch.testing.assert_close(one.load().model(IDS).logits, wanted, rtol=0, atol=1e-4)
    assert set(dtypes(out).values()) == {torch.bfloat16}
    with Run(tmp_path / "r", quiet=True) as run:
        assert run.policy(tmp_path / "a").key == policy.key
        edit(tmp_path / "a", lora_alpha=16)
        assert run.policy(tmp_path / "a", name="other").key != policy.key


def test_the_tokenizer_that_an_adapter_brings_is_its_own(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "m")
    peft_folder(tmp_path / "a", base)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ 'Mine. ' }}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "a")
    with Run(tmp_path / "r", quiet=True) as run:
        learned = run.sft(run.policy(tmp_path / "a"), ROWS, epochs=1)
        again = run.sft(learned, ROWS, epochs=1, name="again")
        out = run.export(again)
    assert Policy.load(base).chat.template != tokenizer.chat_template
    for policy in (learned.load(), again.load(), Policy.load(out)):
        assert policy.chat.template == tokenizer.chat_template


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_model_name_or_path": None}, r"names no base.*run\.policy\(FOLDER, base=…\)"),
        ({"base_model_name_or_path": "../../m"}, "names a base outside of it"),
        ({"base_model_name_or_path": "/nowhere/m"}, "which is not there"),
        ({"peft_type": "IA3"}, "an adapter of the kind IA3"),
        ({"r": "four"}, "names no rank"),
    ],
)
def test_what_pefts_folder_lacks_is_said(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    peft_folder(tmp_path / "a", folder_of(tmp_path / "m"))
    edit(tmp_path / "a", **changes)
    with pytest.raises(ConfigError, match=said):
        Policy.load(tmp_path / "a")


def test_the_base_can_be_named(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "m")
    theirs = peft_folder(tmp_path / "a", base)
    edit(tmp_path / "a", base_model_name_or_path="somebody/gone")
    with Run(tmp_path / "r", quiet=True) as run, torch.no_grad():
        policy = run.policy(tmp_path / "a", base=base)
        torch.testing.assert_close(policy.load().model(IDS).logits, theirs(IDS).logits, rtol=0, atol=1e-5)
        with pytest.raises(ConfigError, match="alignkit's adapters know their base"):
            run.policy(policy.model_folder, base=base, name="twice")
        with pytest.raises(ConfigError, match="this is no adapter"):
            run.policy(base, base=base, name="plain")


def test_weights_and_an_adapter_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "m")
    peft_folder(tmp_path / "m", base)
    with pytest.raises(ConfigError, match=r"holds whole weights and adapter_config\.json"):
        Policy.load(base)


def test_an_adapter_is_no_reward_model(tmp_path: Path) -> None:
    peft_folder(tmp_path / "a", folder_of(tmp_path / "m"), beside=True)
    with pytest.raises(ConfigError, match="holds an adapter, and not a whole classifier"):
        RewardModel.load(tmp_path / "a")
