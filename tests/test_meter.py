"""What work cost is counted where it is done: what was skipped is not counted, and a second counts once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from alignkit import Batch, ConfigError, Groups, Policy, PolicyOptimizer, Run
from alignkit.annotators import Annotator, annotated
from alignkit.engine.scoring import Scorer
from alignkit.meter import COUNTS, Meter
from alignkit.models import RewardModel
from alignkit.rewards import FunctionReward, Scores, WeightedSum, metered_scores, score_groups

PROMPTS = Groups.from_prompts([f"prompt {i}" for i in range(4)])


@dataclass(frozen=True)
class Imitates(PolicyOptimizer):
    samples_per_prompt: int = 2
    batch_size: int = 1
    epochs: int = 2
    brief: bool = False

    def prepare(self, groups: Groups, state: Any) -> Batch:
        return Batch(groups)

    def stop_epochs(self, metrics: Any) -> bool:
        return self.brief


def length(response: str) -> float:
    return float(len(response))


@pytest.mark.parametrize("brief", [False, True])
def test_trained_tokens_are_those_of_steps_that_were_taken(tmp_path, brief):
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        made = run.improve(v0, PROMPTS, optimizer=Imitates(brief=brief), reward=length, max_new_tokens=5, name="v1")
        steps = (made.policy.path / "metrics.jsonl").read_text().splitlines()
    tokens = [sum(map(len, row["response_ids"])) for row in made.rollouts.groups]
    budget = made.result["budget"]
    assert budget["generated_tokens"] == sum(tokens)
    assert budget["reward_calls"] == 8
    assert budget["optimizer_steps"] == len(steps) == made.result["steps"] == (1 if brief else 8)
    assert budget["trained_tokens"] in tokens if brief else budget["trained_tokens"] == 2 * sum(tokens)


def test_a_combination_counts_each_response_once_and_its_models_tokens(tmp_path):
    class Costly(FunctionReward):
        def score(self, groups: Groups) -> Scores:
            scores = super().score(groups)
            return Scores(scores.values, scores.reasons, 10 * groups.num_responses)

    groups = Groups.from_rows([{"prompt": "p", "responses": ["a", "bb"]}])
    both = WeightedSum((Costly(length, "one"), Costly(length, "two")), (1.0, 1.0))
    for score in (score_groups, metered_scores):
        meter = Meter()
        score(groups, both, meter)
        assert meter.counts == {**dict.fromkeys(COUNTS, 0), "reward_calls": 2, "scored_tokens": 40}
        assert set(meter.seconds) == {"score"}


def test_a_reward_model_says_how_many_tokens_it_read():
    policy = Policy.load("tiny")
    groups = Groups.from_rows([{"prompt": "p", "responses": ["a", "bb"]}, {"prompt": "q", "responses": ["c"]}])
    chat = policy.chat
    prompts = sum(len(chat.encode_prompt(row["prompt"])) for row in groups)  # read once for its responses
    responses = sum(len(chat.encode_response(text)) for row in groups for text in row["responses"])
    assert Scorer(RewardModel.from_policy("tiny")).score(groups).tokens == prompts + responses


def test_an_annotator_is_counted_by_groups():
    class Ties(Annotator):
        def annotate(self, groups: Groups, seed: int = 0) -> dict[str, Groups]:
            return {"preference": groups}

    meter = Meter()
    annotated(PROMPTS, Ties(), 0, meter)
    assert meter.counts["judge_calls"] == 4


def test_a_second_counts_for_the_innermost_phase(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0, 100.0, 101.0])
    monkeypatch.setattr("alignkit.meter.time.monotonic", lambda: next(clock))
    meter = Meter()
    with meter.phase("prepare"), meter.phase("forward"):
        pass
    with meter.phase("prepare"):
        pass
    assert meter.seconds == {"prepare": 1.0 + 4.0 + 1.0, "forward": 2.0}


def test_what_is_not_counted_is_told_and_the_rest_is_plain_json():
    meter = Meter()
    meter.add("trained_tokens", 3)
    with pytest.raises(ConfigError, match="did you mean 'trained_tokens'"):
        meter.add("trained_token", 3)
    assert json.loads(json.dumps(meter.to_json())) == {
        "counts": {**dict.fromkeys(COUNTS, 0), "trained_tokens": 3},
        "seconds": {},
    }
