"""Groups: plain columns where they are small, Arrow where they are large; copies go out, and the digest stays."""

from __future__ import annotations

import tracemalloc
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Value

from alignkit import DataError, Groups, columns
from alignkit.columns import FEATURES, Memory, Table, features
from alignkit.selection import take_responses, with_ranks

ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "ünï"}],
        "responses": ["a", "bb"],
        "response_ids": [[3, 70000], [1]],
        "logprobs": [[-0.1, -2.5], [0.0]],
        "finished": [True, None],
        "ranks": [2, 1],
        "rewards": {"z": [1, None], "a": [0.1, 2.5]},
        "sampled_by": [{"policy": "p", "temperature": 1}, {"policy": "q", "temperature": 0.7}],
        "meta": {"b": 1, "a": [None, "x"]},
        "tags": ["t"],
        "rating": "better",
        "preference_prob": 0.7,
        "labels": (True, False),
        "tokenizer": "f",
        "iteration": 3,
        "dimension": "safety",
    },
    {"prompt": "plain"},
    {"prompt": "three", "responses": ["", "c\nd", "e"], "rewards": {"a": [np.float32(0.1), 3, None]}},
]
DIGEST = "89f29eee036340a66a94c2a11826ef406666aa346f744ca6fef46e411938f1cf"
"""Of `ROWS`, as it was when every table was a data set."""


