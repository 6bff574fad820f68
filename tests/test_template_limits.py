"""Chat templates are strangers' programs: rendered within limits, they say what the data say, once, in order."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from alignkit.data.chat import ChatFormat
from alignkit.data.rendering import RENDERER, Renderer
from alignkit.errors import DataError
from alignkit.models.tiny_tokenizer import tiny_tokenizer

TURN = "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}"
PLAIN = "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
TALK = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "3"}]


def ids_of(template: str, talk: list[dict[str, str]] = TALK) -> str:
    tokenizer = tiny_tokenizer()
    return tokenizer.decode(ChatFormat(tokenizer, template=template).encode_prompt(talk))


LOOPS = "{% for i in range(9999) %}{% for j in range(99999) %}{% if i * j == -1 %}x{% endif %}{% endfor %}{% endfor %}"
BOMBS = {
    "loops": (LOOPS, "more than 2 s of processor time"),
    "one long operation": ("{% if 7 ** (10 ** 8) == 1 %}x{% endif %}", "more than 2 s of processor time"),
    "a string": ("{% set s = 'a' * 1000000000 %}{{ s[:1] }}", "more than 512 MB of memory"),
    "a string that doubles": (
        "{% set n = namespace(s='ab') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "more than 512 MB of memory",
    ),
    "a filter": ("{{ 'a' | center(10 ** 10) }}", "more than 512 MB of memory"),
    "output": ("{% for i in range(5000) %}{{ 'abcdefgh' * 200 }}{% endfor %}", r"writes 8\d{6} characters for a"),
    "endless output": ("{% for i in range(99999) %}{{ 'abcdefgh' * 2000 }}{% endfor %}", "512 MB of memory"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without end"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_has_limits(name: str) -> None:
    bomb, said = BOMBS[name]
    started = time.monotonic()
    with pytest.raises(DataError, match=f"the chat template .*{said}") as caught:
        ids_of(bomb + PLAIN)
    assert "run.policy(…, chat_template=…)" in caught.value.remedy
    assert time.monotonic() - started < 120, "far more than the limit, on a machine that has other work"
    assert ids_of(PLAIN).startswith("<|user|>one<|end|>"), "others are rendered afterwards"


def test_a_bomb_that_waits_for_a_text_goes_off_there_alone() -> None:
    chat = ChatFormat(tiny_tokenizer(), template="{% if '!!' in messages[0].content %}" + LOOPS + "{% endif %}" + PLAIN)
    assert chat.encode_prompt(TALK)
    with pytest.raises(DataError, match="processor time"):
        chat.encode_prompt([{"role": "user", "content": "go!!"}])


def test_a_long_conversation_is_no_bomb() -> None:
    text = "word " * 200_000
    assert len(ids_of(PLAIN, [{"role": "user", "content": text}])) > len(text)


def test_what_ends_the_process_is_said_and_a_new_one_begins() -> None:
    renderer = Renderer()
    assert renderer.render(PLAIN, TALK[:1], False) == "<|user|>one<|end|>"
    assert renderer._process is not None
    renderer._process.kill()
    with pytest.raises(DataError, match=r"ends the process that renders it \(status -9\)"):
        renderer.render(PLAIN, TALK[:1], False)
    assert renderer.render(PLAIN, TALK[:1], False) == "<|user|>one<|end|>"
    renderer._stop()


def test_a_template_finds_no_key_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-of-the-test")
    renderer = Renderer()
    renderer.start()
    assert renderer._process is not None
    while not (found := _environment(renderer._process.pid)):
        time.sleep(0.01)
    assert b"PYTHONPATH" in found
    assert b"canary" not in found
    renderer._stop()


def _environment(process: int) -> bytes:
    with open(f"/proc/{process}/environ", "rb") as file:
        found = file.read()
    return found if b"alignkit" not in found or b"PYTHONPATH" in found else b""


def test_a_forked_process_renders_in_one_of_its_own() -> None:
    assert ids_of(PLAIN)
    before = RENDERER._process
    child = os.fork()
    if child == 0:
        os._exit(0 if ids_of(PLAIN) and RENDERER._process is not before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert RENDERER._process is before
    assert ids_of(PLAIN)


# ---- what it says -----------------------------------------------------------------------------------------------

GENERATION = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (PLAIN.replace("in messages", "in messages | reverse"), "message 1 after a later one"),
        (PLAIN.replace("in messages", "in messages + messages"), "message 0 more than once"),
        (PLAIN.replace("m.content", "m.content + '<|end|>' + m.content"), "message 0 more than once"),
        (
            PLAIN.replace("m.content", "m.content + (messages[-1].content if loop.first else '')"),
            "message 0 more than once",
        ),
        (PLAIN.replace("'<|assistant|>'", "'<|assistant|>Sure! The answer is 42.'"), "begins an answer: .*Sure!"),
        (PLAIN.replace("'<|assistant|>'", "'Yes. <|assistant|>'"), "begins an answer: .*Yes"),
        (PLAIN.replace("'<|assistant|>'", "'<|assistant|><think>It is 42</think>'"), "begins an answer"),
    ],
)
def test_a_template_that_turns_repeats_or_answers_is_refused(template: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ids_of(template)


SYSTEM_LAST = (
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (s + ' ' if loop.last and s else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
)
ALPACA = (
    "Below is an instruction. Write a response.{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '\n### Instruction:\n' + m.content }}{% else %}{{ '\n### Response:\nLet us think. ' + m.content + '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\n### Response:\nLet us think. ' }}{% endif %}"
)
THINKS = PLAIN.replace("'<|assistant|>'", "'<|assistant|><think>\n\n</think>\n\n'")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (SYSTEM_LAST, "[INST] S 3[/INST]"),
        (ALPACA, "3\n### Response:\nLet us think. "),
        (THINKS, "<|user|>3<|end|><|assistant|><think>\n\n</think>\n\n"),
        (PLAIN.replace("'<|assistant|>'", "'Assistant: '"), "3<|end|>Assistant: "),
    ],
)
def test_where_a_system_text_stands_and_how_an_answer_is_headed_is_the_templates_affair(
    template: str, end: str
) -> None:
    assert ids_of(template, [{"role": "system", "content": "S"}, *TALK]).endswith(end)


def test_templates_of_which_none_is_the_default_are_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"rag": PLAIN, "tool_use": PLAIN}
    with pytest.raises(DataError, match=r"by the names \['rag', 'tool_use'\] and no default"):
        ChatFormat(tokenizer)


# ---- how it ends ------------------------------------------------------------------------------------------------


def with_marks(*marks: str, special: bool = False) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(marks), special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_that_closes_a_turn_ends_a_response(special: bool) -> None:
    tokenizer = with_marks("<|done|>", special=special)
    chat = ChatFormat(tokenizer, template=PLAIN.replace("<|end|>", "<|done|>"))
    done = tokenizer.convert_tokens_to_ids("<|done|>")
    assert chat.end_of_turn_id == done
    assert set(chat.end_ids) == {done, tokenizer.eos_token_id}
    assert chat.encode_response("ok")[-1] == done
    assert chat.decode([*b"ok", done]) == "ok"


def test_a_special_token_goes_before_a_mark_that_stands_with_it() -> None:
    tokenizer = with_marks("</answer>")
    chat = ChatFormat(tokenizer, template=PLAIN.replace("m.content", "m.content + '</answer>'"))
    assert tokenizer.decode([chat.end_of_turn_id]) == "</answer>", "it closes the text; what follows is the template's"
    assert ChatFormat(tokenizer, template=PLAIN).end_of_turn_id == tokenizer.eos_token_id


def test_nobodys_text_makes_an_end_that_is_not_special() -> None:
    tokenizer = with_marks("<|done|>", "<|stop|>")
    stop = tokenizer.convert_tokens_to_ids("<|stop|>")
    chat = ChatFormat(tokenizer, template=PLAIN.replace("<|end|>", "<|done|>"), extra_end_ids=[stop])
    text = "a<|done|>b<|stop|>c"
    assert [i for i in chat.encode_response(text) if i in chat.end_ids] == [chat.end_of_turn_id]
    assert chat.decode(chat.encode_response(text)) == text
    talk = [{"role": "user", "content": text}, {"role": "assistant", "content": text}, *TALK[:1]]
    plain = [{**turn, "content": "x"} for turn in talk]
    counts = [sum(i in chat.end_ids for i in chat.encode_prompt(each)) for each in (talk, plain)]
    assert counts == [3, 3]
