# mypy: warn-unused-ignores
"""What a type checker says of the verbs; `make lint` reads this file, nothing runs it.

Each `type: ignore` stands on a line that must be an error: were it none, the comment would be one.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from alignkit.groups import Groups
from alignkit.run import EvaluationHandle, GroupsHandle, Improved, PolicyHandle, RewardHandle, Run


def right(run: Run, data: Groups) -> None:
    policy = run.policy("tiny", lora=None, name="v0")
    assert_type(policy, PolicyHandle)
    assert_type(run.sft(policy, data, learning_rate=1e-4, betas=(0.9, 0.99)), PolicyHandle)
    assert_type(run.sample(policy, data, 2, temperature=[0.8, 1.0]), GroupsHandle)
    assert_type(run.annotate(data, "gold"), dict[str, GroupsHandle])
    reward = run.train_reward(policy, data, loss="ranking", replay=[data])
    assert_type(reward, RewardHandle)
    improved = run.improve(policy, data, optimizer="method", reward=reward, value_model="separate")
    assert_type(improved, Improved)
    assert_type(run.evaluate(improved.policy, data, {"r": reward}, n=2), EvaluationHandle)
    assert_type(run.export(improved.policy), Path | None)


def wrong(run: Run, policy: PolicyHandle, data: Groups) -> None:
    run.improve(policy, data, optimiser="method")  # type: ignore[call-arg]
    run.improve(policy, data)  # type: ignore[call-arg]
    run.improve(policy, data, "method")  # type: ignore[call-arg]
    run.improve(policy, data, optimizer="method", value_model="none")  # type: ignore[arg-type]
    run.sft(policy, data, epochs="two")  # type: ignore[arg-type]
    run.evaluate(policy, "prompts", {})  # type: ignore[arg-type]
