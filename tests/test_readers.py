"""Preference data in the forms people have it in, read to the same groups, with file and line for what is wrong."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import Groups
from alignkit.data import read_groups, read_rows
from alignkit.errors import DataError
from alignkit.groups import RATINGS

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

USER, BOT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
WORSE = {"role": "assistant", "content": "No."}


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def one(row: dict[str, Any], **options: Any) -> dict[str, Any]:
    return read_groups([row], **options)[0]


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in row["prompt"]]


# ---- shapes -----------------------------------------------------------------------------------------------------

PAIRS = {
    "plain": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "conversational": {"prompt": [USER], "chosen": [BOT], "rejected": [WORSE]},
    "prompt repeated": {"prompt": "Why?", "chosen": [USER, BOT], "rejected": [USER, WORSE]},
    "implicit messages": {"chosen": [USER, BOT], "rejected": [USER, WORSE]},
    "implicit text": {"chosen": "Why? Because.", "rejected": "Why? No."},
    "null prompt": {"prompt": None, "chosen": [USER, BOT], "rejected": [USER, WORSE]},
    "transcript": {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
    "transcript prompt": {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": "Because.", "rejected": "No."},
    "labels": {
        "prompt": "Why?",
        "responses": [{"text": "No.", "label": "disliked"}, {"text": "Because.", "label": "preferred"}],
    },
    "judged": {"prompt": "Why?", "output_1": "No.", "output_2": "Because.", "label": 2},
    "content parts": {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]} | {
        "chosen": "Because.", "rejected": "No."
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_every_form_of_a_comparison_is_the_same_group(name: str) -> None:
    row = one(PAIRS[name])
    assert turns(row) == [("user", "Why?")]
    assert row["responses"] == ["Because.", "No."]
    assert row["ranks"] == [1, 2]
    assert row["rating"] is None


def test_transcripts_have_turns() -> None:
    head = "\n\nHuman: Hi\n\nAssistant: Hello\nyou \n\nHuman: Who: me?\n\nAssistant:"
    row = one({"chosen": f"{head} Yes, you.", "rejected": f"{head} No."})
    assert turns(row) == [("user", "Hi"), ("assistant", "Hello\nyou"), ("user", "Who: me?")]
    assert row["responses"] == ["Yes, you.", "No."]


def test_implicit_text_is_not_cut_inside_a_word() -> None:
    row = one({"chosen": "The sky is blue.", "rejected": "The sky is blond."})
    assert (turns(row), row["responses"]) == ([("user", "The sky is")], ["blue.", "blond."])


def test_rating_margin_and_tie() -> None:
    assert one({**PAIRS["plain"], "rating": "better"})["rating"] == "better"
    assert json.loads(one({**PAIRS["plain"], "margin": 2})["meta"]) == {"margin": 2.0}
    assert one({**PAIRS["plain"], "preference_prob": 0.75})["preference_prob"] == 0.75
    tie = one({**PAIRS["plain"], "tie": True, "rating": None})
    assert (tie["ranks"], tie["rating"]) == ([1, 1], RATINGS[-1])
    judged = one({**PAIRS["judged"], "label": 0, "strength": RATINGS[-1]})
    assert (judged["ranks"], judged["responses"]) == ([1, 1], ["No.", "Because."])


def test_what_is_not_known_goes_into_meta() -> None:
    row = one({**PAIRS["plain"], "id": "a1", "score": 3, "nothing": None, "meta": {"votes": [1, 2]}, "tags": ["t"]})
    assert json.loads(row["meta"]) == {"id": "a1", "score": 3, "votes": [1, 2]}
    assert row["tags"] == ["t"]


def test_dimension_is_the_rows_or_the_arguments() -> None:
    assert one({**PAIRS["plain"], "dimension": "safety"})["dimension"] == "safety"
    assert one({**PAIRS["plain"], "dimension": "safety"}, dimension="helpfulness")["dimension"] == "helpfulness"
    assert one(PAIRS["plain"])["dimension"] is None


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, BOT]},
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": [USER], "completion": [BOT]},
        {"prompt": "Why?", "response": "Because."},
    ],
)
def test_demonstrations(row: dict[str, Any]) -> None:
    found = one(row)
    assert (turns(found), found["responses"]) == ([("user", "Why?")], ["Because."])
    assert found["ranks"] is found["labels"] is None


def test_trained_turns_are_kept() -> None:
    found = one({"messages": [USER, {**BOT, "trained": True}, USER, BOT]})
    assert [turn["trained"] for turn in found["prompt"]] == [False, True, False]


@pytest.mark.parametrize(
    ("row", "good"),
    [
        ({"prompt": "Why?", "completion": "Because.", "label": True}, True),
        ({"prompt": "Why?", "completion": "Because.", "label": False}, False),
        ({"prompt": [USER], "response": "Because.", "safe": False}, False),
        ({"prompt": "Why?", "response": "Because.", "label": 1}, True),
        ({"prompt": "Why?", "response": "Because.", "label": "unsafe"}, False),
        ({"messages": [USER, BOT], "label": "preferred"}, True),
    ],
)
def test_labelled_responses(row: dict[str, Any], good: bool) -> None:
    found = one(row)
    assert (found["responses"], found["labels"], found["ranks"]) == (["Because."], [good], None)


def test_prompts() -> None:
    for row in (
        {"prompt": "Why?"},
        {"prompt": [USER], "answer": "4"},
        {"messages": [USER]},
        {"turns": ["Why?", "And?"]},
    ):
        found = one(row)
        assert (turns(found), found["responses"]) == ([("user", "Why?")], [])


def ranked(*ranks: Any, key: str = "rank") -> dict[str, Any]:
    return {"prompt": "Why?", "responses": [{"text": f"r{i}", key: rank} for i, rank in enumerate(ranks)]}


def test_rank_base_is_seen_or_declared() -> None:
    assert one(ranked(0, 1, 1, 2))["ranks"] == [1, 2, 2, 3]
    assert one(ranked(2, 1, 3))["ranks"] == [2, 1, 3]
    # One 0 in the file makes the file 0-based, also for rows before it.
    assert [row["ranks"] for row in read_groups([ranked(0, 1), ranked(1, 0)])] == [[1, 2], [2, 1]]
    with pytest.raises(DataError, match="D19"):
        read_groups([ranked(1, 2)], rank_base=0)
    with pytest.raises(DataError, match="ranks start at 1"):
        read_groups([ranked(0, 1)], rank_base=1)


def test_a_higher_score_is_better_and_ranks_win_over_scores() -> None:
    row = one(ranked(-1.5, 7, 7, 0, key="score"))
    assert row["ranks"] == [3, 1, 1, 2]
    assert json.loads(row["meta"])["scores"] == [-1.5, 7, 7, 0]
    both = ranked(1, 2)
    for response, score in zip(both["responses"], (1.0, 5.0), strict=True):
        response["score"] = score
    assert one(both)["ranks"] == [1, 2]


def test_labels_of_more_than_two_responses() -> None:
    row = one(
        {"prompt": "q", "responses": [{"text": t, "label": lab} for t, lab in zip("abc", (1, 0, 1), strict=True)]}
    )
    assert (row["ranks"], row["labels"]) == ([1, 2, 1], [True, False, True])


# ---- files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        {"prompt": f"Frage {i} ß\u2028", "chosen": f"ja {i}", "rejected": f"nein {i}", "rating": "better"}
        for i in range(5)
    ]


def test_every_file_format_gives_the_same_groups(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    from datasets import Dataset, DatasetDict

    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "really_gzip.jsonl").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "lines.json").write_text(text, encoding="utf-8")
    table = Dataset.from_list(rows)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "split")
    wanted = read_groups(rows)
    assert len(wanted) == 5
    for name in ("a.jsonl", "a.jsonl.gz", "really_gzip.jsonl", "a.json", "lines.json", "a.parquet", "saved"):
        assert read_groups(tmp_path / name).digest() == wanted.digest(), name
    assert read_groups(str(tmp_path / "split"), split="train").digest() == wanted.digest()
    assert len(read_groups(tmp_path / "split", split="test")) == 1
    with pytest.raises(DataError, match="splits"):
        read_groups(tmp_path / "split", split="dev")
    with pytest.raises(DataError, match="split="):
        read_groups(tmp_path / "a.jsonl", split="train")


def test_saved_groups_come_back(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    groups = read_groups(rows)
    groups.save(tmp_path / "groups")
    assert read_groups(tmp_path / "groups").digest() == groups.digest()
    assert len(read_groups(tmp_path / "groups", limit=2)) == 2
    again = write(tmp_path / "rows.jsonl", *groups.rows)
    assert [(r["prompt"], r["responses"], r["ranks"]) for r in read_groups(again)] == [
        (r["prompt"], r["responses"], r["ranks"]) for r in groups
    ]


def test_groups_without_a_row_come_back(tmp_path: Path) -> None:
    Groups.from_rows([]).save(tmp_path / "none")
    assert len(Groups.load(tmp_path / "none")) == 0


def test_columns_and_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[{"instruction": f"q{i}", "good": "a", "rejected": "b"} for i in range(4)])
    found = read_groups(path, columns={"prompt": "instruction", "chosen": "good"}, limit=3)
    assert [turns(row)[0][1] for row in found] == ["q0", "q1", "q2"]
    assert found[0]["meta"] is None
    with pytest.raises(DataError, match=r"D21.*no column 'instructoin'.*did you mean instruction\?"):
        read_groups(path, columns={"prompt": "instructoin"})
    with pytest.raises(DataError, match=r"chosen — could carry meaning.*columns=\{'meta': \['chosen', 'margin'\]\}"):
        read_groups(path, columns={"chosen": "good", "margin": "rejected"})
    aside = read_groups(path, columns={"meta": ["good", "rejected"]})[0]
    assert (turns(aside), aside["meta"]) == ([("user", "q0")], '{"good":"a","rejected":"b"}')


def test_limit_reads_no_further(tmp_path: Path) -> None:
    assert len(read_groups(write(tmp_path / "a.jsonl", {"prompt": "a"}, {"prompt": "b"}, "broken"), limit=2)) == 2


@pytest.mark.parametrize("name", ["gone.jsonl", "http://x/y", "s3://b/k", "../no such", "memory://x"])
def test_what_is_no_file_is_refused_before_any_network(name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_groups(name)


def test_broken_containers_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"prompt": "a"}\n' * 2000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").write_bytes(b"")
    for name, message in (("cut.jsonl.gz", "unpacked"), ("bad.parquet", "Parquet"), ("folder", "datasets folder")):
        with pytest.raises(DataError, match=message):
            read_groups(tmp_path / name)
    with pytest.raises(DataError, match="D28"):
        read_groups(tmp_path / "empty.jsonl")


# ---- what is wrong, and where -----------------------------------------------------------------------------------

GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
BAD_ROWS = {
    "no json": ("{", "D22", "no JSON"),
    "nan": ('{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}', "D22", "NaN is not JSON"),
    "overflow": ('{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e999}', "D22", "1e999"),
    "key twice": ('{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}', "D22", "'chosen' occurs twice"),
    "too deep": ("[" * 100_000, "D22", "deep"),
    "surrogate": ('{"prompt": "a", "chosen": "b\\ud800", "rejected": "c"}', "D22", "chosen — a lone surrogate at"),
    "nul": ('{"prompt": "a\\u0000", "chosen": "b", "rejected": "c"}', "D22", "prompt — a NUL"),
    "list": ([1], "D21", "list where an object"),
    "other columns": ({"promt": "a", "chosen": "b"}, "D21", "'prompt': 'promt'"),
    "another shape": ({"messages": [USER, BOT]}, "D21", "looks like messages"),
    "chosen missing": ({**GOOD, "chosen": None}, "D21", "chosen — is missing"),
    "number": ({**GOOD, "chosen": 3}, "D21", "int"),
    "empty": ({**GOOD, "rejected": " \n"}, "D01", "rejected — is empty"),
    "identical": ({**GOOD, "rejected": "Because. "}, "D02", "identical pair"),
    "no prefix": ({"chosen": [USER, BOT], "rejected": [{**USER, "content": "Who?"}, WORSE]}, "D03", "no common prompt"),
    "prompt not in chosen": ({"prompt": "Who?", "chosen": [USER, BOT], "rejected": "x"}, "D03", "no prefix"),
    "nothing shared": ({"chosen": "Yes", "rejected": "You"}, "D03", "share only 1 characters"),
    "transcripts differ": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: b"},
        "D03", "no common prompt",
    ),
    "roles": ({**GOOD, "prompt": [USER, USER]}, "D12", "do not alternate: message 1"),
    "last role": ({**GOOD, "prompt": [USER, BOT]}, "D12", "last message is of assistant"),
    "unknown role": ({**GOOD, "prompt": [{"role": "usr", "content": "a"}]}, "D12", "did you mean user?"),
    "empty prompt": ({**GOOD, "prompt": " "}, "D12", "all messages are empty"),
    "ends with user": ({"chosen": [USER], "rejected": [USER, BOT]}, "D12", "does not end"),
    "rating": ({**GOOD, "rating": "much better"}, "D17", "outside the scale"),
    "rating number": ({**GOOD, "rating": 3}, "D17", "belong into the column margin"),
    "margin below 0": ({**GOOD, "margin": -0.5}, "D17", "-0.5"),
    "margin text": ({**GOOD, "margin": "1"}, "D17", "'1'"),
    "margin bool": ({**GOOD, "margin": True}, "D17", "True"),
    "probability": ({**GOOD, "preference_prob": 1.5}, "D17", "from 0 to 1"),
    "tie and rating": ({**GOOD, "tie": True, "rating": "better"}, "D17", "of a tie"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_refused_with_its_line_and_dropped_on_request(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row, code, message = BAD_ROWS[name]
    path = write(tmp_path / "a.jsonl", GOOD, "", row, {**GOOD, "prompt": "And?"})
    with pytest.raises(DataError) as refused:
        read_groups(path)
    text = str(refused.value)
    assert f"AK-{code} {path}:3" in text
    assert message in text
    assert f"1 of 3 rows cannot be learned from ({code} x 1)" in text
    with caplog.at_level(logging.WARNING):
        kept = read_groups(path, drop_bad=True)
    assert [turns(r)[0][1] for r in kept] == ["Why?", "And?"]
    assert f"dropped 1 of 3 rows ({code} x 1)" in caplog.text


RANKINGS = {
    "gap": (ranked(1, 3, 4), "D19"),
    "half": (ranked(1.5, 2), "D19"),
    "some without": (ranked(1, None, 2), "D19"),
    "negative": (ranked(-1, 1), "D19"),
    "one response": (ranked(1), "D21"),
    "nothing known": ({"prompt": "q", "responses": [{"text": "a"}, {"text": "b"}]}, "D21"),
    "no text": ({"prompt": "q", "responses": [{"rank": 1}, {"text": "b", "rank": 2}]}, "D21"),
    "score text": (ranked("high", "low", key="score"), "D17"),
    "label": ({"prompt": "q", "responses": [{"text": "a", "label": "meh"}]}, "D17"),
    "none": ({"prompt": "q", "responses": []}, "D21"),
    "all the same": ({"prompt": "q", "responses": [{"text": "a", "rank": 1}, {"text": "a", "rank": 2}]}, "D02"),
}


@pytest.mark.parametrize("name", RANKINGS)
def test_bad_rankings_are_refused(name: str) -> None:
    row, code = RANKINGS[name]
    with pytest.raises(DataError, match=f"AK-{code} row 0"):
        read_groups([row])


def test_ties_may_skip_ranks_or_not() -> None:
    assert one(ranked(1, 2, 2, 4))["ranks"] == [1, 2, 2, 4]
    assert one(ranked(1, 2, 2, 3))["ranks"] == [1, 2, 2, 3]


def test_invalid_utf8_is_refused_with_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = json.dumps(GOOD).encode() + b"\n"
    path.write_bytes(first + b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=f"a.jsonl:2 — byte {len(first) + 12} of the file is not UTF-8"):
        read_groups(path)


def test_nan_in_a_parquet_margin_is_refused(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list([{**GOOD, "margin": float("nan")}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"D17 .*a.parquet:row 0 margin — nan"):
        read_groups(tmp_path / "a.parquet")


def test_five_rows_are_shown_and_all_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, *[{**GOOD, "chosen": ""}] * 7, *[{**GOOD, "rating": "?"}] * 2)
    with pytest.raises(DataError) as refused:
        read_groups(path)
    assert "9 of 10 rows cannot be learned from (D01 x 7, D17 x 2)" in str(refused.value)
    assert str(refused.value).count("AK-D") == 5
    assert "and 4 more" in str(refused.value)


def test_dropping_everything_is_refused() -> None:
    with pytest.raises(DataError, match=r"0 rows left: D01 x 2 dropped 2 of 2"):
        read_groups([{**GOOD, "chosen": ""}] * 2, drop_bad=True)


def test_duplicates_and_contradictions_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(read_groups([GOOD, GOOD, {**GOOD, "chosen": "No.", "rejected": "Because."}])) == 3
    assert "1 rows occur before (rows 0 and 1 first)" in caplog.text
    assert "judged both ways (rows 0 and 2 first)" in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(st.characters(), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text", "rank"]), inner)
    ),
    max_leaves=6,
)
COLUMNS = [
    "prompt",
    "chosen",
    "rejected",
    "responses",
    "messages",
    "completion",
    "label",
    "rating",
    "margin",
    "tags",
    "meta",
]


@given(st.lists(st.dictionaries(st.sampled_from(COLUMNS), JSON) | JSON, max_size=3))
@settings(deadline=None, max_examples=200)
def test_odd_rows_are_read_or_refused_and_nothing_else(rows: list[Any]) -> None:
    with contextlib.suppress(DataError):
        assert len(read_groups(rows)) == len(rows)


# ---- real data --------------------------------------------------------------------------------------------------

FILES = sorted(DATA.glob("*.test.jsonl.gz"))
KINDS = {"pref": 2, "judge": 2, "cls": 1, "sft": 1, "dialogues": 1, "rank": None}


@pytest.mark.skipif(not FILES, reason="../shared/data is not here")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.split(".")[0])
def test_the_shared_data_are_read_as_they_are(path: Path) -> None:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file][:150]
    groups = read_groups(path, limit=150)
    assert len(groups) == len(raw)
    for row, source in zip(groups, raw, strict=True):
        if "prompt" in source:
            assert turns(row) == [(turn["role"], turn["content"]) for turn in source["prompt"]]
        if "chosen" in source:
            assert row["responses"] == [source["chosen"], source["rejected"]]
            assert row["rating"] == source["rating"]
            assert row["ranks"] == ([1, 1] if source.get("tie") else [1, 2])
        if path.name.startswith("rank"):
            assert row["ranks"] == [response["rank"] + 1 for response in source["responses"]]
        elif path.name.startswith("cls"):
            assert row["labels"] == [source["safe"]]
        assert row["dimension"] == source.get("dimension")
        assert json.loads(row["meta"])["id"] == source["id"]
        count = KINDS.get(path.name.split("_")[0].split(".")[0], 0)
        assert count is None or len(row["responses"]) == count


def test_rows_are_read_as_they_stand_with_their_places(tmp_path: Path) -> None:
    """For formats of a suite's own: no layout is asked of them, and one that is no row is told and not dropped."""
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "1 + 1", "answer": 2}\n\n["no object"]\n{"a": NaN}\n', encoding="utf-8")
    found = list(read_rows(file))
    assert [located.where for located in found] == [f"{file}:{line}" for line in (1, 3, 4)]
    assert [located.row for located in found] == [{"question": "1 + 1", "answer": 2}, None, None]
    assert [located.finding.code for located in found if located.finding] == ["D21", "D22"]
    assert [located.row for located in read_rows([{"a": 1}])] == [{"a": 1}]


