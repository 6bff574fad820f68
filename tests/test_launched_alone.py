"""Processes that a launcher started side by side deal the work out, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit.errors import ConfigError
from alignkit.processes import refuse_alone, refuse_sharded


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


class DDPStrategy:
    """Stands for Lightning's, which is asked for by name or as an object."""


class MyDDP(DDPStrategy):
    pass


class FSDPStrategy:
    pass


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2", FSDPStrategy()])
def test_a_strategy_that_shards_the_model_is_refused(strategy: Any) -> None:
    with pytest.raises(ConfigError, match=r"fsdp|deepspeed|FSDPStrategy") as refused:
        refuse_sharded({"strategy": strategy}, 2)
    assert 'use "ddp"' in str(refused.value)
    refuse_sharded({"strategy": strategy}, 1)


@pytest.mark.parametrize("strategy", ["auto", "ddp", "ddp_find_unused_parameters_true", DDPStrategy(), MyDDP()])
def test_one_that_deals_whole_models_out_is_not(strategy: Any) -> None:
    refuse_sharded({"strategy": strategy}, 2)
