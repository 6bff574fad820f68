"""`max_steps`: so many optimizer steps, whatever the rows, epochs and rounds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from alignkit import Batch, ConfigError, Groups, PolicyOptimizer, Run

DEMOS = Groups.from_rows([{"prompt": f"p{n}", "responses": ["ab"]} for n in range(6)])
RANKED = Groups.from_rows([{"prompt": f"p{n}", "responses": ["ab", "cd"], "ranks": [1, 2]} for n in range(6)])


@dataclass(frozen=True)
class Imitates(PolicyOptimizer):
    samples_per_prompt: int = 2
    batch_size: int = 2
    schedule: str = "linear"
    learning_rate: float = 1e-3

    def prepare(self, groups: Groups, state: Any) -> Batch:
        return Batch(groups)


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run", quiet=True) as made:
        yield made


def rows(handle: Any) -> list[dict[str, Any]]:
    path = getattr(handle, "policy", handle).path
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("most", "epochs"), [(2, [0, 0]), (3, [0, 0, 0]), (7, [0, 0, 0, 1, 1, 1, 2])])
def test_fixed_rows_are_learned_again_until_so_many_steps_are_taken(run, most, epochs):
    made = run.sft(
        run.policy("tiny", lora=None), DEMOS, batch_size=2, max_steps=most, schedule="linear", warmup_ratio=0
    )
    found = rows(made)
    assert [row["epoch"] for row in found] == epochs
    # The schedule ends with them: the rate of step k is that of k / steps.
    assert [row["lr"] for row in found] == pytest.approx([1e-4 * (1 - k / most) for k in range(most)])


def test_the_steps_are_those_of_as_many_epochs(run):
    v0 = run.policy("tiny", lora=None)
    flat = {"batch_size": 2, "schedule": "constant", "warmup_ratio": 0}
    whole = rows(run.sft(v0, DEMOS, epochs=2, name="a", **flat))
    with Run(run.folder, quiet=True) as again:  # the name gives the order of the rows
        v0 = again.policy("tiny", lora=None)
        part = rows(again.sft(v0, DEMOS, max_steps=4, name="a", epochs=9, **flat))
    assert [row["loss"] for row in part] == [row["loss"] for row in whole[:4]]


def test_reward_models_take_so_many_steps(run):
    reward = run.train_reward(
        run.policy("tiny", lora=None), RANKED, loss="pairwise_ranking", batch_size=4, max_steps=5, heldout_fraction=0
    )
    assert reward.result["steps"] == 5


@pytest.mark.parametrize("per_round", [0, 2])
def test_rounds_go_on_until_so_many_steps_are_taken(run, per_round):
    prompts = Groups.from_prompts([f"prompt {n}" for n in range(4)])
    method = Imitates(prompts_per_round=per_round)
    v1 = run.improve(
        run.policy("tiny", lora=None), prompts, optimizer=method, reward=len_of, max_new_tokens=4, max_steps=5
    )
    found = rows(v1)
    assert len(found) == v1.policy.result["steps"] == 5
    each = (per_round or 4) // 2
    assert [row["round"] for row in found] == [k // each for k in range(5)]
    assert found[-1]["lr"] == pytest.approx(1e-3 / 5)


def test_given_rows_are_learned_again_in_one_round(run):
    method = Imitates(samples_per_prompt=0)
    v1 = run.improve(run.policy("tiny", lora=None), DEMOS, optimizer=method, max_steps=7)
    assert [(row["round"], row["epoch"]) for row in rows(v1)] == [(0, k // 3) for k in range(7)]
    assert "stopped" not in v1.policy.result


def test_two_limits_are_refused(run):
    v0, options = run.policy("tiny", lora=None), {"optimizer": Imitates(samples_per_prompt=0), "max_steps": 2}
    with pytest.raises(ConfigError, match="max_steps=2 and a budget of 3 optimizer_steps"):
        run.improve(v0, DEMOS, budget={"optimizer_steps": 3}, **options)
    with pytest.raises(ConfigError, match="max_steps=-1 must not be negative"):
        run.sft(v0, DEMOS, max_steps=-1)
    with pytest.raises(ConfigError, match=r"use max_steps \(of the verb\)"):
        Run(run.folder / "other", trainer={"max_steps": 3})


def len_of(response: str) -> float:
    return float(len(response))
