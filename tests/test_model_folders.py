"""Model folders: what is missing, of another shape, torn or made by code of the folder's is refused; ends are kept."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from alignkit import ConfigError, Groups, LoRA, Policy, Run
from alignkit.models import RewardModel, remote_code

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "m"
    Policy.load("tiny").save(folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "m")
    return tmp_path / "m"


def change(folder, edit, name=WEIGHTS):
    weights = load_file(str(folder / name))
    edit(weights)
    save_file(weights, str(folder / name), {"format": "pt"})


def write(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


LAYER = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("load", [Policy.load, RewardModel.from_policy, lambda f: Policy.load(f, lora=LoRA(r=2))])
def test_missing_weights_are_refused_by_name(copy, load):
    change(copy, lambda weights: weights.pop(LAYER))
    with pytest.raises(ConfigError, match=rf"1 weights are in no file: {LAYER}\. They would be random"):
        load(copy)


def test_a_missing_output_head_is_refused_and_a_tied_one_is_not_missing(copy, tmp_path):
    assert not json.loads((copy / "config.json").read_text())["tie_word_embeddings"]
    change(copy, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ConfigError, match=r"lm_head\.weight"):
        Policy.load(copy)
    write(copy / "config.json", tie_word_embeddings=True)
    policy = Policy.load(copy)
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight


def test_a_policy_is_no_reward_model(whole):
    with pytest.raises(ConfigError, match=r"score\.weight.*run\.train_reward"):
        RewardModel.load(whole)


def test_a_reward_model_without_its_score_head_is_refused(whole, tmp_path):
    RewardModel.from_policy(whole).save(tmp_path / "rm")
    assert RewardModel.load(tmp_path / "rm").head.weight.shape[0] == 1
    change(tmp_path / "rm", lambda weights: weights.pop("score.weight"))
    with pytest.raises(ConfigError, match=r"1 weights are in no file: score\.weight"):
        RewardModel.load(tmp_path / "rm")


def test_weights_of_another_shape_are_refused(copy):
    change(copy, lambda weights: weights.update({LAYER: weights[LAYER][:-1].clone()}))
    with pytest.raises(ConfigError, match=LAYER):
        Policy.load(copy)


def test_a_torn_file_is_refused(copy):
    content = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Policy.load(copy)


def test_weights_without_a_place_are_named(copy, caplog):
    change(copy, lambda weights: weights.update({"v_head.weight": torch.zeros(1, 2)}))
    Policy.load(copy)
    assert "1 weights have no place in the model: v_head.weight" in caplog.text


def test_an_adapter_lacks_nothing(whole, tmp_path):
    policy = Policy.load(whole, lora=LoRA(r=2), trainable=True)
    policy.save(tmp_path / "a")
    name = "adapter_model.safetensors"
    assert Policy.load(tmp_path / "a").adapted
    part = next(key for key in load_file(str(tmp_path / "a" / name)) if "layers.1" in key)
    change(tmp_path / "a", lambda weights: weights.pop(part), name)
    with pytest.raises(ConfigError, match=f"1 weights are in no file: {part}"):
        Policy.load(tmp_path / "a")
    (tmp_path / "a" / name).rename(tmp_path / "a" / "elsewhere")
    with pytest.raises(ConfigError, match="save the adapter anew"):
        Policy.load(tmp_path / "a")


CODE = """import pathlib; pathlib.Path({marker!r}).touch()
from transformers import LlamaConfig as C, LlamaForCausalLM as M
"""


@pytest.mark.parametrize("load", [Policy.load, RewardModel.load])
@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": "x", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}),
        ("tokenizer_config.json", {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": [None, "own.T"]}}),
    ],
)
def test_code_of_a_folder_never_runs_and_nobody_is_asked(copy, tmp_path, monkeypatch, load, file, changes):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (copy / "own.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    write(copy / file, **changes)
    if load == RewardModel.load and file != "config.json":
        change(copy, lambda weights: weights.update({"score.weight": weights.pop("lm_head.weight")[:1].clone()}))
        write(copy / "config.json", id2label={"0": "one"}, label2id={"one": 0})
    with pytest.raises(ConfigError, match="brings code of its own"):
        load(copy)
    assert not (tmp_path / "ran").exists()


def own_code(folder, marker):
    """A folder that only its own code can make."""
    (folder / "own.py").write_text(
        f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig): model_type = 'own_kind'\n"
        "class M(LlamaForCausalLM): config_class = C\n"
    )
    maps = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    write(folder / "config.json", model_type="own_kind", auto_map=maps)


def test_code_runs_where_the_user_names_its_revision(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_code, "_FILES", set())
    own_code(copy, tmp_path / "ran")
    with pytest.raises(ConfigError, match="brings code of its own") as caught:
        Policy.load(copy)
    revision = remote_code.code_digest(copy)
    assert f"code_revision={revision!r}" in caught.value.remedy
    for wrong, said in (("main", "40 hex digits"), ("0" * 40, f"its code is {revision}")):
        with pytest.raises(ConfigError, match=said):
            Policy.load(copy, code_revision=wrong)
    assert not (tmp_path / "ran").exists()
    rows = Groups.from_rows([{"prompt": "hi", "responses": ["ok"]}] * 2)
    with Run(tmp_path / "r", quiet=True) as run:
        learned = run.sft(run.policy(copy, lora=LoRA(r=2), code_revision=revision), rows, epochs=1)
        exported = run.export(learned)
    assert (tmp_path / "ran").exists()
    assert type(Policy.load(exported).model).__name__ == "M", "what was made of it has the same code"
    (copy / "own.py").write_text((copy / "own.py").read_text() + "# edited\n")
    with pytest.raises(ConfigError, match="brings code of its own"):
        Policy.load(copy)
    with pytest.raises(ConfigError, match="Code that nobody looked at would run"):
        Policy.load(copy, code_revision=revision)


def test_permitted_code_fetches_no_other(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_code, "_FILES", set())
    own_code(copy, tmp_path / "ran")
    write(copy / "config.json", auto_map={"AutoConfig": "somebody/else--own.C", "AutoModelForCausalLM": "own.M"})
    with pytest.raises(ConfigError, match=r"fetches code: auto_map\.AutoConfig is 'somebody/else--own\.C'"):
        Policy.load(copy, code_revision=remote_code.code_digest(copy))
    assert not (tmp_path / "ran").exists()


def test_a_commit_of_the_hub_is_named_by_its_forty_digits(tmp_path, monkeypatch):
    """From a cache that was made by hand: the commit that is named is what is loaded, and no other is."""
    commit = "0123456789" * 4
    monkeypatch.setattr(remote_code, "_COMMITS", {})
    monkeypatch.setattr(remote_code, "_FILES", set())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    # Where transformers keeps the code of a commit for good: an earlier run's is not this one's.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    snapshot = tmp_path / "models--somebody--own" / "snapshots" / commit
    Policy.load("tiny").save(snapshot)
    own_code(snapshot, tmp_path / "ran")
    with pytest.raises(ConfigError):
        Policy.load("somebody/own")
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    policy = Policy.load("somebody/own", code_revision=commit)
    assert type(policy.model).__name__ == "M"
    assert policy.base_digest == f"hub:somebody/own@{commit}"


@pytest.mark.parametrize(
    "entry",
    [
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel@main"},
        {"_attn_implementation_internal": "somebody/kernel"},
        {"attn_implementation": {"": "paged|somebody/kernel:f"}},
        {"experts_implementation": "somebody/kernel"},
        {"text_config": {"_attn_implementation": "somebody/kernel"}},
    ],
)
@pytest.mark.parametrize("load", [Policy.load, RewardModel.load])
def test_kernels_that_a_configuration_names_are_not_fetched(copy, load, entry):
    write(copy / "config.json", **entry)
    with pytest.raises(ConfigError, match=r"its configuration fetches code: .*implementation"):
        load(copy)


def test_a_processor_of_the_folders_is_not_run(copy, tmp_path):
    (copy / "own.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    for name in ("processor_config.json", "preprocessor_config.json", "image_processor_config.json"):
        (copy / name).write_text(json.dumps({"processor_class": "P", "auto_map": {"AutoProcessor": "own.C"}}))
    write(copy / "config.json", auto_map={"AutoProcessor": "own.C", "AutoModelForSequenceClassification": "own.M"})
    RewardModel.from_policy(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"\xff"),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"[1]"),
        ("generation_config.json", b"{"),
        (WEIGHTS, b""),
        (WEIGHTS, b"\xff" * 8),
        (WEIGHTS, (2**60).to_bytes(8, "little") + b"{}"),
    ],
)
def test_a_torn_or_foreign_file_is_one_message(copy, name, content):
    (copy / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Policy.load(copy)
    assert str(copy) in caught.value.where


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"base": 1, "base_digest": "x"}', b"\xff"])
def test_a_torn_note_beside_an_adapter_is_one_message(copy, tmp_path, content):
    Policy.load(copy, lora=LoRA(r=2), trainable=True).save(tmp_path / "a")
    (tmp_path / "a" / "alignkit.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"alignkit\.json.*save the"):
        Policy.load(tmp_path / "a")


def test_pickled_weights_are_not_read(copy, tmp_path):
    torch.save(load_file(str(copy / WEIGHTS)), copy / "pytorch_model.bin")
    (copy / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=r"the weights are pickled \(pytorch_model\.bin\).*safetensors"):
        Policy.load(copy)


def test_a_tensor_that_is_named_twice_is_refused(copy):
    content = (copy / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    head, rest = content[8 : 8 + length].rstrip(), content[8 + length :]
    first = json.loads(head)["lm_head.weight"]
    head = head[:-1] + b', "lm_head.weight": ' + json.dumps(first).encode() + b"}"
    (copy / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head + rest)
    with pytest.raises(ConfigError, match=r"it names lm_head\.weight twice"):
        Policy.load(copy)


def test_a_record_that_is_longer_than_any_is_not_read(copy):
    with (copy / "tokenizer_config.json").open("ab") as file:
        file.truncate(200 * 2**20)
    with pytest.raises(ConfigError, match="209715200 bytes of JSON"):
        RewardModel.load(copy)


def test_a_family_that_transformers_knows_needs_no_code_of_the_folder(copy):
    write(copy / "config.json", auto_map={"AutoModelForCausalLM": "own.M"})
    assert type(Policy.load(copy).model).__name__ == "LlamaForCausalLM"


TWO = ["num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "num_key_value_heads", "num_experts"]
NAMES = ["hidden_size", "n_embd", "intermediate_size", "ffn_dim", "vocab_size", "max_position_embeddings"]
SIZES = {**dict.fromkeys(TWO, 2), **dict(zip(NAMES, (16, 16, 32, 32, 64, 64), strict=True)), "num_local_experts": 2}


@pytest.mark.parametrize(
    "family",
    ["llama", "gpt2", "opt", "falcon", "gemma2", "gemma3_text", "qwen2", "qwen3", "mistral", "mixtral", "phi", "olmo2"],
)
def test_whole_folders_of_families_lack_nothing(family, tmp_path):
    """A head that is tied, or experts that are stored apart, are not missing."""
    from alignkit.models.loading import load_model, resolve_source

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, pad_token_id=0))
    model.save_pretrained(tmp_path)
    found = load_model(AutoModelForCausalLM, resolve_source(str(tmp_path)), torch.float32)
    ours, theirs = model.state_dict(), found.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def several_ends(folder):
    """Ids of a policy's EOS and of another added token, both of which its generation configuration names."""
    tokenizer = Policy.load(folder).tokenizer
    other = tokenizer.convert_tokens_to_ids("<|tool|>")
    write(folder / "generation_config.json", eos_token_id=[tokenizer.eos_token_id, other])
    return tokenizer.eos_token_id, other


def test_every_end_that_the_generation_configuration_names_ends_a_response(copy):
    eos, other = several_ends(copy)
    assert set(Policy.load(copy).chat.end_ids) == {eos, other}
    write(copy / "generation_config.json", eos_token_id=[eos, 3])
    assert Policy.load(copy).chat.end_ids == (eos,), "3 is an ordinary byte"


def test_an_exported_folder_ends_where_its_responses_ended(copy, tmp_path):
    """Base models name an end of text; their template closes turns with another token, which is what is learned."""
    policy = Policy.load(copy)
    end = policy.chat.end_of_turn_id
    other = policy.tokenizer.convert_tokens_to_ids("<|tool|>")
    write(copy / "generation_config.json", eos_token_id=other)
    with Run(tmp_path / "r", quiet=True) as run:
        rows = Groups.from_rows([{"prompt": "hi", "responses": ["ok"]}] * 2)
        for number, lora in enumerate((LoRA(r=2), None)):
            learned = run.sft(run.policy(copy, lora=lora, name=f"p{number}"), rows, epochs=1, name=f"s{number}")
            written = json.loads((run.export(learned, name=f"e{number}") / "generation_config.json").read_text())
            assert written["eos_token_id"] == [end, other]
