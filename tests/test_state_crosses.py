"""An optimizer's state goes on in the next version, and nothing that is no state of it does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignkit import ConfigError, Groups, Policy, Run, use
from alignkit.groups import Groups as Rows
from alignkit.optimizers import Batch, PolicyOptimizer
from alignkit.rewards import Reward, Scores

PROMPTS = Groups.from_prompts(["a", "b"])


@dataclass(frozen=True)
class Counts(PolicyOptimizer):
    """Counts its rounds, and keeps a list that it changes in place."""

    rounds: int = 2
    learning_rate: float = 1e-4

    def initial_state(self) -> dict[str, Any]:
        return {"rounds": 0, "seen": []}

    def prepare(self, groups: Rows, state: Any) -> Batch:
        state["seen"].append(state["rounds"])
        return Batch(groups, metrics={"began": float(state["rounds"])})

    def update(self, state: Any, metrics: Any) -> dict[str, Any]:
        return {**state, "rounds": state["rounds"] + 1}


@dataclass(frozen=True)
class Stateless(PolicyOptimizer):
    def prepare(self, groups: Rows, state: Any) -> Batch:
        return Batch(groups)


class Falling(Reward):
    """Each time lower than before: the first round is the best."""

    name = "falling"
    asked = 0.0

    def key(self) -> str:
        return "falling"

    def score(self, groups: Rows) -> Scores:
        type(self).asked += 1
        values = [[-self.asked] * len(row["responses"]) for row in groups]
        return Scores(values, [[None] * len(row) for row in values])


def length(response: str) -> float:
    return float(len(response))


def versions(folder: Path, first: float = 1e-4, **options: Any) -> tuple[Any, Any, list[bool]]:
    with Run(folder, quiet=True, **options) as run:
        v0 = run.policy("tiny", lora=None)
        given: dict[str, Any] = {"reward": length, "max_new_tokens": 2}
        v1 = run.improve(v0, PROMPTS, optimizer=Counts(learning_rate=first), name="v1", **given)
        v2 = run.improve(v1.policy, PROMPTS, optimizer=Counts(), state=v1.state, name="v2", **given)
    return v1, v2, [stage.cached for stage in run.planned]


def test_a_version_begins_where_the_one_before_ended_and_is_found_again(tmp_path: Path) -> None:
    v1, v2, _ = versions(tmp_path)
    assert v1.state == {"rounds": 2, "seen": [0, 1]}  # not changed by what v2 did with it
    assert v2.state == {"rounds": 4, "seen": [0, 1, 2, 3]}
    assert v2.result["last"]["began"] == 3.0
    assert versions(tmp_path, plan=True)[2] == [True, True, True]
    assert [one.policy.key for one in versions(tmp_path)[:2]] == [v1.policy.key, v2.policy.key]


def test_another_state_is_another_version(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        keys = set()
        for number, state in enumerate([None, {"rounds": 5, "seen": []}, {"rounds": 6, "seen": []}]):
            made = run.improve(
                v0, PROMPTS, optimizer=Counts(rounds=1), reward=length, max_new_tokens=2, state=state, name=f"v{number}"
            )
            keys.add(made.policy.key)
            assert made.state["rounds"] == (state or {"rounds": 0})["rounds"] + 1
    assert len(keys) == 3


def test_versions_can_be_planned_before_there_is_a_state(tmp_path: Path) -> None:
    v1, v2, found = versions(tmp_path, plan=True)
    assert v1.state == v2.state == {"rounds": 0, "seen": []}
    assert found == [False] * 3


@pytest.mark.parametrize(
    ("optimizer", "state", "said"),
    [
        (Counts(), {"rounds": 1, "seen": [], "kl_coef": 0.1}, "kl_coef"),
        (Counts(), {"rounds": 1}, r"state is of \['rounds'\], and that of .*Counts is of \['rounds', 'seen'\]"),
        (Counts(), {}, "Nothing of it"),
        (Counts(), {"rounds": "1", "seen": []}, r"state\['rounds'\] is '1', and begins as 0"),
        (Counts(), {"rounds": float("nan"), "seen": []}, "is nan"),
        (Counts(), {"rounds": True, "seen": []}, "is True"),
        (Counts(), {"rounds": 1, "seen": {}}, "seen"),
        (Counts(), [1], "a list"),
        (Stateless(), {"rounds": 1}, "Stateless has none"),
    ],
)
def test_what_is_no_state_of_the_optimizer_is_refused_before_a_model_is_loaded(
    tmp_path: Path, optimizer: PolicyOptimizer, state: Any, said: str
) -> None:
    with Run(tmp_path, quiet=True, plan=True) as run, pytest.raises(ConfigError, match=said):
        run.improve(run.policy("tiny"), PROMPTS, optimizer=optimizer, reward=length, state=state)


def test_what_is_no_state_is_refused_with_no_model_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(tmp_path, quiet=True) as run:
        policy = run.policy("tiny")
        monkeypatch.setattr(Policy, "load", lambda *args, **more: pytest.fail("a model is loaded"))
        with pytest.raises(ConfigError, match="state is of"):
            run.improve(policy, PROMPTS, optimizer=use("ppo"), reward=length, reference=policy, state={"other": 1.0})


def test_without_a_state_there_is_nothing_to_hand_on(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True, plan=True) as run:
        v1 = run.improve(run.policy("tiny"), PROMPTS, optimizer=Stateless(), reward=length, name="v1")
        run.improve(v1.policy, PROMPTS, optimizer=Stateless(), reward=length, state=v1.state, name="v2")


def test_what_is_handed_on_is_the_state_of_the_best_round(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as run:
        made = run.improve(
            run.policy("tiny", lora=None), PROMPTS, optimizer=dataclasses.replace(Counts(), rounds=5), reward=Falling(),
            heldout=PROMPTS, patience=2, max_new_tokens=2, state={"rounds": 7, "seen": []},
        )  # fmt: skip
    assert made.result["best_round"] == 0
    assert made.state["rounds"] == 8
