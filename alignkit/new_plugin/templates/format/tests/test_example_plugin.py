"""What a row becomes, what is refused, and that files are recognised."""

from __future__ import annotations

import json

import pytest
from example_plugin import FORMAT

from alignkit import DataError, read_groups

ROW = {"asked": "1 + 1?", "right_answer": "2", "wrong_answer": "3"}


def test_a_row_is_a_comparison() -> None:
    row = read_groups([ROW], format="example_component")[0]
    assert (row["prompt"][0]["content"], row["responses"], row["ranks"]) == ("1 + 1?", ["2", "3"], [1, 2])


def test_a_file_is_recognised(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROW, "id": 7}))
    assert read_groups(path)[0]["meta"] == '{"id":7}'


def test_an_answer_that_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="right_answer — is of type int"):
        read_groups([{**ROW, "right_answer": 2}])


def test_what_it_shows_is_one_of_its_rows() -> None:
    assert FORMAT.fits(FORMAT.example)
