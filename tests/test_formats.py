"""Forms of data files: what is known, that nothing of a row vanishes in silence, and how a plugin brings another."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import AlignkitError, PluginError, cli
from alignkit.data import Reading, RowFormat, read_groups
from alignkit.data.formats import CORE
from alignkit.data.known import format_of, known_formats
from alignkit.data.row_format import first_name, says_more
from alignkit.errors import ConfigError, DataError
from alignkit.registry.hookspecs import hookimpl
from alignkit.registry.host import PluginHost
from alignkit.testing.conformance import checks_of, examine, find

ROOT = Path(__file__).resolve().parent.parent
USER, BOT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}


def tool() -> ModuleType:
    """tools/formats_table.py."""
    spec = importlib.util.spec_from_file_location("formats_table", ROOT / "tools" / "formats_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TABLE = tool()
HOST = PluginHost(allow=[])
FORMS = TABLE.forms()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.source}: {form.situation}")
def test_no_public_form_is_read_wrongly_or_refused_without_a_way_out(form: Any) -> None:
    found, why = TABLE.verdict(form)
    assert found == ("refused clearly" if form.becomes is None else "right"), why


def test_the_table_tells_what_is_wrong() -> None:
    row = {"prompt": "Why?", "completion": "Because."}
    form = TABLE.Form("x", "y", [row], ({"responses": ["No."]},))
    assert TABLE.verdict(form)[0] == "silently wrong"
    assert TABLE.verdict(TABLE.Form("x", "y", [row], None, "completion"))[0] == "silently wrong"
    assert TABLE.verdict(TABLE.Form("x", "y", [{"a": 1}], None, "way out"))[0] == "refused badly"
    assert len(FORMS) >= 150


def attempt(rows: Any) -> tuple[Any, str]:
    """(groups, "") or (None, the refusal)."""
    try:
        return read_groups(rows), ""
    except AlignkitError as error:
        return None, str(error)


# ---- the registry -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", CORE, ids=lambda one: one.name)
def test_every_format_is_recognised_by_its_example(one: RowFormat) -> None:
    assert format_of(one.example) is one
    assert all(first_name(need) == need.split("|")[0] for need in one.needs)
    assert len(one.doc) > 20
    if one.gather is None:
        assert one(one.example)


def test_names_are_unique_and_the_core_registers_them_through_the_hook() -> None:
    assert len({one.name for one in CORE}) == len(CORE) >= 25
    records = PluginHost(allow=[], block=[]).components("format")
    assert {record.name: record.object for record in records} == {one.name: one for one in CORE}
    assert all(record.doc == record.object.doc for record in records)


def _bits(parts: dict[str, Any]) -> Reading:
    return Reading("demonstrations", {"prompt": parts["bit"], "responses": [parts["bob"]]})


BITS = RowFormat("bits", "a stranger's form: two texts", ("bit", "bob"), _bits, {"bit": "a", "bob": "b"})


def test_a_plugin_brings_a_format_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"cannot tell what the columns \['bit', 'bob'\] mean"):
        read_groups([{"bit": "Why?", "bob": "Because."}])

    class Brings:
        @hookimpl
        def register_formats(self, register: Any) -> None:
            register("bits", BITS)

    host = PluginHost(allow=[])
    host.register(Brings(), "strangers")
    monkeypatch.setattr("alignkit.registry.host.default_host", lambda: host)
    assert ("strangers", BITS) in known_formats()
    [row] = read_groups([{"bit": "Why?", "bob": "Because.", "id": 3}])
    assert (row["prompt"][0]["content"], row["responses"], row["meta"]) == ("Why?", ["Because."], '{"id":3}')
    assert len(read_groups([{"bit": "Why?", "bob": "Because."}], format="strangers/bits")) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (BITS.__class__, "not an alignkit.plugin.RowFormat"),
        (RowFormat("other", "x", ("a",), _bits, {"a": 1}), "calls itself 'other'"),
        (RowFormat("bits", "x", (), _bits, {"a": 1}), "names no column"),
        (RowFormat("bits", "x", ("a",), _bits, {"b": 1}), "example is no row"),
    ],
)
def test_a_format_that_cannot_be_is_refused(target: Any, message: str) -> None:
    class Brings:
        @hookimpl
        def register_formats(self, register: Any) -> None:
            register("bits", target)

    with pytest.raises(PluginError, match=message):
        PluginHost(allow=[]).register(Brings(), "strangers")


def test_a_format_may_be_named_where_columns_do_not_say() -> None:
    row = {"prompt": "Why?", "completion": "Because.", "label": True}
    assert read_groups([row])[0]["labels"] == [True]
    with pytest.raises(DataError, match="label — could carry meaning, and the format demonstration does not read it"):
        read_groups([row], format="demonstration")
    with pytest.raises(ConfigError, match=r"no format is called 'demonstratoin'.*did you mean demonstration\?"):
        read_groups([row], format="demonstratoin")


def test_the_row_that_understands_most_decides_and_a_file_has_one_format() -> None:
    with pytest.raises(DataError, match="row 1 label — could carry meaning, and the format demonstration"):
        read_groups([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "label": True}])
    # A table fills in what a row does not say: the same columns, and nothing in them.
    rows = [{**PAIR, "messages": None}, {**PAIR, "chosen": "Yes.", "messages": None, "completion": None}]
    assert len(read_groups(rows)) == 2


@pytest.mark.parametrize("one", CORE, ids=lambda one: one.name)
def test_every_format_of_the_core_passes_the_conformance_kit(one: RowFormat) -> None:
    [subject] = find(f"format:{one.name}", HOST)
    for each in checks_of("format"):
        found = examine(subject, each)
        assert found.verdict != "fail", found


# ---- nothing vanishes -------------------------------------------------------------------------------------------

MEANT = (
    "is_safe", "weight", "loss", "loss_weight", "images", "videos", "audios", "reasoning_content", "rejected_response",
    "function", "labels", "ranks", "scores", "safer", "winner", "feedback", "chosenAnswer", "ratings", "chosen_text",
)  # fmt: skip


@pytest.mark.parametrize("name", MEANT)
@pytest.mark.parametrize(
    "row", [PAIR, {"messages": [USER, BOT]}, {"prompt": "Why?", "completion": "Because."}, {"prompt": "Why?"}]
)
def test_a_column_that_could_carry_meaning_is_used_or_refused_by_name(name: str, row: dict[str, Any]) -> None:
    before = read_groups([row])
    after, refused = attempt([{**row, name: 0.5}])
    if refused:
        assert name in refused
    else:
        kept = [{k: v for k, v in one[0].items() if k != "meta"} for one in (before, after)]
        assert kept[0] != kept[1]
    assert len(read_groups([{**row, name: None}])) == 1
    kept = read_groups([{**row, name: 0.5}], columns={"meta": [name]})[0]
    assert json.loads(kept["meta"]) == {name: 0.5}


@pytest.mark.parametrize(
    "name", ["id", "source", "num_turns", "chosen_model", "responseModel", "label_source", "notes"]
)
def test_bookkeeping_is_put_aside(name: str) -> None:
    assert not says_more(name)
    assert json.loads(read_groups([{**PAIR, name: "x"}])[0]["meta"]) == {name: "x"}


JUDGES_OR_SAYS = (
    "user_rating", "is_user_safe", "model_output", "reward_model_score", "user_feedback", "is_correct", "harmful",
    "train", "mask", "image_url", "video_path", "generation", "model_response", "corrected", "persona", "documents",
    "thumbs", "flagged", "verified", "grade", "cot",
)  # fmt: skip


@pytest.mark.parametrize("name", JUDGES_OR_SAYS)
@pytest.mark.parametrize("row", [{"messages": [USER, BOT]}, {"prompt": "Why?", "completion": "Because."}])
def test_what_judges_an_answer_or_says_another_is_refused_whoever_it_is_of(name: str, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"row 0 {name} — could carry meaning"):
        read_groups([{**row, name: 0}])
    assert json.loads(read_groups([{**row, name: 0}], columns={"meta": [name]})[0]["meta"]) == {name: 0}


@pytest.mark.parametrize("name", ["samples", "replies", "choices", "model_outputs", "generated_texts", "candidates_1"])
def test_answers_under_another_name_do_not_leave_a_bare_prompt(name: str) -> None:
    with pytest.raises(DataError, match=f"row 0 {name} — could carry meaning"):
        read_groups([{"prompt": "Why?", name: ["Because.", "So."]}])


@pytest.mark.parametrize("name", ["model_chosen", "source_rejected", "num_choices", "in_gsm8k_train", "safety_tags"])
def test_what_a_name_ends_with_says_what_it_is(name: str) -> None:
    assert not says_more(name)


SAID = json.dumps(USER)


@pytest.mark.parametrize("prompt", [SAID, f"[{SAID}]", json.dumps({"messages": [USER]})])
def test_messages_written_as_json_text_are_messages_however_many(prompt: str) -> None:
    row = read_groups([{"prompt": prompt, "completion": json.dumps(BOT)}])[0]
    assert ([turn["content"] for turn in row["prompt"]], row["responses"]) == (["Why?"], ["Because."])


@pytest.mark.parametrize("text", [str([USER, BOT]), f"[{USER}\n {BOT}]", json.dumps([USER, BOT])[:-9]])
@pytest.mark.parametrize("column", ["prompt", "chosen"])
def test_messages_written_as_text_that_is_no_json_are_refused(text: str, column: str) -> None:
    with pytest.raises(DataError, match=f"{column} — holds messages as text that is no JSON .*json.dumps"):
        read_groups([{**PAIR, column: text}])


def test_an_answer_that_is_json_of_its_own_stays_text() -> None:
    for text in ('{"role": "admin", "content": "x"}', '[{"name": "x"}]', "[{'name': 'x'}]", "{'a': 1}"):
        assert read_groups([{"prompt": "Give JSON.", "completion": text}])[0]["responses"] == [text]


@pytest.mark.parametrize("name", ["messages", "conversation", "conversations"])
def test_a_conversation_that_waits_is_the_prompt_of_the_pair_beside_it(name: str) -> None:
    for chosen, rejected in ((BOT, {**BOT, "content": "So."}), ("Because.", "So.")):
        row = read_groups([{name: [USER], "chosen": chosen, "rejected": rejected}])[0]
        assert ([t["content"] for t in row["prompt"]], row["responses"]) == (["Why?"], ["Because.", "So."])


def test_a_conversation_beside_a_pair_is_the_same_one() -> None:
    talk = {"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "So."}]}
    assert read_groups([{**talk, "messages": [USER, BOT]}])[0]["responses"] == ["Because.", "So."]
    with pytest.raises(DataError, match="messages — is another conversation than the prompt"):
        read_groups([{**talk, "messages": [{**USER, "content": "Who?"}, BOT]}])


def test_a_prompt_beside_messages_is_their_beginning() -> None:
    row = {"prompt": "Why?", "prompt_id": "p", "messages": [USER, BOT, USER, BOT]}
    assert len(read_groups([row])[0]["prompt"]) == 3
    with pytest.raises(DataError, match=r"prompt — is no beginning of messages.*columns=\{'meta': \['prompt'\]\}"):
        read_groups([{**row, "prompt": "Who?"}])


def test_exchanges_of_input_and_output_are_turns() -> None:
    talk = [{"input": "Why?", "output": "Because."}, {"output": "It was.", "input": "Was it?"}]
    row = read_groups([{"conversation": talk}])[0]
    assert [turn["content"] for turn in row["prompt"]] == ["Why?", "Because.", "Was it?"]
    assert row["responses"] == ["It was."]


def test_a_value_of_any_length_makes_a_short_error() -> None:
    with pytest.raises(DataError) as raised:
        read_groups([{"prompt": "Why?", "completion": "Because.", "label": "x" * 10_000}])
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("field", ["mood", "images", "audio", "tool_choice", "citations"])
def test_a_field_of_a_message_that_nobody_knows_is_refused_by_name(field: str) -> None:
    with pytest.raises(DataError, match=rf"messages\[1\]\.{field} — is a field that is not understood"):
        read_groups([{"messages": [USER, {**BOT, field: ["x"]}]}])
    assert read_groups([{"messages": [USER, {**BOT, field: None, "id": "m1"}]}])[0]["responses"] == ["Because."]


def test_weights_say_which_answers_are_learned() -> None:
    talk = [USER, {**BOT, "weight": 0}, USER, {**BOT, "content": "So."}, USER, {**BOT, "weight": 1}]
    row = read_groups([{"messages": talk}])[0]
    marks = [(turn["trained"], turn["fields"]) for turn in row["prompt"] if turn["role"] == "assistant"]
    assert marks == [(False, '{"weight":0}'), (True, None)]


def test_a_weight_of_a_users_turn_is_no_answers() -> None:
    row = read_groups([{"messages": [{**USER, "weight": 0}, BOT]}])[0]
    assert (row["responses"], row["prompt"][0]["fields"]) == (["Because."], None)


def test_two_texts_for_one_thing_are_refused() -> None:
    with pytest.raises(DataError, match=r"question — could carry meaning.*columns=\{'prompt': 'question'\}"):
        read_groups([{**PAIR, "question": "Who?"}])
    with pytest.raises(DataError, match="system — is another text than the system turn"):
        read_groups([{"messages": [{"role": "system", "content": "a"}, USER, BOT], "system": "b"}])


def test_what_is_left_out_is_written_with_its_reasons(tmp_path: Path) -> None:
    path, bad = tmp_path / "a.jsonl", tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\nbroken\n{json.dumps({**PAIR, 'chosen': ' '})}\n", encoding="utf-8")
    assert len(read_groups(path, drop_bad=bad)) == 1
    left = [json.loads(line) for line in bad.read_text(encoding="utf-8").splitlines()]
    assert [(entry["where"], entry["problems"][0]["code"]) for entry in left] == [
        (f"{path}:2", "AK-D22"),
        (f"{path}:3", "AK-D01"),
    ]
    assert left[1]["row"] == {**PAIR, "chosen": " "}
    assert "is empty" in left[1]["problems"][0]["problem"]


def test_what_says_where_a_row_is_from_is_kept() -> None:
    batch = {"custom_id": "7", "method": "POST", "url": "/v1", "body": {"model": "m", "messages": [USER]}}
    kept = json.loads(read_groups([batch])[0]["meta"])
    assert kept == {"custom_id": "7", "method": "POST", "url": "/v1", "body": {"model": "m"}}
    by_name = {one.name: one for one in CORE}
    assert json.loads(read_groups([by_name["ultrafeedback"].example])[0]["meta"])["models"] == ["a", "b"]
    tree = read_groups([by_name["message_tree"].example])[0]
    assert json.loads(tree["meta"]) == {"message_tree_id": "t", "tree_state": "x"}


def test_a_row_alone_has_ranks_from_one_and_the_file_decides_their_base() -> None:
    [listed] = [one for one in CORE if one.name == "responses"]
    rows = [
        {"prompt": "Why?", "responses": [{"text": "Because.", "rank": low}, {"text": "No.", "rank": low + 1}]}
        for low in (0, 1)
    ]
    assert [listed(row)[0].row["ranks"] for row in rows] == [[1, 2], [1, 2]]
    assert read_groups(rows[1:])[0]["ranks"] == [1, 2]
    with pytest.raises(DataError, match=r"row 1 .*ranks — \[2, 3\]: ranks with gaps"):
        read_groups(rows)


# ---- files ------------------------------------------------------------------------------------------------------


def test_rows_of_several_files_say_which(tmp_path: Path) -> None:
    for name, row in (("a.jsonl", PAIR), ("b.csv", None)):
        text = json.dumps(row) if row else "prompt,chosen,rejected\nWho?,I.,I.\n"
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"AK-D02 .*b\.csv:2"):
        read_groups(tmp_path)
    assert len(read_groups(f"{tmp_path}/*.jsonl")) == 1
    with pytest.raises(DataError, match="no such file"):
        read_groups(f"{tmp_path}/*.parquet")


def test_a_hub_name_goes_to_datasets_with_its_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*arguments: Any, **named: Any) -> Any:
        asked.append((arguments, named))
        return datasets.Dataset.from_list([PAIR])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_groups("some/where", split="test", revision="abc", subset="en")) == 1
    assert asked == [(("some/where", "en"), {"split": "test", "revision": "abc"})]
    with pytest.raises(DataError, match="on no hub"):
        read_groups([PAIR], revision="abc")


def test_a_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Offline mode is enabled.\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(
        DataError, match=r"some/where: is no file here.*\(Offline mode is enabled\.\).*download it"
    ) as found:
        read_groups("some/where")
    assert "long story" not in str(found.value)


def test_the_numbers_of_a_table_are_numbers_where_they_must_be(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,margin,tie\nWhy?,7,8,0.5,no\n", encoding="utf-8")
    row = read_groups(path)[0]
    assert (row["responses"], row["ranks"], row["meta"]) == (["7", "8"], [1, 2], '{"margin":0.5}')


ANSWERS = {"prompt": "Why?", "responses": ["Because.", "No."]}


@pytest.mark.parametrize(
    ("row", "code", "column"),
    [
        ({"messages": "", "rejected": "No."}, "D12", "messages"),
        ({"conversation_a": "", "conversation_b": [USER, BOT], "winner": "tie"}, "D12", "conversation_a"),
        ({"chosen": [], "rejected": [USER, BOT]}, "D21", "chosen"),
        ({"conversation_a": [USER, BOT], "conversation_b": [USER, BOT], "winner": float("nan")}, "D17", "winner"),
        ({**PAIR, "margin": 10**400}, "D17", "margin"),
        ({**PAIR, "preference_prob": 10**400}, "D17", "preference_prob"),
        ({"prompt": "Why?", "completion": "So.", "score": 10**400}, "D17", "score"),
        ({**ANSWERS, "finished": ["x", "y"]}, "D17", "finished"),
        ({**ANSWERS, "response_ids": ["a", "b"]}, "D21", "response_ids"),
        ({**ANSWERS, "logprobs": ["a", "b"]}, "D21", "logprobs"),
        ({**ANSWERS, "rewards": {"r": ["a", "b"]}}, "D21", "rewards"),
        ({**ANSWERS, "iteration": 10**400}, "D21", "iteration"),
    ],
)
def test_a_value_that_a_column_cannot_hold_is_a_bad_row_that_names_it(
    row: dict[str, Any], code: str, column: str
) -> None:
    with pytest.raises(DataError, match=rf"AK-{code} row 0 (\(\w+\) )?{column} —"):
        read_groups([row])


def test_numbers_that_a_column_holds_are_held() -> None:
    rows = [{**ANSWERS, "finished": [True, False], "iteration": 3, "rewards": {"r": [1, None]}}]
    [row] = read_groups(rows)
    assert (row["finished"], row["iteration"]) == ([True, False], 3)
    assert [(reward["name"], reward["values"]) for reward in row["rewards"]] == [("r", [1.0, None])]


# ---- whatever the value -----------------------------------------------------------------------------------------

NAMES = sorted({name for one in CORE for need in (*one.needs, *one.may) for name in need.split("|")})
FIELDS = (
    "role", "content", "from", "value", "text", "rank", "score", "answer", "tool_calls", "type", "function",
    "arguments", "name", "weight", "replies", "annotations", "response", "messages",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
        | st.builds(lambda a, b: [{"role": "user", "content": a}, {"role": "assistant", "content": b}], inner, inner)
    ),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=6) | JSON, max_size=4))
@settings(deadline=None, max_examples=150)
def test_any_json_is_read_or_refused_with_an_error_of_ours(rows: list[Any]) -> None:
    found, refused = attempt(rows)
    assert found is not None or "AK-D" in refused


@given(st.sampled_from(CORE), st.data())
@settings(deadline=None, max_examples=150)
def test_any_format_with_any_value_in_a_column_is_read_or_refused(one: RowFormat, data: Any) -> None:
    row = dict(one.example)
    name = data.draw(st.sampled_from(sorted(row)))
    row[name] = data.draw(JSON)
    for other in data.draw(st.lists(st.sampled_from(one.may), max_size=2)) if one.may else ():
        row[other.split("|")[0]] = data.draw(JSON)
    found, refused = attempt([row])
    assert found is not None or "AK-D" in refused


# ---- the commands -----------------------------------------------------------------------------------------------


def test_formats_are_listed_with_an_example_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["formats", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in listed} >= {one.name for one in CORE}
    assert all(entry["example"] and entry["doc"] and entry["needs"] for entry in listed)
    assert cli.main(["formats"]) == 0
    assert "safe_rlhf" in capsys.readouterr().out
    assert cli.main(["formats", "webgpt"]) == 0
    assert "quotes_0" in capsys.readouterr().out


def test_data_shows_a_row_as_the_model_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (PAIR, {**PAIR, "rejected": "Never.", "id": 1})), "utf-8")
    assert cli.main(["data", str(path), "--policy", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "2 comparisons; 4 responses" in shown
    assert "put aside  id" in shown
    assert "prompt: <|user|>Why?<|end|><|assistant|>" in shown
    assert "chosen: ⟦Because.<|end|>⟧" in shown
    assert "prompts 7 to 7, median 7; responses 4 to 9, median 8 tokens" in shown
    assert "problems   none" in shown


def test_data_tells_every_problem_and_writes_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, bad = tmp_path / "a.jsonl", tmp_path / "bad.jsonl"
    rows = [PAIR, {**PAIR, "chosen": ""}, {**PAIR, "rejected": "Because. "}, {**PAIR, "prompt": "Why <|end|>?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert cli.main(["data", str(path), "--policy", "tiny"]) == 1
    shown = capsys.readouterr().out
    assert "4 rows, 2 refused" in shown
    assert "AK-D01 x 1 (refused)" in shown
    assert f"{path}:3" in shown
    assert "AK-D08 x 1 (note)" in shown
    assert cli.main(["data", str(path), "--drop-bad", str(bad), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["dropped"], found["formats"]) == (2, 2, ["comparison"])
    assert len(bad.read_text("utf-8").splitlines()) == 2


def test_data_tells_what_a_template_does_not_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    calls = [{"function": {"name": "teas", "arguments": {"of": "China"}}}]
    talk = [USER, {"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "3"}, BOT]
    path.write_text(json.dumps({"messages": talk}), "utf-8")
    assert cli.main(["data", str(path), "--policy", "tiny"]) == 1
    assert "does not show the tool_calls of message 1" in capsys.readouterr().out


def test_data_counts_prompts_of_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in (("a.jsonl", [PAIR]), ("b.jsonl", [{"prompt": "Why?"}, {"prompt": "Who?"}])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert cli.main(["data", str(tmp_path / "a.jsonl"), "--against", str(tmp_path / "b.jsonl")]) == 0
    assert "1 of 2 prompts of" in capsys.readouterr().out


def test_columns_are_given_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"ask": "Why?", "reply": "Because.", "label": "x"}), "utf-8")
    assert cli.main(["data", str(path), "--columns", "prompt=ask", "completion=reply", "meta=label"]) == 0
    assert "1 demonstrations" in capsys.readouterr().out
    assert cli.main(["data", str(path), "--columns", "prompt"]) == 2


def test_reading_imports_no_plugin_that_names_no_format(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_groups([PAIR])
    assert not any(info.import_seconds for info in PluginHost().plugins())
