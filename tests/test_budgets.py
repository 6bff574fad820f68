"""A stage stops when its budget is spent: where exactly, what it has learned by then, and how its schedule ends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignkit import Batch, ConfigError, Groups, PolicyOptimizer, Run, Sampler
from alignkit.annotators import Annotator
from alignkit.budget import NAMES, Budget, Spending, amount_of
from alignkit.errors import NothingToLearnError
from alignkit.meter import COUNTS, Meter, short

PROMPTS = Groups.from_prompts([f"prompt {i}" for i in range(6)])
DEMOS = Groups.from_rows([{"prompt": "p", "responses": ["ab"]}] * 4)  # 3 learned tokens each, the end included


@dataclass(frozen=True)
class Imitates(PolicyOptimizer):
    samples_per_prompt: int = 2
    batch_size: int = 2
    epochs: int = 2
    schedule: str = "linear"
    learning_rate: float = 1e-3
    picky: bool = False

    def prepare(self, groups: Groups, state: Any) -> Batch:
        return Batch(groups)

    def keep(self, groups: Groups) -> list[bool] | None:
        return [len(row["response_ids"][0]) > 99 for row in groups] if self.picky else None


class First(Annotator):
    def annotate(self, groups: Groups, seed: int = 0) -> dict[str, Groups]:
        ranks = [list(range(1, size + 1)) for size in groups.sizes()]
        return {"preference": groups.with_columns({"ranks": ranks})}

    def key(self) -> Any:
        return "first"


def length(response: str) -> float:
    return float(len(response))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Makes a run: its folder is new, and its random numbers are those of every other."""
    return lambda: Run(tmp_path_factory.mktemp("budgets") / "run", quiet=True)


@pytest.fixture(scope="module")
def v0(run):
    with run() as made:
        return made.policy("tiny", lora=None)


@pytest.fixture(scope="module")
def whole(run, v0):
    """Without a budget."""
    return improved(run, v0, None)


def improved(run, v0, budget, method=None, data=PROMPTS, **options):
    given = {"optimizer": method or Imitates(rounds=2), "reward": length, "max_new_tokens": 6, **options}
    with run() as made:
        return made.improve(v0, data, **given, name="v1", budget=budget)


def ids(made: Any) -> list[list[list[int]]]:
    return [row["response_ids"] for row in made.rollouts.groups]


def steps(handle: Any) -> list[dict[str, Any]]:
    path: Path = handle.path / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(handle: Any) -> dict[str, torch.Tensor]:
    return load_file(str(handle.path / "model" / "model.safetensors"))


def same(a: Any, b: Any) -> bool:
    first, second = weights(a), weights(b)
    return all(torch.equal(first[name], second[name]) for name in first)


# -- what may be written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount"),
    [("200k", 200_000), ("1.5M", 1_500_000), (" 2b ", 2 * 10**9), ("3T", 3 * 10**12), ("1e15", 10**15),
     ("2p", 2 * 10**15), ("8.2M", 8_200_000), ("1.001k", 1001), (7, 7), (7.0, 7), ("1_000", 1000)],
)  # fmt: skip
def test_amounts_are_whole_numbers_with_a_suffix(text, amount):
    assert amount_of("flops", text) == amount


@pytest.mark.parametrize("text", ["", "k", "x", "0", -1, 0.5, "1.2345k", True, None, "inf", "nan", "1e999999"])
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match="whole number above zero"):
        amount_of("flops", text)


def test_a_budget_is_the_same_however_it_is_written():
    made = Budget.of({"optimizer_steps": 3, "generated_tokens": "2k"})
    assert made == Budget.of("generated_tokens=2000, optimizer_steps=3") == Budget.of(made)
    assert made.to_json() == {"generated_tokens": 2000, "optimizer_steps": 3}
    assert Budget.of(None) == Budget() == Budget.of({})
    assert set(NAMES) == {*COUNTS, "flops"}
    with pytest.raises(ConfigError, match="did you mean generated_tokens"):
        Budget.of({"generated_token": 3})
    with pytest.raises(ConfigError, match="given twice"):
        Budget.of("generated_tokens=3, generated_tokens=4")
    with pytest.raises(ConfigError, match="budget=3"):
        Budget.of(3)


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0"), (999, "999"), (999.6, "1 k"), (1250, "1.25 k"), (2.5e9, "2.5 G"), (3e19, "3e+04 P")]
)
def test_counts_are_written_in_three_figures(amount, text):
    assert short(amount) == text


# -- how far it is -----------------------------------------------------------------------------------------------------


def test_progress_lays_samples_over_steps_and_counts_steps_as_they_are_taken():
    meter = Meter()
    spending = Spending(Budget.of("generated_tokens=100,optimizer_steps=8"), meter)
    assert spending.progress(0.5) == 0.0
    spending.drawing()
    meter.add("generated_tokens", 40)
    spending.learning(0, 2)  # two rounds learn from these samples
    assert [spending.progress(share) for share in (0, 0.5)] == pytest.approx([0.0, 0.1])
    meter.add("optimizer_steps", 1)
    assert spending.progress(0.5, {"optimizer_steps": 1}) == 2 / 8
    spending.learning(1, 2)
    assert spending.progress(0.5) == pytest.approx(0.3)
    spending.drawing()
    meter.add("generated_tokens", 90)  # more than there was
    spending.learning(0, 1)
    assert [spending.progress(share) for share in (0, 0.5, 1)] == pytest.approx([0.4, 0.7, 1.0])


