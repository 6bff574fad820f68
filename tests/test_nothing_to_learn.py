"""A stage of whose data no loss has an element is refused, as are rows that nothing can be learned from; what is not
read is said."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignkit import Batch, ConfigError, DataError, Groups, LoRA, PolicyOptimizer, Run
from alignkit.data import check_given
from alignkit.engine.checks import unread
from alignkit.errors import NothingToLearnError
from alignkit.registry.host import PluginHost
from alignkit.registry.records import BoundLoss
from alignkit.stages.improve import _in_order
from alignkit.testing import PAIRS, ranking, rollouts, tiny_policy

HOST = PluginHost(allow=())
TIES = PAIRS.map_rows(lambda row: {"ranks": None if row["ranks"] is None else [1] * len(row["ranks"])})
DEMOS = Groups.from_rows([{"prompt": "a", "responses": ["b"]}])


def by_rank(rewards: Any, ranks: Any, group_mask: Any) -> Any:
    return rewards.sum(1)


def by_pair(chosen_rewards: Any, rejected_rewards: Any) -> Any:
    return rejected_rewards - chosen_rewards


@dataclass(frozen=True)
class Given(PolicyOptimizer):
    loss: Any = ranking
    samples_per_prompt: int = 0

    def prepare(self, groups: Groups, state: Any) -> Batch:
        return Batch(groups)


@dataclass(frozen=True)
class Sampled(Given):
    samples_per_prompt: int = 2


@pytest.mark.parametrize("loss", [by_pair, by_rank])
def test_a_reward_model_learns_nothing_from_ties_and_says_so(loss: Any, tmp_path: Path) -> None:
    rows = Groups.from_rows([{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}] * 2)
    with (
        Run(tmp_path / "r", quiet=True, host=HOST) as run,
        pytest.raises(NothingToLearnError, match="rows hold"),
    ):
        run.train_reward(run.policy("tiny", lora=LoRA(r=2)), rows, loss=loss, heldout_fraction=0.0)


@pytest.mark.parametrize("loss", [ranking, by_pair])
def test_sft_refuses_a_loss_of_comparisons_before_it_loads_anything(loss: Any, tmp_path: Path) -> None:
    with Run(tmp_path / "r", quiet=True, host=HOST, plan=True) as run, pytest.raises(ConfigError, match="chosen"):
        run.sft(run.policy("tiny", lora=None), DEMOS, loss=loss)


def test_a_reward_model_refuses_a_loss_of_policies_before_it_loads_anything(tmp_path: Path) -> None:
    with Run(tmp_path / "r", quiet=True, host=HOST, plan=True) as run, pytest.raises(ConfigError, match="logprobs"):
        run.train_reward(run.policy("tiny", lora=None), PAIRS, loss=ranking)


def test_rounds_without_an_element_are_refused() -> None:
    source = rollouts(tiny_policy(), Given(rounds=1), prompts=TIES, reward=None)
    with pytest.raises(NothingToLearnError, match="comparisons"):
        source.lesson(source.collect(0), 0)
    sampled = rollouts(tiny_policy(), Sampled(rounds=1))
    with pytest.raises(NothingToLearnError, match="comparisons"):
        sampled.lesson(sampled.collect(0), 0)
    source = rollouts(tiny_policy(), Given(rounds=1), prompts=PAIRS, reward=None)
    assert source.lesson(source.collect(0), 0).steps


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"responses": ["", "bad"], "ranks": [1, 2]}, "D01"),
        ({"responses": ["same", "same"], "ranks": [1, 2]}, "D02"),
        ({"responses": ["x", "y"], "ranks": [1, 2], "preference_prob": 1.7}, "D17"),
        ({"responses": ["x", "y"], "ranks": [0, 5]}, "D19"),
        ({"responses": ["x", "y", "z"], "ranks": [1, 2, 4]}, "D19"),
        ({"responses": ["x", "x", "x"], "ranks": [1, 2, 3]}, "D02"),
        ({"responses": [""], "labels": [True]}, "D01"),
    ],
)
def test_improve_refuses_the_given_rows_that_train_reward_refuses(row: Any, code: str, tmp_path: Path) -> None:
    good = {"prompt": "e", "responses": ["x", "y"], "ranks": [1, 2]}
    rows = Groups.from_rows([good, {"prompt": "a", **row}])
    assert [p.code for p in check_given(rows) if not p.note] == [code]
    with Run(tmp_path / "r", quiet=True, host=HOST) as run:
        v0 = run.policy("tiny", lora=LoRA(r=2))
        with pytest.raises(DataError, match=code):
            run.improve(v0, rows, optimizer=Given(), name="refused")
        assert run.improve(v0, rows, optimizer=Given(), name="dropped", drop_bad=True).result["steps"] == 1


def test_rows_without_ranks_are_asked_for_none() -> None:
    rows = Groups.from_rows([{"prompt": "a", "responses": ["x", "x"]}, {"prompt": "b"}])
    assert not [problem for problem in check_given(rows) if not problem.note]


def test_margins_that_no_loss_reads_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = Groups.from_rows(
        [{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2], "meta": {"margin": 2.0}}] * 2
        + [{"prompt": "d", "responses": ["b", "c"], "ranks": [1, 2]}]
    )
    with Run(tmp_path / "r", quiet=True, host=HOST) as run, caplog.at_level(logging.WARNING, "alignkit"):
        run.train_reward(run.policy("tiny", lora=LoRA(r=2)), rows, loss=by_pair, heldout_fraction=0.0)
    assert "takes no margin: 2 of 3 rows have one" in caplog.text
    reads = BoundLoss(by_pair, "reads", {}, ("chosen_rewards", "margin"))
    silent = BoundLoss(by_pair, "silent", {}, ("rewards", "ranks"))
    assert not unread(rows, [reads])
    assert "silent" in unread(rows, [silent])[0]
    assert not unread(rows, [BoundLoss(by_pair, "no pairs", {}, ("logprobs",))])
    assert not unread(PAIRS, [silent])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [([None] * 2, [1, 2]), ([None, 2], [None, 2]), ([1, None], [1, 2]), ([1, None, 2], [1, None, 2])],
)
def test_earlier_versions_are_told_apart_by_their_order_where_no_number_is_written(
    given: list[int | None], wanted: list[int | None]
) -> None:
    parts = [Groups.from_rows([{"prompt": "p", "responses": ["x"], "iteration": number}]) for number in given]
    assert _in_order(parts).column("iteration") == wanted
    assert len(_in_order([])) == 0
