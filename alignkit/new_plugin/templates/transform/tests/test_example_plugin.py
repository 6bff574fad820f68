"""Which rows stay, and that a run finds the transform by name."""

from __future__ import annotations

import pytest
from example_plugin import example_component

from alignkit import ConfigError, Groups, Run, use
from alignkit.plugin import TransformContext

GROUPS = Groups.from_prompts(["ab", "abc", "abcd"])
CONTEXT = TransformContext(sample=lambda *_, **__: GROUPS, seed=0)


def test_rows_of_the_length_asked_for_stay() -> None:
    kept = example_component(GROUPS, CONTEXT, most=3)
    assert [row["prompt"][0]["content"] for row in kept] == ["ab", "abc"]


def test_a_run_finds_it_by_name(tmp_path) -> None:
    with Run(tmp_path / "run", quiet=True) as run:
        kept = run.transform(GROUPS, use("example_component", most=2))
    assert [row["prompt"][0]["content"] for row in kept.groups] == ["ab"]


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="most"):
        example_component(GROUPS, CONTEXT, most=0)