def test_limits_are_reached_exceeded_and_fitted():
    meter = Meter()
    spending = Spending(Budget.of("trained_tokens=10,flops=100"), meter)
    assert spending.exceeded_by({"trained_tokens": 10, "generated_tokens": 10**9}) is None
    assert spending.exceeded_by({"trained_tokens": 11}) == "trained_tokens"
    assert spending.fitting([{"trained_tokens": 4}] * 3) == 2
    assert spending.times({"flops": 30, "generated_tokens": 1}) == 3
    meter.compute(60, 30)
    assert (spending.left("flops"), spending.left("judge_calls")) == (10, float("inf"))
    assert spending.times({"flops": 30}) == 1  # once, while something is left
    meter.compute(11)
    assert (spending.reached(), spending.left("flops"), spending.times({"flops": 30})) == ("flops", 0, 0)
    assert not spending.stop(None)
    assert spending.stop("flops")
    assert spending.stop("trained_tokens")
    assert spending.stopped == "flops"


# -- improve -----------------------------------------------------------------------------------------------------------


def test_a_budget_that_is_not_reached_changes_nothing(run, v0, whole):
    made = improved(run, v0, dict.fromkeys(COUNTS, "1T"))
    assert "stopped" not in made.result
    assert made.result["budget"] == whole.result["budget"]
    assert made.policy.key != whole.policy.key
    assert same(made.policy, whole.policy)


@pytest.mark.parametrize("batch_size", [96, 4])
def test_prompts_are_answered_until_the_tokens_are_spent(run, v0, whole, batch_size):
    """In the round that is cut: the first prompts, the last of them with all its responses."""
    cumulative, total = [], 0
    for row in ids(whole):
        total += sum(map(len, row))
        cumulative.append(total)
    limit = cumulative[7] + 1  # in the second round, within its third prompt
    sampler = Sampler(batch_size=batch_size)
    made = improved(run, v0, {"generated_tokens": limit}, sampler=sampler)
    assert (made.result["stopped"], made.result["stopped_by"]) == ("budget", "generated_tokens")
    spent = made.result["budget"]
    assert (spent["generated_tokens"], spent["reward_calls"]) == (cumulative[8], 9 * 2)
    assert ids(made)[:6] == ids(whole)[:6]
    assert len(ids(made)) == 9
    assert len(steps(made.policy)) == 6 + 2 * 2  # two epochs of 3 prompts, two a step


def test_the_schedule_ends_with_the_budget(run, v0, whole):
    first = sum(len(each) for row in ids(whole)[:6] for each in row)
    made = improved(run, v0, {"generated_tokens": first + 1}, Imitates(rounds=100))
    rates = [row["lr"] for row in steps(made.policy)]
    share = first / (first + 1)
    spread = [1 - share * k / 6 for k in range(6)]
    spread += [(1 - share) * (1 - k / 2) for k in range(2)]
    assert rates == pytest.approx([1e-3 * each for each in spread])


def test_steps_stop_in_the_middle_of_epochs(run, v0, whole):
    made = improved(run, v0, {"optimizer_steps": 4})
    assert [row["epoch"] for row in steps(made.policy)] == [0, 0, 0, 1]
    assert [row["lr"] for row in steps(made.policy)] == pytest.approx([1e-3 * (1 - k / 4) for k in range(4)])
    assert (made.result["stopped_by"], made.result["steps"]) == ("optimizer_steps", 4)
    assert steps(made.policy)[0]["loss"] == steps(whole.policy)[0]["loss"]
    assert len(ids(made)) == 6  # no second round was sampled
    assert not same(made.policy, whole.policy)


