"""The score by hand, and that it is found by name."""

from __future__ import annotations

import pytest
from example_plugin import example_component

from alignkit import Groups, Run, use


@pytest.mark.parametrize(("response", "score"), [("a b", 1.0), ("a b c d", 0.5), ("", None)])
def test_what_is_longer_than_asked_for_scores_less(response: str, score: float | None) -> None:
    assert example_component(response, words=2) == score


def test_it_scores_groups_and_says_what_is_missing(tmp_path) -> None:
    groups = Groups.from_rows([{"prompt": "p", "responses": ["a b c d", ""]}, {"prompt": "q", "responses": ["a"]}])
    with Run(tmp_path / "run", quiet=True) as run:
        scored = run.score(groups, use("example_component", words=2)).groups
    assert scored.rewards("example_component") == ([[0.5, 0.0], [1.0]], [[True, False], [True]])
