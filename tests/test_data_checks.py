"""Rows that cannot be learned from are found before training, and neither pass nor vanish in silence."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.columns import features
from alignkit.data import ChatFormat, Problem, check_groups, refuse_or_drop
from alignkit.errors import DataError
from alignkit.groups import FEATURES, RATINGS, Groups
from alignkit.models.tiny_tokenizer import tiny_tokenizer

PAIR: dict[str, Any] = {"prompt": "Why?", "responses": ["Because.", "No."], "ranks": [1, 2]}


def groups(*rows: dict[str, Any]) -> Groups:
    return Groups.from_rows(rows)


def unchecked(**columns: Any) -> Groups:
    """A row that `Groups.from_rows` would refuse, as a foreign folder may hold it."""
    row = groups(PAIR)[0] | columns
    return Groups(Dataset.from_dict({name: [row[name]] for name in FEATURES}, features=features()))


def codes(found: list[Problem], notes: bool = False) -> list[str]:
    return [problem.code for problem in found if problem.note == notes]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(tiny_tokenizer())


def test_good_rows_have_no_problems(chat: ChatFormat) -> None:
    talk = [{"role": r, "content": "x"} for r in ("system", "user", "assistant", "user")]
    other = {"prompt": "When?", "responses": ["a", "b"], "ranks": [2, 1]}
    assert check_groups(groups(PAIR, {**PAIR, "prompt": talk}, other), "comparisons", chat) == []
    assert check_groups(groups({"prompt": "a"}, {"prompt": talk}), "prompts", chat) == []
    assert check_groups(groups({"prompt": "a", "responses": ["b"]}), "demonstrations", chat) == []
    assert check_groups(groups({"prompt": "a", "responses": ["b"], "labels": [False]}), "unpaired", chat) == []
    ranking = {"prompt": "a", "responses": list("bcde"), "ranks": [1, 2, 2, 4]}
    assert check_groups(groups(ranking), "rankings", chat) == []


@pytest.mark.parametrize(
    ("row", "kind", "code", "field"),
    [
        ({**PAIR, "responses": ["Because.", " \n"]}, "comparisons", "D01", "rejected"),
        ({"prompt": "a", "responses": [""]}, "demonstrations", "D01", "responses[0]"),
        ({**PAIR, "responses": ["a  b", "a b "]}, "comparisons", "D02", "responses"),
        ({"prompt": "a", "responses": ["x"] * 3, "ranks": [1, 2, 3]}, "rankings", "D02", "responses"),
        ({**PAIR, "prompt": [{"role": "assistant", "content": "a"}]}, "comparisons", "D12", "prompt"),
        ({**PAIR, "prompt": [{"role": "user", "content": "a"}] * 2}, "comparisons", "D12", "prompt"),
        ({**PAIR, "prompt": []}, "comparisons", "D12", "prompt"),
        ({"prompt": [{"role": "system", "content": "a"}]}, "prompts", "D12", "prompt"),
        ({"prompt": "a", "responses": ["b"]}, "comparisons", "D21", "responses"),
        ({"prompt": "a"}, "demonstrations", "D21", "responses"),
        ({"prompt": "a", "responses": ["b"]}, "unpaired", "D21", "labels"),
        ({**PAIR, "ranks": None}, "comparisons", "D19", "ranks"),
        ({**PAIR, "ranks": [0, 1]}, "comparisons", "D19", "ranks"),
        ({**PAIR, "ranks": [1, 3]}, "comparisons", "D19", "ranks"),
        ({**PAIR, "ranks": [2, 2]}, "comparisons", "D19", "ranks"),
        ({**PAIR, "meta": {"margin": -1}}, "comparisons", "D17", "margin"),
        ({**PAIR, "meta": '{"margin": NaN}'}, "comparisons", "D17", "margin"),
        ({**PAIR, "meta": '{"margin": Infinity}'}, "comparisons", "D17", "margin"),
        ({**PAIR, "meta": {"margin": "big"}}, "comparisons", "D17", "margin"),
        ({**PAIR, "preference_prob": math.nan}, "comparisons", "D17", "preference_prob"),
        ({**PAIR, "rewards": {"r": [1.0, math.inf]}}, "comparisons", "D17", "rewards[r]"),
        ({**PAIR, "responses": ["x" * 4_000_001, "a"]}, "comparisons", "D23", ""),
    ],
)
def test_each_fault_is_found(row: dict[str, Any], kind: Any, code: str, field: str) -> None:
    found = [p for p in check_groups(groups(PAIR, row), kind) if not p.note and p.row == 1]
    assert [(p.code, p.field) for p in found] == [(code, field)]
    assert found[0].prompt_id == groups(row)[0]["prompt_id"]


def test_a_rating_outside_the_scale_in_a_foreign_folder() -> None:
    assert codes(check_groups(unchecked(rating="superb"), "comparisons")) == ["D17"]
    assert codes(check_groups(unchecked(ranks=[1, 2, 3]), "comparisons")) == ["D19"]
    assert codes(check_groups(unchecked(prompt=[{"role": "boss", "content": "a", "trained": False}]))) == ["D12"]


def test_no_rows() -> None:
    assert codes(check_groups(groups(), "prompts")) == ["D28"]
    with pytest.raises(DataError, match="D28"):
        refuse_or_drop(groups(), check_groups(groups()), True, "here")


def test_an_empty_sampled_response_is_only_noted(chat: ChatFormat) -> None:
    row = {**PAIR, "responses": ["a", ""], "response_ids": [[97, 257], [257]], "tokenizer": chat.fingerprint}
    found = check_groups(groups(row), "comparisons", chat, max_response_tokens=2)
    assert (codes(found), codes(found, notes=True)) == ([], ["D01"])


def test_lengths_in_tokens(chat: ChatFormat) -> None:
    rows = groups(PAIR, {**PAIR, "prompt": "Why ever not?"}, {**PAIR, "responses": ["Because it is so.", "No."]})
    assert check_groups(rows, "comparisons", chat) == []
    found = check_groups(rows, "comparisons", chat, max_prompt_tokens=7, max_response_tokens=9)
    assert [(p.code, p.row, p.field) for p in found] == [("D05", 1, "prompt"), ("D05", 2, "responses[0]")]


def test_rows_at_fault_are_not_tokenised_but_keep_their_numbers(chat: ChatFormat) -> None:
    bad = {**PAIR, "responses": ["", "b"]}
    found = check_groups(
        groups(bad, PAIR, bad, {**PAIR, "prompt": "too long"}), "comparisons", chat, max_prompt_tokens=7
    )
    assert [(p.code, p.row) for p in found if not p.note] == [("D01", 0), ("D01", 2), ("D05", 3)]


def test_a_template_that_fails_on_a_row(chat: ChatFormat) -> None:
    template = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + chat.template
    single = ChatFormat(tiny_tokenizer(), template=template)
    talk = [{"role": r, "content": "x"} for r in ("user", "assistant", "user")]
    found = check_groups(groups({"prompt": "a"}, {"prompt": talk}), "prompts", single)
    assert [(p.code, p.row) for p in found] == [("D13", 1)]
    assert "one turn only" in found[0].what


def test_notes(chat: ChatFormat) -> None:
    rows = groups(
        {**PAIR, "rating": RATINGS[0], "meta": {"margin": 1, "scores": [1, 2]}},
        PAIR,
        {**PAIR, "ranks": [2, 1]},
        {"prompt": "Hi <|end|>", "responses": ["nan", "{{ answer }}"], "ranks": [1, 2]},
    )
    found = check_groups(rows, "comparisons", chat)
    assert codes(found) == []
    said = {problem.code: problem for problem in found}
    assert set(said) == {"D08", "D18", "D19", "D20", "D24"}
    assert (said["D08"].row, said["D24"].row) == (3, 3)
    assert "<|end|>" in said["D08"].what
    assert "in 100% of 1 rows" in said["D19"].what


def test_folding_and_double_bos_are_noted() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|tool|>"
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ bos_token + bos_token }}"
    chat = ChatFormat(tokenizer, template=refuse + tokenizer.chat_template)
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    found = check_groups(groups({"prompt": talk}, {"prompt": "a"}), "prompts", chat)
    assert codes(found) == []
    assert {(p.code, p.what.rsplit("(")[-1]) for p in found} == {("D09", "2 times)"), ("D11", "1 times)")}


# ---- refusing and dropping --------------------------------------------------------------------------------------

BAD = {**PAIR, "responses": ["", "b"]}


def test_refusal_counts_by_code_and_shows_five() -> None:
    rows = groups(PAIR, *[BAD] * 6, {**PAIR, "ranks": [0, 1]})
    with pytest.raises(DataError) as refused:
        refuse_or_drop(rows, check_groups(rows, "comparisons"), False, "stage v1")
    text = str(refused.value)
    assert text.startswith("stage v1: 7 of 8 rows cannot be learned from (D01 x 6, D19 x 1)")
    assert text.count("AK-D01 row") == 5
    assert "AK-D01 row 1 (" in text
    assert "drop_bad=True" in text


def test_dropping_keeps_the_good_rows_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    rows = groups({**PAIR, "prompt": "first"}, BAD, {**PAIR, "prompt": "last"})
    with caplog.at_level(logging.WARNING):
        kept = refuse_or_drop(rows, check_groups(rows, "comparisons"), True, "stage v1")
    assert [row["prompt"][0]["content"] for row in kept] == ["first", "last"]
    assert "dropped 1 of 3 rows (D01 x 1)" in caplog.text
    with pytest.raises(DataError, match="0 rows left: D01 x 1 dropped 1 of 1"):
        refuse_or_drop(groups(BAD), check_groups(groups(BAD), "comparisons"), True, "x")


def test_notes_refuse_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rows = groups(PAIR, PAIR)
    with caplog.at_level(logging.WARNING):
        assert refuse_or_drop(rows, check_groups(rows, "comparisons"), False, "x") is rows
    assert "AK-D20" in caplog.text


def test_message_form() -> None:
    problem = Problem("D01", 3, "ab12", "rejected", "is empty", "nothing to learn", "drop it", where="f.jsonl:4")
    assert str(problem) == "AK-D01 f.jsonl:4 (ab12) rejected — is empty — nothing to learn — drop it"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT, "trained": st.booleans()}
)
NUMBER = st.none() | st.floats(width=32)


@st.composite
def odd_rows(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(0, 3))
    each = {"min_size": count, "max_size": count}
    return {
        "prompt": draw(st.lists(MESSAGE, max_size=4)),
        "responses": draw(st.lists(TEXT, **each)),
        "ranks": draw(st.none() | st.lists(st.integers(-2, 5), **each)),
        "labels": draw(st.none() | st.lists(st.booleans(), **each)),
        "rating": draw(st.none() | st.sampled_from(RATINGS)),
        "preference_prob": draw(NUMBER),
        "rewards": draw(st.none() | st.fixed_dictionaries({"r": st.lists(NUMBER, **each)})),
        "meta": draw(st.none() | st.just('{"margin": null, "scores": [1, "a"]}') | st.just("{}")),
    }


@given(
    st.lists(odd_rows(), max_size=3),
    st.sampled_from(["prompts", "demonstrations", "comparisons", "rankings", "unpaired"]),
)
@settings(deadline=None, max_examples=60)
def test_odd_rows_never_raise_and_the_good_ones_encode(chat: ChatFormat, rows: list[dict[str, Any]], kind: Any) -> None:
    from alignkit.data import encode_groups
    from alignkit.data.encode import encode_texts, is_plain_text

    made = groups(*rows)
    found = check_groups(made, kind, chat, max_prompt_tokens=20, max_response_tokens=8)
    backwards = check_groups(groups(*reversed(rows)), kind, chat, max_prompt_tokens=20, max_response_tokens=8)
    assert sorted(codes(found)) == sorted(codes(backwards))
    bad = {p.row for p in found if not p.note}
    if not rows or len(bad) == len(rows):
        return
    kept = refuse_or_drop(made, found, True, "x")
    assert len(kept) == len(rows) - len(bad)
    talks = kept.filter(lambda row: not is_plain_text(row))  # plain texts are encoded in pieces
    encoded, left = encode_groups(talks, chat, max_prompt_tokens=20, max_response_tokens=8)
    assert (len(encoded), left) == (len(talks), [])
    assert len(talks) == len(kept) or kind == "demonstrations"
    assert len(encode_texts(kept.filter(is_plain_text), chat, 1000)) == len(kept) - len(talks)
