"""Prompts are encoded once, and are what they would be if they were encoded again."""

from __future__ import annotations

from collections import Counter

import pytest

from alignkit import Groups
from alignkit.data import chat as chat_module
from alignkit.data.chat import FOLDED, ChatFormat, TooLongError
from alignkit.data.known_prompts import KnownPrompts
from alignkit.testing import tiny_chat

TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b", "trained": True},
    {"role": "user", "content": "c"},
]


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Whatever goes through a chat template."""
    calls: list[object] = []
    real = chat_module.pieces_of

    def counted(*arguments):
        calls.append(arguments[2])
        return real(*arguments)

    monkeypatch.setattr(chat_module, "pieces_of", counted)
    return calls


def fresh() -> ChatFormat:
    return ChatFormat(tiny_chat().tokenizer)


def test_a_prompt_goes_through_the_template_once(rendered):
    chat = fresh()
    first = chat.encode_trained_prompt(TALK, "all")
    kept = ([*first[0]], [*first[1]])
    first[0].append(0)
    first[1].clear()
    assert chat.encode_trained_prompt([*TALK], "all") == kept
    assert len(rendered) == 1


def test_what_is_asked_otherwise_is_another_prompt(rendered):
    chat = fresh()
    ids, trained = chat.encode_trained_prompt(TALK)
    assert trained is not None
    assert any(trained)
    plain = [{**turn, "trained": False} for turn in TALK]
    assert chat.encode_trained_prompt(plain) == (ids, None)
    assert sum(chat.encode_trained_prompt(plain, "all")[1]) == sum(trained)
    assert chat.encode_prompt([*TALK[:2], {"role": "user", "content": "d"}]) != ids
    with pytest.raises(TooLongError):
        chat.encode_prompt(TALK, max_tokens=2)
    assert chat.encode_prompt(TALK, max_tokens=len(ids)) == ids
    assert len(rendered) == 6


def test_what_is_noted_is_noted_as_often_as_the_prompt_is_read(rendered):
    chat = ChatFormat(tiny_chat().tokenizer, template=NO_SYSTEM)
    rendered.clear()
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    for _ in range(3):
        chat.encode_prompt(talk)
    assert (chat.notes[FOLDED], len(rendered)) == (3, 1)


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def test_a_template_that_reads_the_clock_is_asked_every_time(rendered):
    chat = ChatFormat(tiny_chat().tokenizer, template="{% set t = strftime_now('%d') %}" + NO_SYSTEM)
    rendered.clear()
    for _ in range(2):
        chat.encode_prompt(TALK)
    assert len(rendered) == 2


def test_no_more_tokens_are_remembered_than_there_is_room_for():
    known = KnownPrompts(most=5)
    for name, ids in (("a", [1, 2]), ("b", [3]), ("c", [4])):
        known.keep(name, ids, None, ())
    assert known.find("a").ids.tolist() == [1, 2]  # asked for, so that b is now the oldest
    known.keep("d", [5, 6], [True, False], ("note",))
    assert [name for name in "abcd" if known.find(name)] == ["a", "c", "d"]
    assert (known.tokens, len(known)) == (5, 3)
    assert known.find("d").copies() == ([5, 6], [True, False])
    known.keep("long", range(6), None, ())
    assert (known.tokens, len(known)) == (0, 0)


def test_a_stage_encodes_each_of_its_prompts_once(rendered, tmp_path):
    from dataclasses import dataclass, field

    from alignkit import Batch, PolicyOptimizer, Run

    def follow(logprobs, advantages):
        return -logprobs * advantages

    @dataclass(frozen=True)
    class Follow(PolicyOptimizer):
        loss: object = field(default=follow)
        rounds: int = 3

        def prepare(self, groups, state, *, rewards, response_mask):
            return Batch(groups, {"advantages": rewards.unsqueeze(1) * response_mask})

    with Run(tmp_path, quiet=True, trainer={"accelerator": "cpu"}) as run:
        v0 = run.policy("tiny", lora=None)
        rendered.clear()
        prompts = Groups.from_prompts(["a", "bc", "a"])
        reward = lambda response: float(len(response))  # noqa: E731
        run.improve(v0, prompts, optimizer=Follow(), reward=reward, reference=v0, max_new_tokens=3, name="v1")
    texts = Counter(turns[0]["content"] for turns in rendered)
    assert (texts["a"], texts["bc"]) == (1, 1)
