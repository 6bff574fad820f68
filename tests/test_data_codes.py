"""The codes of what is wrong with data, in files and in Python objects alike."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from alignkit import DataError, Groups, Run, read_groups
from alignkit.data import ChatFormat, check_groups
from alignkit.data.across_rows import MANY, shared_prompts
from alignkit.models.tiny_tokenizer import tiny_tokenizer

PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
USER, BOT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(tiny_tokenizer())


REFUSED = {
    "D01 white space": ({**PAIR, "chosen": " \n"}, "D01"),
    "D01 no width": ({**PAIR, "chosen": "\u200b\u200d\ufeff"}, "D01"),
    "D02 equal": ({**PAIR, "rejected": "Because. "}, "D02"),
    "D02 equal once composed": ({**PAIR, "chosen": "caf\u00e9", "rejected": "cafe\u0301"}, "D02"),
    "D03 no prefix": ({"prompt": "Who?", "chosen": [USER, BOT], "rejected": "x"}, "D03"),
    "D12 two users": ({"messages": [USER, USER, BOT]}, "D12"),
    "D12 no message": ({"messages": [{"role": "assistant", "content": "a"}, USER, BOT]}, "D12"),
    "D17 margin": ({**PAIR, "margin": -3.0}, "D17"),
    "D17 weight": ({"messages": [USER, {**BOT, "weight": 2}]}, "D17"),
    "D19 gap": ({"prompt": "Why?", "responses": ["a", "b"], "ranks": [1, 3]}, "D19"),
    "D19 number of ranks": ({"prompt": "Why?", "responses": ["a", "b"], "ranks": [1]}, "D19"),
    "D19 number of scores": ({"prompt": "Why?", "responses": ["a", "b"], "scores": [1.0]}, "D19"),
    "D21 unknown": ({"foo": 1, "bar": 2}, "D21"),
    "D22 NUL": ({**PAIR, "prompt": "a\0"}, "D22"),
    "D22 surrogate": ({**PAIR, "chosen": "a\ud800"}, "D22"),
    "D22 surrogate in a name": ({**PAIR, "\ud800": "a"}, "D22"),
    "D23 long": ({**PAIR, "chosen": "a" * 4_000_001}, "D23"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_fault_has_its_code_in_files_and_in_memory_alike(name: str, tmp_path: Path) -> None:
    row, code = REFUSED[name]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    for source, place in ((path, f"{path}:1"), ([row], "row 0")):
        with pytest.raises(DataError, match=f"AK-{code} ") as found:
            read_groups(source)
        assert place in str(found.value)


@pytest.mark.parametrize("text", ["a\ud800", "\udfff"])
def test_groups_take_no_text_that_is_none(text: str) -> None:
    for make in (
        lambda: Groups.from_prompts([text]),
        lambda: Groups.from_rows([{"prompt": "a", "responses": [text]}]),
        lambda: Groups.from_prompts(["a"]).with_columns({"responses": [[text]]}),
    ):
        with pytest.raises(DataError, match="AK-D22 a lone surrogate"):
            make()


def test_a_nul_is_found_in_groups_unless_a_model_wrote_it() -> None:
    assert [p.code for p in check_groups(Groups.from_prompts(["a\0"]))] == ["D22"]
    sampled = Groups.from_rows([{"prompt": "a", "responses": ["\0"], "response_ids": [[0]], "tokenizer": "x"}])
    assert check_groups(sampled) == []


def test_a_bad_answer_is_no_demonstration(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "response": "Because.", "is_safe": safe} for safe in (True, False)]
    groups = read_groups(rows)
    assert [(p.code, p.row) for p in check_groups(groups, "demonstrations") if not p.note] == [("D16", 1)]
    with Run(tmp_path / "run", quiet=True) as run, pytest.raises(DataError, match="AK-D16 row 1"):
        run.sft(run.policy("tiny", lora=None), groups)


NOTED = {
    "D03": (
        [{"chosen": "Why? So.", "rejected": "Why? No."}],
        "what both answers begin with|that both answers begin with",
    ),
    "D16 labels": ([{"prompt": str(i), "completion": "a", "label": True} for i in range(3)], "all 3 labels are True"),
    "D16 length": (
        [{"prompt": str(i), "chosen": "a", "rejected": f"{i} is longer"} for i in range(MANY)],
        f"the shorter one in {MANY} of {MANY}",
    ),
    "D18": ([{**PAIR, "margin": 1}, {**PAIR, "prompt": "Who?"}], "missing in 1 of 2 rows"),
    "D19 scores": ([{**PAIR, "score_chosen": 1, "score_rejected": 4}], "rank 1 has a lower score"),
    "D19 ties": ([{**PAIR, "tie": True}], "every row is a tie"),
    "D20": ([PAIR, PAIR], "occur before"),
    "D21 tools": ([{"messages": [USER, {**BOT, "tool_calls": [{"name": "a", "arguments": {}}]}]}], "tool_calls in 1"),
    "D21 weight": ([{"messages": [USER, {**BOT, "weight": 0}, USER, {**BOT, "weight": 1}]}], "weight 0"),
    "D24": ([{**PAIR, "chosen": "nan"}], "left-over"),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_is_worth_knowing_is_said_with_its_code(name: str, caplog: pytest.LogCaptureFixture) -> None:
    rows, text = NOTED[name]
    with caplog.at_level(logging.WARNING, logger="alignkit"):
        read_groups(rows)
    said = [record.getMessage() for record in caplog.records if f"AK-{name[:3]}" in record.getMessage()]
    assert any(part in line for line in said for part in text.split("|")), caplog.text
    with caplog.at_level(logging.WARNING, logger="alignkit"):
        caplog.clear()
        read_groups([{**PAIR, "margin": 1}, {**PAIR, "prompt": "Who?", "margin": 2}])
    assert not caplog.records


def test_text_that_a_tokenizer_changes_is_noted(chat: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = read_groups([{"prompt": "Why?", "completion": "cafe\u0301"}])
    assert not check_groups(groups, "demonstrations", chat)
    monkeypatch.setattr(chat, "decode", lambda ids: "caf\u00e9")
    [problem] = check_groups(groups, "demonstrations", chat)
    assert (problem.code, problem.note, problem.field) == ("D25", True, "responses[0]")


def test_prompts_held_out_and_learned_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [problem] = shared_prompts(["a", "b"], ["b", "c"], "heldout")
    assert (problem.code, problem.what) == ("D20", "1 of 2 prompts of heldout are among those learned from")
    assert shared_prompts(["a"], ["b"], "heldout") == []


def test_no_rows_have_one_name(tmp_path: Path) -> None:
    none = Groups.from_rows([])
    (tmp_path / "empty.jsonl").write_text("", "utf-8")
    with Run(tmp_path / "run", quiet=True) as run:
        policy = run.policy("tiny", lora=None)
        for work in (
            lambda: read_groups([]),
            lambda: read_groups(tmp_path / "empty.jsonl"),
            lambda: run.sft(policy, none),
            lambda: run.improve(policy, none, optimizer="dpo", reference=policy),
            lambda: run.evaluate(policy, none, {"length": lambda response: float(len(response))}),
        ):
            with pytest.raises(DataError, match="AK-D28"):
                work()


def test_a_stage_begins_with_what_it_learns_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(tmp_path / "run") as run:
        run.sft(run.policy("tiny", lora=None), read_groups([{"prompt": "Why?", "completion": "So."}] * 2))
    shown = capsys.readouterr().out
    assert "rows       2 (2 demonstrations; 2 responses)" in shown
    assert "prompt: <|user|>Why?<|end|><|assistant|>" in shown
    assert "response: ⟦So.<|end|>⟧" in shown
