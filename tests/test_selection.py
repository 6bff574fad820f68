"""Which responses of groups stay."""

from __future__ import annotations

import pytest
import torch

from alignkit import DataError, Groups
from alignkit.rewards import rank_by_reward
from alignkit.selection import best_responses, eligible, take_present, take_responses


def test_taking_responses_takes_all_that_is_known_of_them() -> None:
    row = {
        "prompt": "p",
        "responses": ["a", "b", "c"],
        "finished": [True, False, True],
        "ranks": [1, 2, 3],
        "rewards": {"r": [1.0, None, 3.0]},
        "preference_prob": 0.9,
    }
    groups = Groups.from_rows([row, row, row])
    taken = take_responses(groups, [[2, 0], [], [0, 1, 2]])
    assert [r["responses"] for r in taken] == [["c", "a"], ["a", "b", "c"]]
    assert taken[0]["finished"] == [True, True]
    assert taken[0]["ranks"] == [3, 1]
    assert taken[0]["rewards"][0]["values"] == [3.0, 1.0]
    assert taken[0]["preference_prob"] is None
    assert taken[1] == groups[2]


def test_responses_without_a_reward_are_left_out_and_nothing_else_changes() -> None:
    groups = Groups.from_rows({"prompt": p, "responses": [p + "0", p + "1"]} for p in "abc")
    present = torch.tensor([1, 0, 0, 0, 1, 1]).bool()
    assert [row["responses"] for row in take_present(groups, present)] == [["a0"], ["c0", "c1"]]
    assert take_present(groups, torch.ones(6).bool()) is groups
    with pytest.raises(DataError, match="Learning from nothing"):
        take_present(groups, torch.zeros(6).bool())


def test_a_response_cut_off_or_without_a_reward_is_not_imitated() -> None:
    cut = {"responses": ["0", "1", "2"], "rewards": {"r": [1.0, None, 2.0]}, "finished": [True, True, False]}
    groups = Groups.from_rows([{"prompt": "a", **cut}, {"prompt": "b", "responses": ["0"], "rewards": {"r": [1.0]}}])
    assert eligible(groups, "r", True) == [[True, False, False], [True]]
    assert eligible(groups, "r", False) == [[True, False, True], [True]]


def test_ranks_by_reward_tie_and_leave_out_what_is_missing():
    rows = [{"prompt": "a", "responses": ["1", "2", "3"]}, {"prompt": "b", "responses": ["1", "2"]}]
    groups = Groups.from_rows(rows).with_rewards("r", [[1.0, 3.0, 1.0], [None, 2.0]])
    ranked = rank_by_reward(groups, "r")
    assert [row["ranks"] for row in ranked] == [[2, 1, 2]]
    part = Groups.from_rows(rows[:1]).with_rewards("r", [[1.0, None, 5.0]])
    assert [(row["responses"], row["ranks"]) for row in rank_by_reward(part, "r")] == [(["1", "3"], [2, 1])]


def test_new_ranks_take_nothing_over_from_the_old_ones():
    """A soft label of 0.95 for A must not become one for B."""
    row = {"prompt": "a", "responses": ["A", "B"], "ranks": [1, 2], "rating": "better", "preference_prob": 0.95}
    groups = Groups.from_rows([{**row, "meta": {"margin": 2.0, "topic": "x"}}]).with_rewards("r", [[0.0, 1.0]])
    (ranked,) = rank_by_reward(groups, "r")
    assert ranked["ranks"] == [2, 1]
    assert (ranked["rating"], ranked["preference_prob"], ranked["meta"]) == (None, None, '{"topic":"x"}')


def test_the_best_responses_stand_in_their_order():
    groups = Groups.from_rows([{"prompt": "a", "responses": ["1", "2", "3"]}, {"prompt": "b", "responses": ["4"]}])
    scored = groups.with_rewards("r", [[1.0, 3.0, 3.0], [None]])
    assert [row["responses"] for row in best_responses(scored, "r", 2)] == [["2", "3"]]
    assert [row["responses"] for row in best_responses(scored, "r", 1)] == [["2"]]
