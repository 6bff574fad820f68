"""Processes that a launcher started side by side deal the work out, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit.errors import ConfigError
from alignkit.processes import refuse_alone


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"strategy": "ddp"},
        {"devices": 1},
        {"strategy": "ddp", "devices": 3},
        {"devices": [0]},
        {"devices": "auto"},
        {"devices": 2, "num_nodes": 2},
        {"strategy": "auto", "devices": -1},
    ],
)
def test_two_processes_that_would_each_train_on_everything_are_refused(trainer: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="2 processes were started") as refused:
        refuse_alone(trainer, 2)
    assert '"strategy": "ddp", "devices": ' in str(refused.value)
    refuse_alone(trainer, 1)


@pytest.mark.parametrize(
    "trainer",
    [
        {"strategy": "ddp", "devices": 2},
        {"devices": 2},
        {"devices": [0, 1]},
        {"devices": "2"},
        {"devices": 1, "num_nodes": 2},
        {"strategy": "ddp", "devices": "auto"},
    ],
)
def test_processes_that_share_the_work_are_not(trainer: dict[str, Any]) -> None:
    refuse_alone(trainer, 2)
