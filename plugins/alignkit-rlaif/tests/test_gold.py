"""The gold annotator: right without noise, wrong as often as it should be with it, and deaf to what is missing."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from alignkit_rlaif.gold import Gold

from alignkit import ConfigError, DataError, Groups


def length(response: str) -> float:
    return float(len(response))


def only_words(response: str) -> float | None:
    return None if response == "?" else float(len(response))


def pairs(count: int, *responses: str) -> Groups:
    texts = list(responses or ("a", "aaa"))
    return Groups.from_rows([{"prompt": f"Say {i}.", "responses": texts} for i in range(count)])


def labels(gold: Gold, groups: Groups, seed: int = 0) -> list[dict[str, Any]]:
    return gold.annotate(groups, seed)["preference"].rows


def test_without_noise_the_higher_reward_wins_and_equal_ones_tie() -> None:
    assert [row["ranks"] for row in labels(Gold(length, noise=0.0), pairs(3))] == [[2, 1]] * 3
    assert labels(Gold(length, noise=0.0), pairs(1, "aa", "bb"))[0]["ranks"] == [1, 1]
    assert labels(Gold(length, noise=0.0), pairs(1, "aa", "bbbb", "c"))[0]["ranks"] == [2, 1, 3]


def test_labels_are_turned_round_as_often_as_the_noise_says() -> None:
    wrong = [row["ranks"] == [1, 2] for row in labels(Gold(length, noise=0.25), pairs(400))]
    assert sum(wrong) / 400 == pytest.approx(0.25, abs=0.08)


def test_a_temperature_draws_from_bradley_terry() -> None:
    rows = labels(Gold(length, noise=0.0, temperature=2.0), pairs(400))
    right = sum(row["ranks"] == [2, 1] for row in rows) / 400
    assert right == pytest.approx(1 / (1 + math.exp(-2 / 2.0)), abs=0.08)


def test_a_temperature_draws_rankings_from_plackett_luce() -> None:
    rows = labels(Gold(length, noise=0.0, temperature=1.0), pairs(400, "a", "aa", "aaa"))
    weights = [math.exp(n) for n in (1, 2, 3)]
    best = [sum(row["ranks"][k] == 1 for row in rows) / 400 for k in range(3)]
    assert best == pytest.approx([w / sum(weights) for w in weights], abs=0.08)


def test_soft_labels_are_the_probability_of_the_choice_after_the_noise() -> None:
    (row,) = labels(Gold(length, noise=0.25, temperature=2.0, soft=True), pairs(1))
    chosen = 1 / (1 + math.exp(-1.0))
    assert row["ranks"] == [2, 1]
    assert row["preference_prob"] == pytest.approx(0.75 * chosen + 0.25 * (1 - chosen))
    (sure,) = labels(Gold(length, noise=0.1, soft=True), pairs(1))
    assert sure["preference_prob"] == pytest.approx(0.9)
    (tie,) = labels(Gold(length, noise=0.1, soft=True), pairs(1, "aa", "bb"))
    assert (tie["ranks"], tie["preference_prob"]) == ([1, 1], 0.5)


def test_a_missing_reward_is_left_out_not_ranked_last() -> None:
    groups = Groups.from_rows(
        [
            {"prompt": "a", "responses": ["?", "aa"]},
            {"prompt": "b", "responses": ["aa", "?", "a"], "rewards": {"seen": [0.1, 0.2, 0.3]}},
        ]
    )
    (row,) = labels(Gold(only_words, noise=0.0), groups)
    assert (row["responses"], row["ranks"]) == (["aa", "a"], [1, 2])
    assert [r["name"] for r in row["rewards"]] == ["seen"]  # the truth is not handed on


def test_pairs_alone_can_be_turned_round() -> None:
    with pytest.raises(DataError, match="noise=0"):
        labels(Gold(length), pairs(1, "a", "aa", "aaa"))
    with pytest.raises(ConfigError):
        Gold(length, noise=0.5)


def test_the_key_knows_the_reward_and_the_noise() -> None:
    made = [
        Gold(length),
        Gold(only_words),
        Gold(length, noise=0.1),
        Gold(length, temperature=1.0),
        Gold(length, soft=True),
    ]
    assert len({json.dumps(gold.key(), sort_keys=True) for gold in made}) == len(made)


def test_a_registered_reward_is_found_by_name() -> None:
    assert Gold("direct(model='tiny')").truth().name == "direct"