def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on everything is kept in Arrow."""
    monkeypatch.setattr(columns, "LARGE", 0)


def spoil(value: Any) -> None:
    """Change whatever can be changed, at every depth."""
    if isinstance(value, dict):
        for inner in value.values():
            spoil(inner)
        value.clear()
    elif isinstance(value, list):
        for inner in value:
            spoil(inner)
        value.append("spoiled")


@pytest.mark.parametrize("kept_in", ["lists", "arrow", "lists from disk"])
def test_nobody_changes_groups_through_what_they_handed_out(kept_in, monkeypatch, tmp_path):
    if kept_in == "arrow":
        large(monkeypatch)
    groups = Groups.from_rows(ROWS)
    if kept_in == "lists from disk":
        groups.save(tmp_path)
        groups = Groups.load(tmp_path)
    assert isinstance(groups._columns, Table if kept_in == "arrow" else Memory)
    other = groups.with_rewards("more", [[1.0, 2.0], [], [1.0, 2.0, 3.0]])  # shares every other column
    before, other_before = groups.digest(), other.digest()
    spoil(groups.rows)
    spoil(list(groups))
    spoil(groups[0])
    spoil(groups.rewards("a"))
    spoil(groups.reward_names())
    spoil(groups.meta(0))
    spoil(groups.sizes())
    for name in FEATURES:
        spoil(groups.column(name))
        spoil([list(values) for values in groups.each(name, "prompt_id")])
    assert groups.digest() == before
    assert other.digest() == other_before


def test_groups_do_not_follow_the_rows_that_they_were_made_of():
    given = [{"prompt": [{"role": "user", "content": "u"}], "responses": ["a"], "response_ids": [[1]], "tags": ["t"]}]
    groups = Groups.from_rows(given)
    before = groups.digest()
    spoil(given)
    values = [[1.0]]
    scored = groups.with_rewards("r", values)
    values[0][0] = 5.0
    assert groups.digest() == before
    assert scored.rewards("r") == ([[1.0]], [[True]])


def test_the_digest_is_that_of_the_canonical_rows_whatever_they_are_kept_in(monkeypatch, tmp_path):
    groups = Groups.from_rows(ROWS)
    assert groups.digest() == DIGEST
    groups.save(tmp_path)
    assert Groups.load(tmp_path).digest() == DIGEST
    assert Groups(groups.dataset).digest() == DIGEST
    large(monkeypatch)
    assert Groups.from_rows(ROWS).digest() == DIGEST
    assert Groups.load(tmp_path).digest() == DIGEST


OPERATIONS = {
    "select": lambda g: g.select([2, 0, 0, -1]),
    "filter": lambda g: g.filter(lambda row: len(row["responses"]) > 1),
    "concat": lambda g: Groups.concat([g, g.select([1]), g]),
    "map_rows": lambda g: g.map_rows(lambda row: {"iteration": 7, "meta": {"n": len(row["responses"])}}),
    "map_some": lambda g: g.map_rows(lambda row: {"tags": ["m"]} if row["responses"] else {"rewards": None}),
    "map_responses": lambda g: g.without_responses().map_rows(lambda row: {"responses": ["x", "y"], "ranks": [1, 2]}),
    "without_responses": lambda g: g.without_responses(),
    "with_rewards": lambda g: g.with_rewards("a", [[None, 1.0], [], [1.0, 2.0, 3.0]], [["why", None], [], [None] * 3]),
    "with_columns": lambda g: g.with_columns({"dimension": ["d"] * 3, "prompt_id": [None, "own", None]}),
    "take_responses": lambda g: take_responses(g, [[1], [], [0, 1, 2]]),
    "with_ranks": lambda g: with_ranks(g, [[1, 1], [], [3, 2, 1]]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_the_same_rows_in_lists_and_in_arrow(name, monkeypatch):
    small = OPERATIONS[name](Groups.from_rows(ROWS))
    again = Groups.from_rows(small.rows)  # every row built anew from what it is said to be
    large(monkeypatch)
    big = OPERATIONS[name](Groups.from_rows(ROWS))
    assert isinstance(small._columns, Memory)
    assert isinstance(big._columns, Table)
    assert big.rows == small.rows == again.rows
    assert big.digest() == small.digest() == again.digest()
    assert big.num_responses == small.num_responses == sum(len(row["responses"]) for row in small.rows)


def test_small_groups_make_no_data_set_until_one_is_asked_for(monkeypatch):
    made = []
    real = columns.arrow
    monkeypatch.setattr(columns, "arrow", lambda values: made.append(1) or real(values))
    monkeypatch.setattr(Dataset, "from_dict", lambda *args, **kwargs: pytest.fail("a data set was made"))
    groups = Groups.from_rows(ROWS[:2])
    for operation in (OPERATIONS["select"], OPERATIONS["without_responses"]):
        operation(Groups.concat([groups, groups]))
    scored = groups.with_rewards("r", [[1.0, 2.0], []])
    assert (len(scored), scored.num_responses, scored.digest() != groups.digest()) == (2, 2, True)
    assert not made
    assert groups.dataset is groups.dataset
    assert made == [1]


def test_a_data_set_is_fingerprinted_by_its_content_and_without_pickling(monkeypatch):
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda *_: pytest.fail("rows were pickled"))
    one, same, other = (Groups.from_rows([{"prompt": text}]).dataset for text in ("p", "p", "q"))
    assert one._fingerprint == same._fingerprint != other._fingerprint


def test_saved_folders_are_those_of_datasets_both_ways(tmp_path):
    groups = Groups.from_rows(ROWS)
    groups.save(tmp_path / "ours")
    found = Dataset.load_from_disk(str(tmp_path / "ours"))
    assert found.features == features()
    assert found.to_list() == groups.rows
    theirs = Dataset.from_dict({name: groups.column(name) for name in FEATURES}, features=features())
    theirs.save_to_disk(str(tmp_path / "theirs"))
    assert Groups.load(tmp_path / "theirs").rows == groups.rows
    Groups.from_rows([]).save(tmp_path / "none")
    assert Groups.load(tmp_path / "none").rows == []


def test_numbers_are_as_precise_in_memory_as_on_disk():
    (row,) = Groups.from_rows([{"prompt": "p", "responses": ["a"], "logprobs": [[-0.1]], "rewards": {"r": [0.1]}}])
    assert row["logprobs"] == [[float(np.float32(-0.1))]]
    assert row["rewards"][0]["values"] == [0.1]
    given = {"prompt": "p", "responses": ["a"], "rewards": {"r": [1]}, "preference_prob": 1, "iteration": np.int64(2)}
    (row,) = Groups.from_rows([given])
    assert [type(v) for v in (row["rewards"][0]["values"][0], row["preference_prob"], row["iteration"])] == [
        float, float, int
    ]  # fmt: skip


def test_odd_values_are_converted_as_datasets_would():
    rows = [
        {"prompt": "p", "responses": ["a", "b"], "ranks": np.array([1, 2]), "logprobs": [[None, -1.0], []]},
        {"prompt": "p", "responses": [7], "labels": [1], "sampled_by": [{"policy": "only"}]},
    ]
    first, second = Groups.from_rows(rows)
    assert (first["ranks"], first["logprobs"]) == ([1, 2], [[None, -1.0], []])
    assert (second["responses"], second["labels"]) == (["7"], [True])
    assert second["sampled_by"] == [{"policy": "only", "temperature": None}]
    with pytest.raises(DataError, match="AK-D22"):
        Groups.from_rows([{"prompt": "p", "responses": ["\ud800"]}])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prompt", 5), ("prompt", ["x"]), ("prompt", [{"role": "user", "content": "p", "fields": "{"}]),
        ("responses", "text"), ("responses", {"a": 1}), ("responses", [["a"]]), ("response_ids", [[2**31]]),
        ("response_ids", [["1"]]), ("response_ids", [[1.5]]), ("finished", ["yes"]), ("logprobs", [-1.0]),
        ("ranks", ["1"]), ("ranks", [1.5]), ("ranks", {"a": 1}), ("ranks", 1), ("labels", ["yes"]), ("labels", [2]),
        ("rewards", 5), ("rewards", [1.0]), ("rewards", {"a": 1.0}), ("rewards", {"a": ["1"]}),
        ("rewards", [{"name": "a"}]), ("dimension", {"a": 1}), ("tags", "text"), ("iteration", "one"),
        ("preference_prob", "much"), ("sampled_by", [5]), ("response_fields", ["{"]), ("meta", "no json"),
        ("meta", ""), ("meta", "[1]"),
        ("meta", [1]), ("meta", {"a": float("nan")}),
    ],
)  # fmt: skip
def test_a_value_that_a_column_cannot_hold_is_one_error_that_names_row_and_column(column, value):
    fine = {"prompt": "p", "responses": ["a"]}
    with pytest.raises(DataError) as raised:
        Groups.from_rows([fine, {**fine, column: value}])
    error = raised.value
    assert error.what.startswith(f"AK-D21 {column} is ")
    assert (error.where, bool(error.effect), bool(error.remedy)) == ("row 1", True, True)


def test_a_row_that_is_none_is_refused_by_its_place():
    with pytest.raises(DataError, match="row 1: AK-D21 a row of type int"):
        Groups.from_rows([{"prompt": "p"}, 5])


def test_numbers_that_are_not_finite_are_named_where_the_rows_are_to_be_told_apart():
    groups = Groups.from_rows([{"prompt": "p", "responses": ["a"], "rewards": {"score": [float("inf")]}}])
    with pytest.raises(DataError, match="row 0: AK-D17 rewards holds a number that is not finite"):
        groups.digest()


def test_a_data_set_of_other_types_is_read_as_it_is_and_typed_by_the_first_change(monkeypatch):
    groups = Groups.from_rows(ROWS)
    wide = {**features(), "logprobs": [[Value("float64")]], "response_ids": [[Value("int64")]]}
    values = {name: groups.column(name) for name in FEATURES} | {"logprobs": [[[-0.1, -2.5], [0.0]], None, None]}
    read = Groups(Dataset.from_dict(values, features=Features(wide)))
    assert read[0]["logprobs"][0][0] == -0.1
    assert read.select(range(3)).digest() == DIGEST
    assert read.with_columns({"iteration": [3, None, None]}).digest() == DIGEST
    shown = Groups(groups.dataset.with_format("numpy"))
    assert shown.digest() == DIGEST


def test_what_with_columns_refuses():
    groups = Groups.from_rows(ROWS)
    for wrong, words in (
        ({"nothing": [1, 2, 3]}, "unknown columns"),
        ({"ranks": [[1, 2]]}, "1 values of ranks for 3 rows"),
        ({"ranks": [[1, 2], None, [1]]}, "row 2.*'ranks': 1.*3 responses"),
        ({"responses": [["a", "b"], [], ["one"]]}, r"row 2.*rewards\[a\].*1 responses"),
        ({"rating": ["better", None, "great"]}, "row 2.*outside the scale"),
        ({"prompt": ["p", [{"role": "nobody", "content": ""}], "p"]}, "row 1.*role 'nobody'"),
    ):
        with pytest.raises(DataError, match=words):
            groups.with_columns(wrong)
    for name in ("column", "each"):
        with pytest.raises(DataError, match="unknown columns"):
            getattr(groups, name)("nothing")
    with pytest.raises(IndexError):
        groups.select([3])


def test_large_groups_from_disk_are_not_pulled_into_memory(tmp_path):
    """100,000 rows of 8 ids are 30 MB and more as lists; what is done here holds a part of that at a time."""
    rows, text = 100_000, "a response that is not short"
    values: dict[str, Any] = {name: [None] * rows for name in FEATURES}
    values |= {"prompt_id": [str(i) for i in range(rows)], "responses": [[text]] * rows, "tags": [[]] * rows}
    values |= {"prompt": [[{"role": "user", "content": "p", "trained": False}]] * rows}
    values |= {"response_ids": [[[1, 2, 3, 4, 5, 6, 7, 8]]] * rows}
    datasets.disable_progress_bars()
    columns.arrow(values).save_to_disk(str(tmp_path))
    del values
    tracemalloc.start()
    groups = Groups.load(tmp_path)
    assert isinstance(groups._columns, Table)
    assert (len(groups), groups.num_responses) == (rows, rows)
    assert sum(len(ids) for (ids,) in groups.each("response_ids")) == rows
    some = groups.select(range(5, 8))
    assert isinstance(some._columns, Memory)
    assert some.column("prompt_id") == ["5", "6", "7"]
    most = groups.select(range(1, rows))
    assert isinstance(most._columns, Table)
    assert most[0]["prompt_id"] == "1"
    bare = groups.without_responses()
    assert isinstance(bare._columns, Table)
    assert (bare.num_responses, bare[9]["prompt_id"]) == (0, "9")
    both = Groups.concat([groups, some])
    assert isinstance(both._columns, Table)
    assert both[rows + 1]["prompt_id"] == "6"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_large_groups_change_without_the_bars_of_datasets(monkeypatch, capfd):
    monkeypatch.setattr("alignkit.columns.LARGE", 2)
    groups = Groups(Groups.from_prompts([f"p{i}" for i in range(9)]).dataset).select([4, 2, 6, 8])
    changed = groups.with_columns({"iteration": [1, 2, 3, 4]})
    assert [row["iteration"] for row in changed] == [1, 2, 3, 4]
    assert "Flattening" not in capfd.readouterr().err
