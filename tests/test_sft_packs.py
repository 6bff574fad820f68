"""Packing: demonstrations of one micro-batch stand in a single row without padding, and none attends to another."""

from __future__ import annotations

import json

import pytest

from alignkit import Groups, Run
from alignkit.engine.training_data import TrainingData
from alignkit.models import Policy

LENGTHS = (3, 30, 7, 18, 1, 25)
DEMOS = Groups.from_rows([{"prompt": f"p{n}", "responses": ["abcde"[n % 5] * n]} for n in LENGTHS])


@pytest.fixture
def data() -> TrainingData:
    found, problems = TrainingData.of(Policy.load("tiny"), DEMOS, max_prompt_tokens=99, max_response_tokens=99)
    assert not problems
    return found


def test_a_micro_batch_is_one_row_of_just_the_tokens_there_are(data):
    sizes = [len(each.prompt_ids) + len(each.responses[0]) for each in data.encoded]
    (step,) = data.steps(0, 1, 10_000, (0,))
    (numbers,) = step.micro
    batch = data.collate(numbers)
    assert tuple(batch.input_ids.shape) == (1, sum(sizes))
    assert data.useful_tokens(step) == 1
    (step,) = data.steps(0, 1, 60, (0,))  # as many rows as have room
    assert len(step.micro) < len(LENGTHS)
    assert all(sum(sizes[n] for n in numbers) <= 60 for numbers in step.micro)


def test_packed_rows_learn_as_rows_apart(tmp_path):
    """With room for one row, and for all of them: the same losses and the same weights."""
    found, weights = [], []
    for most in (40, 10_000):
        with Run(tmp_path / str(most), quiet=True, max_tokens=most) as run:
            v0 = run.policy("tiny", lora=None)
            made = run.sft(v0, DEMOS, batch_size=3, epochs=2, learning_rate=1e-3)
        rows = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
        assert [row["useful_tokens"] for row in rows] == [1.0] * 4
        found.append([row["loss"] for row in rows])
        weights.append(Policy.load(made.model_folder).state_dict())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert all(weights[0][name].allclose(weights[1][name], atol=1e-5) for name in weights[0])
