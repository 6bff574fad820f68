"""Under several processes a reward is asked by the first one, and the others take its word and its count."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit.engine import judging
from alignkit.engine.setting import Setting
from alignkit.groups import Groups
from alignkit.rewards import FunctionReward


def test_the_first_process_asks_and_all_hold_the_same_scores_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(judging, "broadcast", lambda value: told.append(value) or told[0])
    asked = []

    def random(response: str) -> float:
        asked.append(response)
        return float(len(asked))

    groups = Groups.from_rows([{"prompt": "p", "responses": ["a", "b"]}, {"prompt": "q", "responses": ["c"]}])
    found = []
    for rank in (0, 1):
        setting = Setting((0,), 100, (rank, 2))
        found.append((judging.scored_once(groups, FunctionReward(random), setting), dict(setting.meter.counts)))
    assert asked == ["a", "b", "c"]
    assert found[0][0].rows == found[1][0].rows
    assert found[0][0].rewards("random")[0] == [[1.0, 2.0], [3.0]]
    assert found[0][1] == found[1][1]
    assert found[0][1]["reward_calls"] == 3
