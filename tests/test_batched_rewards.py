"""Reward functions that are called once with lists, as TRL's are; plain ones stay what they are."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from alignkit import ConfigError, FunctionReward, Groups, PluginError, Run, read_groups
from alignkit.rewards import WeightedSum, score_groups

GROUPS = Groups.from_rows(
    [
        {"prompt": "2 + 2?", "responses": ["4", "five"], "meta": {"answer": "4", "level": 1}},
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}],
         "responses": ["2"], "finished": [True], "meta": {"answer": "2"}},
    ]
)  # fmt: skip
CALLS: list[dict[str, Any]] = []


def scores(function: Any, **options: Any) -> Any:
    CALLS.clear()
    return FunctionReward(function, **options).score(GROUPS).values


def right(prompts, completions, answer, **kwargs):
    CALLS.append({"prompts": prompts, "completions": completions, "answer": answer, **kwargs})
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def test_it_is_called_once_with_lists_of_everything():
    assert scores(right) == [[1.0, 0.0], [1.0]]
    (call,) = CALLS
    assert call["prompts"] == ["2 + 2?", "2 + 2?", "1 + 1?"]
    assert call["completions"] == ["4", "five", "2"]
    assert call["answer"] == ["4", "4", "2"]
    assert call["level"] == [1, 1, None]
    assert call["finished"] == [None, None, True]
    assert call["completion_ids"] == [None] * 3
    assert [turns[-1]["content"] for turns in call["messages"]] == call["prompts"]
    assert call["prompt_ids"] == [GROUPS[0]["prompt_id"]] * 2 + [GROUPS[1]["prompt_id"]]


def test_conversations_are_given_where_they_are_asked_for():
    def last(prompts, completions):
        assert [turns[0]["role"] for turns in prompts] == ["user", "user", "system"]
        return [float(len(turns[0]["content"])) for turns in completions]

    assert scores(last, conversational=True) == [[1.0, 4.0], [1.0]]
    assert FunctionReward(last).key() != FunctionReward(last, conversational=True).key()
    with pytest.raises(ConfigError, match="called response by response"):
        FunctionReward(lambda response: 0.0, conversational=True)


@pytest.mark.parametrize("made", [np.array, torch.tensor, tuple, list])
def test_any_list_of_numbers_will_do_and_none_is_missing(made):
    assert scores(lambda completions: made([0.5, 1.5, 2.5])) == [[0.5, 1.5], [2.5]]
    found = FunctionReward(lambda completions: [None, float("nan"), 1]).score(GROUPS)
    assert found.values == [[None, None], [1.0]]
    assert found.reasons[0] == ["the reward returned None", "the reward returned nan"]


def test_what_partial_filled_in_stays_and_defaults_hold():
    def scaled(completions, factor, answer=("x",), trainer_state=None):
        return [factor * len(c) + len(answer) for c in completions]

    assert scores(functools.partial(scaled, factor=2.0)) == [[5.0, 11.0], [5.0]]
    assert scores(functools.partial(scaled, factor=2.0, answer=())) == [[2.0, 8.0], [2.0]]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda completions: [1.0], "returned 1 scores for 3 completions"),
        (lambda completions: 1.0, "returned a float"),
        (lambda completions: "abc", "returned a str"),
        (lambda completions: ["a", "b", "c"], "response 0 to prompt"),
        (lambda completions: [1.0, 2.0, [3.0]], "response 0 to prompt"),
        (lambda completions: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_is_no_score_for_each_is_one_error_that_names_it(function, said):
    with pytest.raises(PluginError, match=said):
        scores(function)


def test_a_column_that_no_row_has_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"asks for \['solution'\].*name parameters from answer, level, prompts"):
        scores(lambda completions, solution: [0.0] * len(completions))


def test_it_stands_beside_plain_functions_in_a_sum():
    def plain(response: str) -> float:
        return float(len(response))

    both = WeightedSum((FunctionReward(right), FunctionReward(plain)), (10.0, 1.0))
    found = score_groups(GROUPS, both)
    assert found.rewards("weighted_sum")[0] == [[11.0, 4.0], [11.0]]
    assert found.rewards("right")[0] == [[1.0, 0.0], [1.0]]


def test_a_column_of_the_data_reaches_it_through_sampling(tmp_path):
    prompts = read_groups([{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(2)])
    with Run(tmp_path / "run", quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        scored = run.score(run.sample(v0, prompts, 2, max_new_tokens=3), right)
    (call,) = CALLS[-1:]
    assert call["answer"] == ["1", "1", "2", "2"]
    assert all(call["completion_ids"])
    assert scored.groups.reward_names() == ["right"]