@pytest.mark.parametrize("label", ["1", "1.0", "0", "True"])
def test_a_table_of_text_says_labels_in_digits(tmp_path: Path, label: str) -> None:
    path = tmp_path / "labelled.csv"
    path.write_text(f"prompt,completion,label\nWhy?,Because.,{label}\n", "utf-8")
    assert read_groups(path)[0]["labels"] == [label != "0"]


def test_the_row_numbers_that_pandas_writes_are_no_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",prompt,completion\n0,Why?,Because.\n1,Who?,Me.\n", "utf-8")
    assert [(row["responses"], row["meta"]) for row in read_groups(path)] == [(["Because."], None), (["Me."], None)]
    path.write_text(",prompt,completion\nBe brief.,Why?,Because.\n", "utf-8")
    with pytest.raises(DataError, match="the first column has no name, and holds 'Be brief"):
        read_groups(path)


def test_the_splits_of_a_folder_are_told_apart_by_the_names_of_its_files(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "completion": "b"}) + "\n", "utf-8")
    with pytest.raises(DataError, match=r"has the splits \['test', 'train'\].*split="):
        read_groups(tmp_path)
    assert len(read_groups(tmp_path, split="train")) == 2
    assert read_groups(tmp_path, split="test")[0]["prompt"][0]["content"] == "test-00000-of-00001"
    with pytest.raises(DataError, match="not 'dev'"):
        read_groups(tmp_path, split="dev")


def test_splits_in_one_object_are_not_read_as_columns(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "completion": "Because."}]
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"train": rows, "test": rows}), "utf-8")
    for source in (path, {"train": rows, "test": rows}):
        with pytest.raises(DataError, match=r"AK-D21 holds the splits \['test', 'train'\]"):
            read_groups(source)


def test_files_that_hold_no_rows_are_called_what_they_are(tmp_path: Path) -> None:
    path, made = tmp_path / "rows.tar.gz", io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))
    path.write_bytes(made.getvalue())
    with pytest.raises(DataError, match=r"is a tar archive.*unpack it"):
        read_groups(path)
    for name, head, what in (("a.pkl", b"\x80\x04}.", "a pickle"), ("a.npy", b"\x93NUMPY\x01", "an array of NumPy")):
        (tmp_path / name).write_bytes(head)
        with pytest.raises(DataError, match=f"AK-D22 is {what}, which is not read"):
            read_groups(tmp_path / name)
    with pytest.raises(DataError, match="a bytes holds no rows"):
        read_groups(b"abc")
