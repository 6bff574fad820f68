"""The suite as a comparison uses it: where methods start, what they are given, how what they made is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_enumerable.exact import Landscape, kl, responses_of, table
from alignkit_enumerable.own import best_of_n
from alignkit_enumerable.problem import Problem, model, tokenizer

from alignkit import EvaluationHandle, PolicyHandle, Run
from alignkit.plugin import Policy, Suite, build

PROBLEM = Problem()


def suite() -> Suite:
    made: Suite = build("suite", "enumerable")()
    return made


def opened(folder: Path, seed: int = 0) -> Run:
    return Run(folder, seed, quiet=True, max_tokens=1 << 16, trainer={"accelerator": "cpu"})


def improved(run: Run, task: Suite, v0: PolicyHandle, method: str, name: str = "v1") -> Any:
    """A method on the suite, as a comparison runs it."""
    built = build("optimizer", method)
    assert task.data is not None
    data = task.data(run, v0, method, f"{name}/data")
    judge: dict[str, Any] = {"reward": task.scores["reward"]} if built.samples_per_prompt else {}
    judge = {"annotator": task.annotator} if "annotated" in built.prepare_arguments() else judge
    sampler = "default(batch_size=4096)"
    return run.improve(
        v0,
        data,
        optimizer=method,
        reference=v0,
        max_new_tokens=task.max_new_tokens,
        name=name,
        sampler=sampler,
        **judge,
    )


def exactly(run: Run, task: Suite, policy: PolicyHandle, name: str) -> EvaluationHandle:
    assert task.measure is not None
    found: EvaluationHandle = task.measure(run, policy, name=name, label=name)
    return found


def test_a_suite_is_started_and_measured(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        v0 = suite().start(run)
        found = exactly(run, suite(), v0, "start")
    metrics = found.metrics
    assert metrics["share"] == pytest.approx(0.0, abs=1e-12)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-12)
    assert "gap" not in metrics  # no method made it
    logprobs = responses_of(table(Policy(model(7).double(), tokenizer()), PROBLEM), PROBLEM.tree)
    rows = [json.loads(line) for line in (found.path / "evaluation.jsonl").read_text().splitlines()]
    expected = (logprobs.exp() * PROBLEM.rewards()).sum(-1).tolist()
    assert [row["scores"]["reward"] for row in rows] == pytest.approx(expected)
    assert [row["response_length"] for row in rows] == pytest.approx(
        (2 - logprobs[:, 0].exp()).tolist()
    )  # END alone is 1 long
    assert metrics["reward"] == pytest.approx(sum(expected) / 2)


def test_one_step_of_comparisons_goes_the_right_way_and_says_how_far(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        task = suite()
        v0 = task.start(run)
        made = improved(run, task, v0, "dpo(loss=dpo(beta=0.5), batch_size=57, epochs=6, learning_rate=3e-3)")
        found = exactly(run, task, made.policy, "v1/exact")
        live = made.policy.load(dtype=torch.float64)
    scape = Landscape(PROBLEM.rewards(), responses_of(table(v0.load(dtype=torch.float64), PROBLEM), PROBLEM.tree), 0.5)
    said = responses_of(table(live, PROBLEM), PROBLEM.tree)
    assert found.metrics["share"] == pytest.approx(float(scape.shares(said).mean()))
    assert found.metrics["kl"] == pytest.approx(float(kl(said, scape.ref).mean()))
    assert 0.5 < found.metrics["share"] < 1
    assert 0 < found.metrics["gap"] < 0.6
    assert found.result["own"]["kind"] == "given"
    assert found.result["own"]["share"] == pytest.approx(1.0, abs=1e-4)  # soft labels: dpo makes for pi*


def test_a_few_rounds_come_as_near_as_they_should(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        task = suite()
        rounds = "samples_per_prompt=64, prompts_per_round=0, batch_size=0, rounds=40, kl_coef=0.5, learning_rate=1e-2"
        made = improved(run, task, task.start(run), f"rloo({rounds}, schedule='linear')")
        found = exactly(run, task, made.policy, "v1/exact")
    assert found.result["own"]["kind"] == "regularised"
    assert found.metrics["gap"] == pytest.approx(1 - found.metrics["share"])
    assert found.metrics["gap"] < 0.6


def test_the_best_of_samples_is_measured_from_the_version_that_was_sampled(tmp_path: Path) -> None:
    """In a chain the second version imitates the best of the first one's samples, and not of the start's."""
    with opened(tmp_path) as run:
        task = suite()
        v0 = task.start(run)
        first = improved(run, task, v0, "dpo(loss=dpo(beta=0.5), batch_size=57, epochs=2, learning_rate=3e-3)", "v1")
        best = "samples_per_prompt=4, prompts_per_round=8, temperature=1.0, require_finished=False"
        second = improved(run, task, first.policy, f"rejection_sampling({best})", "v2")
        found = exactly(run, task, second.policy, "v2/exact")
        before = responses_of(table(first.policy.load(dtype=torch.float64), PROBLEM), PROBLEM.tree)
        after = responses_of(table(second.policy.load(dtype=torch.float64), PROBLEM), PROBLEM.tree)
    own = best_of_n(before.exp(), PROBLEM.rewards(), 4, torch.ones(57, dtype=torch.bool)).log()
    assert found.metrics["gap"] == pytest.approx(float(kl(own, after).mean() / kl(own, before).mean()))


def test_settings_are_those_of_registered_optimizers() -> None:
    task = suite()
    assert len(task.settings) == 10
    for name, found in task.settings.items():
        built = build("optimizer", name)
        assert set(found) <= set(vars(built)), name
    assert set(task.budget) == {"generated_tokens"}
    assert "optimum" in task.hidden
    for name, found in task.settings.items():  # none of them is cut by the budget
        rows = max(found["prompts_per_round"], 2) if "prompts_per_round" in found else 0
        most = rows * found.get("samples_per_prompt", 2) * found.get("rounds", 1) * 2
        assert most <= 1.1 * task.budget["generated_tokens"], name


def test_a_suite_of_another_policy_starts_from_it() -> None:
    class Asked:
        def policy(self, spec: str, **options: Any) -> tuple[str, dict[str, Any]]:
            return spec, options

    assert suite().start(Asked(), "tiny", lora=None) == ("tiny", {"lora": None})