def test_no_step_is_begun_that_would_exceed(run, v0, whole):
    """Trained tokens of two prompts a step; operations likewise. What was spent stays within the limit."""
    record = json.loads((whole.policy.path / "stage.json").read_text())["meter"]
    trained, flops = record["counts"]["trained_tokens"], sum(record["flops"].values())
    for name, limit in (("trained_tokens", trained // 3 + 1), ("flops", 2 * flops // 5)):
        made = improved(run, v0, {name: limit})
        assert made.result["stopped_by"] == name
        assert 0.5 * limit < made.result["budget"][name] <= limit
        assert 0 < made.result["steps"] < 12


def test_calls_are_never_exceeded(run, v0):
    made = improved(run, v0, {"reward_calls": 17})  # 12 in the first round, then two prompts of 2
    assert (made.result["budget"]["reward_calls"], made.result["stopped_by"]) == (16, "reward_calls")
    assert len(ids(made)) == 8
    ranked = improved(run, v0, {"judge_calls": 4}, annotator=First(), reward=None)
    assert (ranked.result["budget"]["judge_calls"], ranked.result["stopped_by"]) == (4, "judge_calls")
    given = Groups.from_rows([{"prompt": f"p{i}", "responses": ["a", "b"]} for i in range(3)])
    learned = improved(run, v0, {"reward_calls": 4}, Imitates(samples_per_prompt=0, rounds=5), data=given)
    assert (learned.result["budget"]["reward_calls"], learned.result["steps"]) == (4, 2)


@pytest.mark.parametrize(("budget", "rows"), [({"reward_calls": 1}, 0), ({"trained_tokens": 1}, 6)])
def test_what_pays_for_no_step_leaves_the_weights_as_they_were(run, v0, budget, rows):
    made = improved(run, v0, budget)
    assert (made.result["steps"], made.result["rows"], made.result["stopped_by"]) == (0, rows, next(iter(budget)))
    first = load_file(str(v0.model_folder / "model.safetensors"))
    assert all(torch.equal(first[name], found) for name, found in weights(made.policy).items())


def test_rounds_that_learn_from_the_same_samples_go_on(run, v0):
    """The limit on tokens stops the next sampling, not the rounds that need none."""
    method = Imitates(rounds=6, sample_every=3, epochs=1)
    made = improved(run, v0, {"generated_tokens": 1}, method)
    assert len(ids(made)) == 1
    assert [row["round"] for row in steps(made.policy)] == [0, 1, 2]
    assert [row["lr"] for row in steps(made.policy)] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])


def test_a_cut_round_in_which_nothing_is_kept_ends_the_stage(run, v0):
    made = improved(run, v0, {"generated_tokens": 30}, Imitates(picky=True))
    assert (made.result["stopped_by"], made.result["steps"]) == ("generated_tokens", 0)
    with pytest.raises(NothingToLearnError, match="kept none"):
        improved(run, v0, None, Imitates(picky=True))


def test_held_out_prompts_are_measured_while_the_budget_surely_pays(run, v0):
    """36 tokens at most for six prompts: after the second round they are not there."""
    held = {"heldout": PROMPTS, "patience": 5}
    free = improved(run, v0, None, **held)
    limit = free.result["budget"]["generated_tokens"] - 1
    made = improved(run, v0, {"generated_tokens": limit}, **held)
    assert made.result["best_round"] == 0
    assert made.result["budget"]["reward_calls"] == 2 * 12 + 6
    assert free.result["budget"]["reward_calls"] == 2 * 12 + 2 * 6


# -- sft, train_reward -------------------------------------------------------------------------------------------------


def test_supervised_tuning_stops_in_the_middle_of_its_epochs(run, v0):
    given = {"batch_size": 2, "schedule": "linear", "warmup_ratio": 0.0}
    with run() as folder:
        made = folder.sft(v0, DEMOS, epochs=5, budget={"trained_tokens": 20}, **given)
    assert (made.result["steps"], made.result["stopped"], made.result["stopped_by"]) == (3, "budget", "trained_tokens")
    assert [row["lr"] for row in steps(made)] == pytest.approx([1e-4 * (1 - 6 * k / 20) for k in range(3)])
    assert made.result["rows"] == 4


def test_a_reward_model_stops_too_and_warms_up_within_its_budget(run, v0):
    def ranking(chosen_rewards, rejected_rewards):
        return rejected_rewards - chosen_rewards

    pairs = Groups.from_rows([{"prompt": f"p{i}", "responses": ["a", "b"], "ranks": [1, 2]} for i in range(4)])
    with run() as folder:
        made = folder.train_reward(
            v0, pairs, loss=ranking, epochs=9, batch_size=1, heldout_fraction=0.0, schedule="constant",
            warmup_ratio=0.5, budget="optimizer_steps=4",
        ).handle  # fmt: skip
    assert (made.result["steps"], made.result["stopped_by"]) == (4, "optimizer_steps")
    assert [row["lr"] for row in steps(made)] == pytest.approx([0.5e-4, 1e-4, 1e-4, 1e-4])


def test_samples_end_with_the_budget_too(run, v0):
    """As many as it pays for; of several temperatures as many prompts as it surely pays for."""

    def drawn(**arguments: Any) -> Any:
        with run() as made:
            return made.sample(v0, PROMPTS, max_new_tokens=5, name="samples", **arguments)

    plain, cut = drawn(n=2), drawn(n=2, budget={"generated_tokens": 15})
    rows = cut.groups.rows
    assert (cut.result["stopped"], cut.result["stopped_by"]) == ("budget", "generated_tokens")
    assert 15 <= cut.result["generated_tokens"] < 15 + 2 * 5
    assert [row["responses"] for row in rows] == [row["responses"] for row in plain.groups.rows[: len(rows)]]
    ample = drawn(n=2, budget={"generated_tokens": "1k"})
    assert "stopped" not in ample.result
    assert ample.groups.digest() == plain.groups.digest()
    assert drawn(n=2).key == plain.key
    assert len({plain.key, cut.key, ample.key}) == 3
    several = drawn(temperature=[0.7, 1.0], budget={"generated_tokens": 25})
    assert len(several.groups) == 2
    assert several.result["generated_tokens"] <= 25
    assert several.result["stopped_by"] == "generated_tokens"
