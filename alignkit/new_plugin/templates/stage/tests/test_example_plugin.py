"""What the verb makes, and that it is made once."""

from __future__ import annotations

import pytest

from alignkit import ConfigError, Groups, Run

GROUPS = Groups.from_prompts(["Say hello.", "Count.", "Name a colour."])


def test_the_shortest_prompts_stay(tmp_path) -> None:
    with Run(tmp_path / "run", quiet=True) as run:
        kept = run.stage("example_component", GROUPS, rows=2)
    assert [row["prompt"][0]["content"] for row in kept.groups] == ["Count.", "Say hello."]


def test_it_is_found_again_and_another_argument_makes_another(tmp_path) -> None:
    with Run(tmp_path / "run", quiet=True) as run:
        first = run.stage("example_component", GROUPS, rows=1, name="first")
    with Run(tmp_path / "run", quiet=True) as run:
        again = run.stage("example_component", GROUPS, rows=1, name="first")
        other = run.stage("example_component", GROUPS, rows=2, name="other")
    assert again.key == first.key != other.key
    assert (len(first), len(other)) == (1, 2)


def test_no_rows_are_refused(tmp_path) -> None:
    with Run(tmp_path / "run", quiet=True) as run, pytest.raises(ConfigError, match="rows"):
        run.stage("example_component", GROUPS, rows=0)
