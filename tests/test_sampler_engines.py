"""A sampler for another engine overrides `generate` alone, and works wherever something is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from alignkit import Batch, ConfigError, DataError, Groups, Policy, PolicyOptimizer, Run
from alignkit.meter import Meter
from alignkit.randomness import stream_key
from alignkit.sampling import Drawing, Sampled, Sampler

PROMPTS = Groups.from_prompts(["say a", "a longer prompt", "say b", "say a"])


def letter_of(key: int) -> str:
    return "abcdefgh"[key % 8]


@dataclass(frozen=True)
class Echo(Sampler):
    """An engine that answers each prompt with one letter by its key, the prompts in reverse order."""

    def generate(
        self, policy: Any, prompts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], end_ids: Sequence[int]
    ) -> Iterator[tuple[int, list[Sampled]]]:
        for number in reversed(range(len(prompts))):
            letters = [policy.chat.encode_text(letter_of(key))[0] for key in keys[number]]
            yield number, [Sampled([i, end_ids[0]], [-1.0, -0.5], finished=True) for i in letters]


@dataclass(frozen=True)
class Silent(Echo):
    """An engine that loses an answer."""

    def generate(self, *args: Any) -> Iterator[tuple[int, list[Sampled]]]:
        return iter(list(super().generate(*args))[1:])


@dataclass(frozen=True)
class Imitates(PolicyOptimizer):
    samples_per_prompt: int = 2

    def prepare(self, groups: Groups, state: Any) -> Batch:
        return Batch(groups)


def once(response: str) -> float:
    return float(len(response))


def test_rows_hold_what_the_engine_wrote_in_the_order_of_the_prompts():
    policy, told, meter = Policy.load("tiny"), [], Meter()
    groups = Echo().sample(policy, PROMPTS, 2, seed=(1,), progress=lambda *now: told.append(now[:3]), meter=meter)
    assert [row["prompt_id"] for row in groups] == [row["prompt_id"] for row in PROMPTS]
    for row, prompt, time in zip(groups, PROMPTS, (0, 0, 0, 1), strict=True):
        keys = [stream_key(1, prompt["prompt_id"], time, k) for k in range(2)]
        assert row["responses"] == [letter_of(key) for key in keys]
    assert groups[0]["logprobs"] == [[-1.0, -0.5]] * 2
    assert groups[0]["finished"] == [True, True]
    assert told == [(2, 8, 4), (4, 8, 8), (6, 8, 12), (8, 8, 16)]
    assert meter.counts["generated_tokens"] == 16
    assert Echo().sample(policy, PROMPTS, 2, seed=(1,)).digest() == groups.digest()


def test_a_prompt_without_its_answers_is_told():
    with pytest.raises(DataError, match="not every prompt has its 2 responses"):
        Silent().sample(Policy.load("tiny"), PROMPTS, 2)


def test_improve_and_sample_take_it(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        sampled = run.sample(v0, PROMPTS, n=2, sampler=Echo())
        assert {len(text) for row in sampled.groups for text in row["responses"]} == {1}
        assert sampled.result["generated_tokens"] == 16
        made = run.improve(v0, PROMPTS, optimizer=Imitates(), reward=once, sampler=Echo(), heldout=PROMPTS, name="v1")
        assert {len(text) for row in made.rollouts.groups for text in row["responses"]} == {1}
        budget = made.result["budget"]
        assert budget["generated_tokens"] == 16 + 8  # held-out prompts are answered too
        assert budget["reward_calls"] == 8 + 4


def test_evaluate_and_transform_take_it(tmp_path):
    def answered(groups, ctx):
        return ctx.sample(groups.without_responses(), 2)

    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        made = run.evaluate(v0, PROMPTS, {"once": once}, n=2, max_new_tokens=8, sampler=Echo())
        assert made.metrics["response_length"]["mean"] == 2.0
        changed = run.transform(PROMPTS, answered, policy=v0, sampler=Echo())
        assert {len(text) for row in changed.groups for text in row["responses"]} == {1}


def test_dealt_prompts_are_drawn_as_one_process_would(monkeypatch):
    """Two processes, one after the other: each draws its share, and both end with the rows of one."""
    policy = Policy.load("tiny")
    whole = Drawing(policy, Sampler(max_new_tokens=6)).draw(PROMPTS, 2, seed=(0, "x"))
    shares: list[list[dict[str, Any]]] = []
    monkeypatch.setattr("alignkit.sampling.drawing.gather_dealt", lambda rows, world: shares.append(rows) or rows)
    counts: list[int] = []

    def summed(mine: list[int]) -> list[int]:
        counts.append(mine[0])
        return mine

    monkeypatch.setattr("alignkit.sampling.drawing.summed", summed)
    for rank in range(2):
        Drawing(policy, Sampler(max_new_tokens=6), world=(rank, 2)).draw(PROMPTS, 2, seed=(0, "x"))
    dealt = [shares[i % 2][i // 2]["response_ids"] for i in range(len(PROMPTS))]
    assert dealt == [row["response_ids"] for row in whole]
    assert sum(counts) == sum(len(ids) for row in whole for ids in row["response_ids"])


def test_truncation_is_told_by_warp_and_not_by_another_engine():
    assert not Echo().truncates

    @dataclass(frozen=True)
    class Cut(Echo):
        def warp(self, logprobs: torch.Tensor) -> torch.Tensor:
            return logprobs

    assert Cut().truncates


def test_settings_are_refused_whatever_the_engine():
    with pytest.raises(ConfigError, match="temperature"):
        Echo(temperature=0)
