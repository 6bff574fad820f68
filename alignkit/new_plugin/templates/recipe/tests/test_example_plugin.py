"""The recipe runs from end to end, by name, and what it learned shows."""

from __future__ import annotations

import json

import pytest
from example_plugin import vowels

from alignkit import run_recipe


def test_what_is_taught_is_said(tmp_path) -> None:
    folder = tmp_path / "run"
    run_recipe("example_component", run_dir=folder)
    records = [json.loads(path.read_text()) for path in folder.glob("stages/*/stage.json")]
    found = {r["result"]["label"]: r["result"]["metrics"] for r in records if r["verb"] == "evaluate"}
    assert found["V1"]["vowels"]["mean"] > found["V0"]["vowels"]["mean"] + 0.2
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(("answer", "share"), [("aeiou", 1.0), ("abab", 0.5), ("", 0.0)])
def test_the_share_of_vowels(answer: str, share: float) -> None:
    assert vowels(answer) == share
