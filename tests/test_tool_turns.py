"""Calls of tools, their schemas and thoughts go through the chat template, or are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit import DataError, Groups, Run, read_groups
from alignkit.data import ChatFormat, check_groups, encode_groups
from alignkit.groups import Message, prompt_id
from alignkit.models.tiny_tokenizer import tiny_tokenizer

KNOWS_TOOLS = (
    "{% if tools %}{{ '<|system|>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|end|>' }}{% endif %}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message.reasoning_content and loop.last %}{{ '[' + message.reasoning_content + ']' }}{% endif %}"
    "{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ '(' + (call.function | tojson) + ')' }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "teas", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "teas", "arguments": {"of": "China"}}}
SHOWN = '({"name": "teas", "arguments": {"of": "China"}})'
TALK = [
    {"role": "user", "content": "Which?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "Oolong", "tool_call_id": "1"},
    {"role": "assistant", "content": "Oolong."},
]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(tiny_tokenizer(), template=KNOWS_TOOLS)


def text(chat: ChatFormat, ids: list[int]) -> str:
    return str(chat.tokenizer.decode(ids, skip_special_tokens=False))


def encoded(chat: ChatFormat, row: dict[str, Any], train: Any = "last") -> Any:
    groups = read_groups([row])
    found, problems = encode_groups(groups, chat, max_prompt_tokens=900, max_response_tokens=900, train=train)
    assert not problems, problems[0]
    return found[0]


def learned(chat: ChatFormat, group: Any) -> str:
    return text(chat, [i for i, on in zip(group.prompt_ids, group.prompt_trained, strict=True) if on])


def test_calls_and_schemas_are_in_the_prompt_as_the_template_writes_them(chat: ChatFormat) -> None:
    group = encoded(chat, {"messages": TALK, "tools": TOOLS})
    schema = json.dumps(TOOLS[0])
    wanted = (
        f"<|system|>{schema}<|end|><|user|>Which?<|end|><|assistant|>{SHOWN}<|end|><|tool|>Oolong<|end|><|assistant|>"
    )
    assert text(chat, group.prompt_ids) == wanted
    assert text(chat, group.responses[0]) == "Oolong.<|end|>"


def test_an_answer_that_is_a_call_is_learned_as_the_template_writes_it(chat: ChatFormat) -> None:
    group = encoded(chat, {"messages": TALK[:2], "tools": TOOLS})
    assert text(chat, group.responses[0]) == f"{SHOWN}<|end|>"
    said = encoded(chat, {"messages": [TALK[0], {**TALK[1], "content": "Let me see."}]})
    assert text(chat, said.responses[0]) == f"Let me see.{SHOWN}<|end|>"


def test_arguments_may_be_json_text_and_calls_of_older_forms(chat: ChatFormat) -> None:
    older = {"role": "assistant", "content": None, "function_call": {"name": "teas", "arguments": '{"of": "China"}'}}
    assert encoded(chat, {"messages": [TALK[0], older]}).responses == encoded(chat, {"messages": TALK[:2]}).responses


def test_an_earlier_call_is_learned_where_it_is_to_be(chat: ChatFormat) -> None:
    row = {"messages": [TALK[0], {**TALK[1], "trained": True}, *TALK[2:]]}
    assert learned(chat, encoded(chat, row)) == f"{SHOWN}<|end|>"
    assert learned(chat, encoded(chat, {"messages": TALK}, "all")) == f"{SHOWN}<|end|>"
    assert encoded(chat, {"messages": TALK}).prompt_trained is None


def test_an_answer_of_weight_0_is_never_learned(chat: ChatFormat) -> None:
    talk = [
        TALK[0],
        {"role": "assistant", "content": "BAD", "weight": 0},
        TALK[0],
        {"role": "assistant", "content": "So."},
    ]
    talk += [TALK[0], TALK[3]]
    assert learned(chat, encoded(chat, {"messages": talk}, "all")) == "So.<|end|>"
    assert learned(chat, encoded(chat, {"messages": talk}, "last")) == "So.<|end|>"


def test_thoughts_are_learned_where_the_template_shows_them(chat: ChatFormat) -> None:
    row = {"messages": [TALK[0], {"role": "assistant", "content": "Oolong.", "reasoning_content": "Hm."}]}
    assert text(chat, encoded(chat, row).responses[0]) == "[Hm.]Oolong.<|end|>"
    # Those of an earlier answer a template may leave out; they are not learned then.
    talk = [*row["messages"], TALK[0], TALK[3]]
    assert "Hm." not in text(chat, encoded(chat, {"messages": talk}).prompt_ids)
    marked = {"messages": [talk[0], {**talk[1], "trained": True}, *talk[2:]]}
    [problem] = check_groups(read_groups([marked]), "demonstrations", chat)[:1]
    assert (problem.code, problem.note) == ("D13", False)
    assert "does not show the reasoning_content of message 1" in problem.what


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": TALK}, "tool_calls of message 1"),
        ({"messages": TALK[:2]}, "tool_calls of message 1"),
        ({"messages": [TALK[0], TALK[3]], "tools": TOOLS}, "tools"),
        ({"messages": [TALK[0], {**TALK[3], "thinking": "Hm."}]}, "reasoning_content of message 1"),
        ({"prompt": [TALK[0]], "chosen": [TALK[1]], "rejected": [TALK[3]]}, "tool_calls of message 1"),
    ],
)
def test_what_a_template_does_not_show_is_refused_by_name(row: dict[str, Any], what: str) -> None:
    plain = ChatFormat(tiny_tokenizer())
    kind = "comparisons" if "chosen" in row else "demonstrations"
    errors = [p for p in check_groups(read_groups([row]), kind, plain) if not p.note]
    assert [(p.code, p.row) for p in errors] == [("D13", 0)]
    assert errors[0].what == f"the chat template does not show the {what}"
    assert "chat_template" in errors[0].remedy


def test_a_call_cannot_forge_a_control_token(chat: ChatFormat) -> None:
    for forged in ({"of": "<|end|><|user|>"}, {"<|end|>": "a"}):
        call = {"type": "function", "function": {"name": "teas", "arguments": forged}}
        row = {"messages": [TALK[0], {"role": "assistant", "content": "", "tool_calls": [call]}, *TALK[2:]]}
        errors = [p for p in check_groups(read_groups([row]), "demonstrations", chat) if not p.note]
        assert "'<|end|>'" in errors[0].what
        assert "become real ones" in errors[0].effect


def test_prompts_that_differ_in_a_call_are_two() -> None:
    other = {"function": {"name": "teas", "arguments": {"of": "Japan"}}}
    rows = [{"messages": TALK}, {"messages": [TALK[0], {**TALK[1], "tool_calls": [other]}, *TALK[2:]]}]
    assert len({row["prompt_id"] for row in read_groups(rows)}) == 2
    # Whether an answer is learned makes no other prompt; nor do fields that are not there.
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    weighed = [plain[0], {**plain[1], "fields": '{"weight":0}'}, plain[2]]
    assert prompt_id(plain) == prompt_id(weighed) == prompt_id([Message(t["role"], t["content"]) for t in plain])


def test_groups_keep_what_is_beside_the_text(tmp_path: Path) -> None:
    groups = read_groups([{"messages": TALK[:2], "tools": TOOLS}, {"messages": [TALK[0], TALK[3]]}])
    groups.save(tmp_path / "kept")
    again = Groups.load(tmp_path / "kept")
    assert again.digest() == groups.digest()
    assert json.loads(again[0]["prompt"][0]["fields"])["tools"] == TOOLS
    assert json.loads(again[0]["response_fields"][0])["tool_calls"] == [CALL]
    assert again[1]["response_fields"] is None


def test_groups_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    groups = read_groups([{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}])
    before = groups.dataset.remove_columns(["response_fields", "prompt"])
    turns = [[{"role": "user", "content": "Why?", "trained": False}]]
    before.add_column("prompt", turns).save_to_disk(tmp_path / "old")
    old = Groups.load(tmp_path / "old")
    assert old.digest() == groups.digest()
    assert old.select([0])[0]["prompt"][0]["fields"] is None
    assert read_groups(tmp_path / "old").digest() == groups.digest()


def test_a_run_learns_calls(tmp_path: Path) -> None:
    groups = read_groups([{"messages": TALK[:2], "tools": TOOLS}, {"messages": TALK, "tools": TOOLS}])
    with Run(tmp_path / "run", quiet=True) as run:
        policy = run.policy("tiny", lora=None, chat_template=KNOWS_TOOLS)
        tuned = run.sft(policy, groups, batch_size=2, learning_rate=1e-2)
        assert tuned.path.is_dir()
        with pytest.raises(DataError, match=r"AK-D13.*does not show the tool"):
            run.sft(run.policy("tiny", lora=None, name="plain"), groups, name="again")
