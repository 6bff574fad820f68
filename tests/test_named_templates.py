"""Chat templates by name, for base models without one: what they write, what they need, and a run with one."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit import ConfigError, Groups, LoRA, Run
from alignkit.data.chat import ChatFormat
from alignkit.errors import DataError
from alignkit.models import Policy
from alignkit.models.given_template import give_template, template_text
from alignkit.models.named_templates import NAMED, TOKENS
from alignkit.models.tiny_tokenizer import tiny_tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And?"},
]

WRITTEN = {  # ¤: the tokenizer's end token
    "alpaca": (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.¤\n\n### Instruction:\nAnd?\n\n### Response:\n"
    ),
    "tulu": "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello.¤\n<|user|>\nAnd?\n<|assistant|>\n",
    "zephyr": "<|system|>\nBe brief.¤\n<|user|>\nHi¤\n<|assistant|>\nHello.¤\n<|user|>\nAnd?¤\n<|assistant|>\n",
    "vicuna": "Be brief.\n\nUSER: Hi\nASSISTANT: Hello.¤\nUSER: And?\nASSISTANT: ",
    "anthropic": "Be brief.\n\nHuman: Hi\n\nAssistant: Hello.¤\n\nHuman: And?\n\nAssistant: ",
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "Hello.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "gemma": (
        "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n"
    ),
}


def base(*tokens: str, bos: bool = False) -> Any:
    """A tokenizer of a base model: no template, and the tokens that it is given."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    if bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.bos_token = "<|pad|>"
        core = tokenizer.backend_tokenizer
        core.post_processor = TemplateProcessing(single="<|pad|> $A", special_tokens=[("<|pad|>", 256)])
    return tokenizer


@pytest.mark.parametrize("name", NAMED)
def test_each_name_writes_the_layout_that_it_is_known_for(name):
    tokenizer = base(*(TOKENS[name][0] if name in TOKENS else ()))
    give_template(tokenizer, template_text(name, "test"), {}, "test")
    shown = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert shown == WRITTEN[name].replace("¤", tokenizer.eos_token)


@pytest.mark.parametrize("name", NAMED)
def test_an_answer_ends_where_the_layout_ends_it(name):
    tokenizer = base(*(TOKENS[name][0] if name in TOKENS else ()))
    give_template(tokenizer, template_text(name, "test"), {}, "test")
    ends = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
    chat = ChatFormat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(chat.end_of_turn_id) == ends.get(name, "<|end|>")


@pytest.mark.parametrize("name", ["tulu", "chatml"])
def test_it_begins_with_bos_where_texts_of_the_tokenizer_do(name):
    for bos in (True, False):
        tokenizer = base(*(TOKENS[name][0] if name in TOKENS else ()), bos=bos)
        give_template(tokenizer, NAMED[name], {}, "test")
        ids = ChatFormat(tokenizer).encode_prompt(TALK)
        assert (ids[0] == 256) is bos
        assert ids.count(256) == bos


def test_a_bos_that_no_text_of_the_tokenizer_begins_with_is_not_written():
    tokenizer = base()
    tokenizer.bos_token = "<|pad|>"
    give_template(tokenizer, NAMED["tulu"], {}, "test")
    assert 256 not in ChatFormat(tokenizer).encode_prompt(TALK)


@pytest.mark.parametrize("name", TOKENS)
def test_marks_that_are_no_tokens_are_refused_with_what_would_do(name):
    with pytest.raises(ConfigError, match=rf"{name} needs the tokens .*use one of words alone: alpaca, tulu"):
        give_template(base(), NAMED[name], {}, "test")


def test_a_name_that_is_none_tells_the_names():
    with pytest.raises(ConfigError, match=r"chat_template='tullu' cannot be read.*alpaca, tulu"):
        template_text("tullu", "test")


def test_a_base_model_learns_and_is_exported_with_the_template_of_a_name(tmp_path):
    policy = Policy.load("tiny")
    policy.tokenizer.chat_template = None
    policy.model.save_pretrained(tmp_path / "base")
    policy.tokenizer.save_pretrained(tmp_path / "base")
    demos = Groups.from_rows([{"prompt": "Hi", "responses": ["Hello."]}] * 2)
    bare = pytest.raises(DataError, match=r'no chat template.*chat_template="tulu"')
    with bare, Run(tmp_path / "run", quiet=True) as run:
        run.sft(run.policy(tmp_path / "base", lora=LoRA(r=2), name="bare"), demos)
    with Run(tmp_path / "run", quiet=True) as run:
        v0 = run.policy(tmp_path / "base", lora=LoRA(r=2), chat_template="tulu")
        exported = run.export(run.sft(v0, demos))
    found = Policy.load(exported)
    shown = found.tokenizer.decode(found.chat.encode_prompt(TALK[1:2]))
    assert shown == "<|user|>\nHi\n<|assistant|>\n"
