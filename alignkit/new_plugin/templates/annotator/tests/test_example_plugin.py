"""Ranks by hand, and that it is found by name."""

from __future__ import annotations

import pytest
from example_plugin import ExampleComponent

from alignkit import ConfigError, Groups, Run, use

GROUPS = Groups.from_rows([{"prompt": "p", "responses": ["a b c", "a", "a b"]}, {"prompt": "q", "responses": ["a"]}])


@pytest.mark.parametrize(("tolerance", "ranks"), [(0, [3, 1, 2]), (1, [3, 1, 1]), (2, [1, 1, 1])])
def test_the_shortest_is_best(tolerance: int, ranks: list[int]) -> None:
    judged = ExampleComponent(tolerance).annotate(GROUPS)["preference"]
    assert [row["ranks"] for row in judged] == [ranks]


def test_an_order_of_the_answers_makes_no_difference() -> None:
    turned = Groups.from_rows([{"prompt": "p", "responses": ["a b", "a", "a b c"]}])
    assert [row["ranks"] for row in ExampleComponent().annotate(turned)["preference"]] == [[2, 1, 3]]


def test_it_annotates_a_run_by_name(tmp_path) -> None:
    with Run(tmp_path / "run", quiet=True) as run:
        judged = run.annotate(GROUPS, use("example_component", tolerance=1))
    assert judged["preference"].groups[0]["ranks"] == [3, 1, 1]


def test_a_tolerance_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="tolerance"):
        ExampleComponent(-1)
