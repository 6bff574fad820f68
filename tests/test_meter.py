"""What work cost is counted where it is done: what was skipped is not counted, and a second counts once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from alignkit import Batch, ConfigError, Groups, Policy, PolicyOptimizer, Run
from alignkit.annotators import Annotator, annotated
from alignkit.engine.known import Known
from alignkit.engine.reference import Reference, kl_per_response
from alignkit.engine.scoring import Scorer
from alignkit.engine.setting import Models
from alignkit.engine.step_cost import StepCost
from alignkit.engine.training_data import TrainingData
from alignkit.meter import COUNTS, PHASES, Meter, PeakMemory
from alignkit.models import RewardModel
from alignkit.models.arithmetic import Flops
from alignkit.optimizers import Stream
from alignkit.processes import highest
from alignkit.rewards import FunctionReward, Scores, WeightedSum, metered_scores, score_groups
from alignkit.stages.comparisons import RankBy
from alignkit.stages.training import split

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


def letters(response: str) -> float:
    return float(len(response))


@pytest.mark.parametrize("brief", [False, True])
def test_trained_tokens_are_those_of_steps_that_were_taken(tmp_path, brief):
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        made = run.improve(v0, PROMPTS, optimizer=Imitates(brief=brief), reward=letters, max_new_tokens=5, name="v1")
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
    both = WeightedSum((Costly(letters, "one"), Costly(letters, "two")), (1.0, 1.0))
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
    with meter.phase("prepare"), meter.phase("reference"):
        pass
    with meter.phase("prepare"):
        pass
    assert meter.seconds == {"prepare": 1.0 + 4.0 + 1.0, "reference": 2.0}
    assert meter.to_json(10.5)["seconds"] == {"reference": 2.0, "prepare": 6.0, "other": 2.5}
    assert "other" not in meter.to_json()["seconds"]
    with pytest.raises(ConfigError, match="did you mean 'prepare'"), meter.phase("prepared"):
        pass


def test_work_is_kept_by_the_innermost_phase_and_each_count_is_a_pulse():
    beats: list[str] = []
    meter = Meter()
    meter.pulse = lambda: beats.append(meter.now)
    with meter.phase("prepare"):
        with meter.phase("generate"):
            meter.add("generated_tokens", 5)
            meter.compute(10)
        meter.add("scored_tokens", 2)
    meter.compute(3, 4)
    assert meter.to_json()["work"] == {
        "generate": {"generated_tokens": 5, "flops": 10},
        "prepare": {"scored_tokens": 2},
        "other": {"flops": 7},
    }
    assert beats == ["prepare", "generate", "generate", "generate", "prepare", ""]


def test_a_steps_reference_pass_is_work_of_the_reference():
    counts = {"optimizer_steps": 1, "trained_tokens": 6, "scored_tokens": 9}
    meter = Meter()
    with meter.phase("train"):
        StepCost(counts, Flops(100, 50), reference=30).count(meter)
    assert meter.work == {
        "train": {"optimizer_steps": 1, "trained_tokens": 6, "flops": 120},
        "reference": {"scored_tokens": 9, "flops": 30},
    }
    assert (meter.flops, meter.spent("scored_tokens")) == ({"forward": 100, "backward": 50}, 9)


def test_what_is_not_counted_is_told_and_the_rest_is_plain_json():
    meter = Meter()
    meter.add("trained_tokens", 3)
    with pytest.raises(ConfigError, match="did you mean 'trained_tokens'"):
        meter.add("trained_token", 3)
    meter.compute(7, 2)
    assert (meter.spent("trained_tokens"), meter.spent("flops")) == (3, 9)
    assert json.loads(json.dumps(meter.to_json(None, {"cpu": 5}))) == {
        "counts": {**dict.fromkeys(COUNTS, 0), "trained_tokens": 3},
        "flops": {"forward": 7, "backward": 2},
        "seconds": {},
        "work": {"other": {"trained_tokens": 3, "flops": 9}},
        "peak_memory": {"cpu": 5},
    }


def test_each_forward_pass_without_a_gradient_is_counted(tmp_path):
    """KL of a few: policy and reference once each over the first response of each prompt; nothing else is asked for."""
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        drawn = run.sample(v0, PROMPTS, n=1, max_new_tokens=5).groups
    policy = Policy.load("tiny")
    meter = Meter()
    reference = Reference(policy, meter=meter)
    data, _ = TrainingData.of(policy, drawn, max_prompt_tokens=500, max_response_tokens=500)
    own = Meter()
    known = Known(Models(policy, policy, reference), 1.0, 500, 500, 200, own)
    known.work_out(data, data.all_micro_batches(200), ("logprobs", "ref_logprobs"))
    tokens = sum(len(g.prompt_ids) + len(g.responses[0]) for g in data.encoded)
    assert own.counts["scored_tokens"] == meter.counts["scored_tokens"] == tokens
    assert (
        own.flops
        == meter.flops
        == {"forward": policy.flops(data.reading(range(len(data.encoded)))).forward, "backward": 0}
    )
    kl = kl_per_response(policy, drawn, reference, temperature=1.0, max_tokens=200, max_prompt_tokens=500)
    assert meter.counts["scored_tokens"] == 2 * tokens
    assert max(abs(value) for row in kl for value in row) < 1e-4  # its own reference, by another path


# -- each verb, by hand ------------------------------------------------------------------------------------------------

# The tiny model (tests/test_arithmetic.py): weights of the trunk and the head, operations of attention per pair.
BODY, HEAD, PAIR = 73_728, 16_768, 512
DEMOS = Groups.from_rows([{"prompt": f"p{i}", "responses": ["ab" * (i + 1)]} for i in range(4)])
PAIRS = Groups.from_rows([{"prompt": f"p{i}", "responses": ["a" * (i + 1), "b"], "ranks": [1, 2]} for i in range(6)])
TEXTS = Groups.from_rows([{"prompt": [], "responses": ["some text"]}] * 3)


def chat_lengths(groups: Groups) -> list[tuple[int, list[int]]]:
    """(tokens of the prompt, of each response) as the tiny model reads them."""
    chat = Policy.load("tiny").chat
    rows = [(len(chat.encode_prompt(row["prompt"])), row) for row in groups]
    ids = [row["response_ids"] or [chat.encode_response(text) for text in row["responses"]] for _, row in rows]
    return [(prompt, [len(each) for each in responses]) for (prompt, _), responses in zip(rows, ids, strict=True)]


def pairs_of(start: int, stop: int) -> int:
    """(query, key) pairs of the tokens from one place to another: a token sees itself and all before."""
    return sum(range(start + 1, stop + 1))


def read_once(lengths: list[tuple[int, list[int]]], head: int = HEAD, *, states: bool = False) -> int:
    """Operations of one pass over groups, each prompt read once; `states`: one state of each response is read off."""
    total = 0
    for prompt, responses in lengths:
        tokens = prompt + sum(responses)
        read = len(responses) if states else sum(responses)
        seen = pairs_of(0, prompt) + sum(pairs_of(prompt, prompt + r) for r in responses)
        total += 2 * BODY * tokens + 2 * head * read + PAIR * seen
    return total


def written(lengths: list[tuple[int, list[int]]]) -> int:
    """Operations of sampling: the last token of a response is not read."""
    total = 0
    for prompt, responses in lengths:
        tokens = prompt + sum(r - 1 for r in responses)
        seen = pairs_of(0, prompt) + sum(pairs_of(prompt, prompt + r - 1) for r in responses)
        total += 2 * BODY * tokens + 2 * HEAD * (1 + sum(r - 1 for r in responses)) + PAIR * seen
    return total


def tokens_of(lengths: list[tuple[int, list[int]]], prompts: bool = False) -> int:
    return sum(sum(responses) + prompt * prompts for prompt, responses in lengths)


def spent(stage: Any) -> tuple[dict[str, int], dict[str, int]]:
    """(counts that are not 0, operations) of a stage on disk."""
    record = json.loads((stage.path / "stage.json").read_text())
    meter = record["meter"]
    assert set(meter["seconds"]) <= set(PHASES)
    assert sum(meter["seconds"].values()) == pytest.approx(record["seconds"], abs=0.02)
    assert 50e6 < meter["peak_memory"]["cpu"] < 50e9
    return {name: count for name, count in meter["counts"].items() if count}, meter["flops"]


def ranking(chosen_rewards, rejected_rewards):
    return rejected_rewards - chosen_rewards


def away(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


@dataclass(frozen=True)
class Mixed(Imitates):
    """With a second stream, and the reference beside every step."""

    def extra_losses(self):
        return {"away": away}

    def streams(self):
        return {"texts": Stream(batch_size=2)}


@pytest.fixture(scope="module")
def verbs(tmp_path_factory):
    """One stage of each verb, on the tiny model trained whole."""

    def scored(groups, ctx):
        return ctx.sample(groups.without_responses(), 2, max_new_tokens=4)

    class Ties(Annotator):
        def annotate(self, groups: Groups, seed: int = 0) -> dict[str, Groups]:
            return {"preference": groups}

        def key(self) -> Any:
            return "ties"

    with Run(tmp_path_factory.mktemp("verbs") / "run", quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        reward = run.train_reward(v0, PAIRS, loss=ranking, epochs=2, batch_size=2, heldout_fraction=0.5)
        improve = {"reward": letters, "reference": v0, "max_new_tokens": 5, "heldout": PROMPTS.select([0, 1])}
        return {
            "run": run,
            "policy": v0,
            "train_reward": reward.handle,
            "sft": run.sft(v0, DEMOS, epochs=3, batch_size=2, heldout_fraction=0.5),
            "sample": run.sample(v0, PROMPTS, n=2, max_new_tokens=5),
            "annotate": run.annotate(PAIRS, Ties())["preference"],
            "score": run.score(PAIRS, reward),
            "transform": run.transform(PROMPTS, scored, policy=v0),
            "ranked": run.transform(PAIRS, RankBy(FunctionReward(letters, "letters")), name="ranked"),
            "evaluate": run.evaluate(v0, PROMPTS, {"letters": letters}, max_new_tokens=5, metrics=["perplexity"]),
            "improve": run.improve(
                v0, PROMPTS, optimizer=Mixed(batch_size=0, epochs=1), reference_logprobs="online",
                streams={"texts": TEXTS}, **improve,
            ),
        }  # fmt: skip


def test_sampling_costs_what_was_written(verbs):
    for verb in ("sample", "transform"):
        lengths = chat_lengths(verbs[verb].groups)
        expected = {"generated_tokens": tokens_of(lengths)}, {"forward": written(lengths), "backward": 0}
        assert spent(verbs[verb]) == expected, verb


def test_supervised_tuning_costs_its_steps_and_the_held_out_pass(verbs):
    counts, flops = spent(verbs["sft"])
    by_steps, held = _parts(DEMOS, lambda rows: split(rows, 0.5, (0, "sft", "split")))
    assert counts == {
        "optimizer_steps": 3 * -(-len(by_steps) // 2),
        "trained_tokens": 3 * tokens_of(by_steps),
        "scored_tokens": tokens_of(held, prompts=True),
    }
    forward = read_once(by_steps)
    assert flops == {"forward": 3 * forward + read_once(held), "backward": 3 * 2 * forward}


def test_a_reward_model_costs_its_steps_and_its_accuracy(verbs):
    counts, flops = spent(verbs["train_reward"])
    by_steps, held = _parts(PAIRS, lambda rows: split(rows, 0.5, (0, "reward split")))
    assert counts == {
        "optimizer_steps": 2 * -(-len(by_steps) // 2),
        "trained_tokens": 2 * tokens_of(by_steps),
        "scored_tokens": tokens_of(held, prompts=True),
    }
    forward = read_once(by_steps, 64, states=True)
    assert flops == {"forward": 2 * forward + read_once(held, 64, states=True), "backward": 2 * 2 * forward}


def _parts(groups: Groups, parted: Any) -> tuple[Any, Any]:
    learned, held = (chat_lengths(part) for part in parted(groups))
    assert learned
    assert held
    return learned, held


def test_judging_costs_calls_and_what_the_models_read(verbs):
    assert spent(verbs["annotate"]) == ({"judge_calls": 6}, {"forward": 0, "backward": 0})
    lengths = chat_lengths(PAIRS)
    expected = {"reward_calls": 12, "scored_tokens": tokens_of(lengths, prompts=True)}
    assert spent(verbs["score"]) == (expected, {"forward": read_once(lengths, 64, states=True), "backward": 0})
    assert spent(verbs["policy"]) == ({}, {"forward": 0, "backward": 0})
    assert spent(verbs["ranked"]) == ({"reward_calls": 12}, {"forward": 0, "backward": 0})


def test_an_evaluation_costs_samples_scores_and_what_its_metrics_read(verbs):
    rows = [json.loads(line) for line in (verbs["evaluate"].path / "evaluation.jsonl").read_text().splitlines()]
    prompts = [prompt for prompt, _ in chat_lengths(PROMPTS)]
    lengths = [(prompt, [row["response_length"]]) for prompt, row in zip(prompts, rows, strict=True)]
    counts, flops = spent(verbs["evaluate"])
    assert counts == {
        "generated_tokens": tokens_of(lengths),
        "reward_calls": 4,
        "scored_tokens": tokens_of(lengths, prompts=True),
    }
    assert flops == {"forward": written(lengths) + read_once(lengths), "backward": 0}


def test_a_round_costs_samples_kl_steps_streams_reference_and_held_out(verbs):
    made = verbs["improve"]
    counts, flops = spent(made.policy)
    lengths = chat_lengths(made.rollouts.groups)
    few = [(prompt, responses[:1]) for prompt, responses in lengths]  # the KL that is shown: policy and reference
    chat = Policy.load("tiny").chat
    text = len(chat.encode_text("some text"))
    stream = [(1, [text - 1])] * 2
    held = counts["generated_tokens"] - tokens_of(lengths)
    assert 2 <= held <= 2 * 5
    assert counts == {
        "generated_tokens": tokens_of(lengths) + held,
        "trained_tokens": tokens_of(lengths) + tokens_of(stream),
        "scored_tokens": 2 * tokens_of(few, prompts=True) + tokens_of(lengths, prompts=True),
        "reward_calls": 8 + 2,
        "optimizer_steps": 1,
    }
    learned = read_once(lengths) + read_once(stream)
    assert flops["backward"] == 2 * learned
    prompts = [prompt for prompt, _ in chat_lengths(PROMPTS.select([0, 1]))]
    answered = [written([(prompts[0], [n]), (prompts[1], [held - n])]) for n in range(1, held)]
    others = written(lengths) + 2 * read_once(few) + learned + read_once(lengths)
    assert flops["forward"] - others in answered


def test_a_gpu_at_work_is_asked_for_its_peak(monkeypatch):
    asked = []

    class Cuda:
        def reset_peak_memory_stats(self) -> None:
            asked.append("reset")

        def max_memory_allocated(self) -> int:
            return 7

    monkeypatch.setattr("alignkit.meter._cuda", Cuda)
    peak = PeakMemory()
    assert asked == ["reset"]
    assert peak.read()["cuda"] == 7
    assert highest({"cpu": 3}, 1) == {"cpu": 3}


def test_peak_memory_is_that_of_the_stage_and_not_of_the_process():
    PeakMemory()
    grown = bytearray(200 * 2**20)
    grown[::4096] = b"x" * len(grown[::4096])
    high = PeakMemory().read()["cpu"]
    del grown
    low = PeakMemory()
    assert low.read()["cpu"] < high - 150 * 2**20
