"""`evaluate` of answers that are there already."""

from __future__ import annotations

import json

import pytest

from alignkit import ConfigError, DataError, Run
from alignkit.testing import TEXTS, letters


def test_the_first_score_given_leads_whatever_its_name(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        policy = run.policy("tiny", lora=None)
        made = run.evaluate(policy, TEXTS, {"z": letters, "a": lambda response: 0.0}, answers="given", name="order")
        lines = (made.path / "evaluation.jsonl").read_text().splitlines()
    assert list(json.loads(lines[0])["scores"]) == ["z", "a"]


def test_given_answers_are_scored_as_they_are(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        policy = run.policy("tiny", lora=None)
        made = run.evaluate(policy, TEXTS, {"letters": letters}, answers="given", name="given")
        assert made.result["metrics"]["letters"]["mean"] == 1.0
        with pytest.raises(DataError, match="no answer"):
            run.evaluate(policy, TEXTS.without_responses(), {"letters": letters}, answers="given", name="bare")
        with pytest.raises(ConfigError, match="reference"):
            run.evaluate(policy, TEXTS, {"letters": letters}, answers="given", reference=policy, name="kl")
        with pytest.raises(ConfigError, match="answers"):
            run.evaluate(policy, TEXTS, {"letters": letters}, answers="none", name="odd")
