"""The sampler: random numbers by counter, log-probs as the training path sees them, ends where it should."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from alignkit.data.encode import encode_groups
from alignkit.errors import ConfigError, DataError
from alignkit.groups import Groups
from alignkit.meter import Meter
from alignkit.models import Policy
from alignkit.models.batch import collate
from alignkit.randomness import permutation, stream_key, uniforms
from alignkit.sampling import Sampler, sample_side_by_side
from alignkit.sampling.decode import Sampled, choose, pick_tokens
from alignkit.sampling.drawing import _shown

PROMPTS = Groups.from_prompts(["say bob", "hide a", "a rather longer prompt than the others", "say bob"])


@pytest.fixture(scope="module")
def policy():
    return Policy.load("tiny")


@pytest.fixture(scope="module")
def samples(policy):
    return Sampler(max_new_tokens=24).sample(policy, PROMPTS, 3, seed=(0, "test"))


def test_uniforms_are_uniform_and_depend_on_key_and_position():
    keys = np.array([stream_key(0, "a", i) for i in range(2000)], dtype=np.uint64)
    draws = np.concatenate([uniforms(keys, position) for position in range(5)])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi-squared, 19 degrees of freedom, 0.1 %
    assert len(np.unique(draws)) == len(draws)
    assert stream_key(1, "2") != stream_key("1", 2) != stream_key(12)


def test_permutation_is_one_and_depends_on_the_path():
    assert sorted(permutation(50, 1, "x")) == list(range(50))
    assert permutation(50, 1, "x") == permutation(50, 1, "x") != permutation(50, 2, "x")


def test_choose_draws_from_the_distribution():
    probs = torch.tensor([[0.0, 0.2, 0.5, 0.3]]).expand(20000, 4)
    draws = uniforms(np.arange(20000, dtype=np.uint64) * np.uint64(977), 0)
    counts = torch.bincount(choose(probs, draws), minlength=4) / 20000
    torch.testing.assert_close(
        counts, torch.tensor([0.0, 0.2, 0.5, 0.3]), rtol=0, atol=0.015
    )  # 3 standard errors: 0.011


def test_what_was_drawn_and_its_log_prob_are_those_of_the_softmax():
    """Also where logits are so far apart that most probabilities are no normal float32, and ids that are no tokens."""
    torch.manual_seed(0)
    logits = 30 * torch.randn(64, 1000)
    draws = uniforms(np.arange(64, dtype=np.uint64), 0)
    each = torch.linspace(0.2, 1, 64).unsqueeze(1)
    for temperature in (0.2, 1.0, each):
        ids, logprobs, after = pick_tokens(logits, draws, temperature, None, vocabulary=990)
        assert after is None
        assert int(ids.max()) < 990
        wanted = torch.log_softmax(logits.double() / temperature, -1)
        assert torch.equal(ids, choose(wanted[:, :990].exp(), draws))
        torch.testing.assert_close(logprobs.double(), wanted.gather(-1, ids[:, None])[:, 0], rtol=1e-6, atol=2e-5)


def test_choose_never_takes_probability_zero():
    probs = torch.tensor([[0.0, 1.0, 0.0]])
    assert choose(probs, np.array([0.0])).item() == 1
    assert choose(probs, np.array([1 - 2**-53])).item() == 1


def test_same_seed_same_samples_whatever_the_batch(policy, samples):
    """Another batch size, fewer prompts and a larger n leave each sample as it was."""
    small = Sampler(max_new_tokens=24, batch_size=3).sample(policy, PROMPTS, 3, seed=(0, "test"))
    assert [r["response_ids"] for r in small] == [r["response_ids"] for r in samples]
    alone = Sampler(max_new_tokens=24).sample(policy, PROMPTS.select([2]), 3, seed=(0, "test"))
    assert alone[0]["response_ids"] == samples[2]["response_ids"]
    more = Sampler(max_new_tokens=24).sample(policy, PROMPTS, 5, seed=(0, "test"))
    assert [r["response_ids"][:3] for r in more] == [r["response_ids"] for r in samples]


def test_several_temperatures_are_written_side_by_side_and_are_what_each_gives_alone(policy):
    """In one batch, each prompt read once; values and random numbers as one after another."""
    temperatures, seeds = [1.0, 0.4], [(0, "warm"), (0, "cool")]
    passes, generated = Meter(), Sampler(max_new_tokens=12)
    found = generated.sample_at(policy, PROMPTS, 2, temperatures, seeds=seeds, meter=passes)
    alone = Meter()
    for groups, temperature, seed in zip(found, temperatures, seeds, strict=True):
        one = replace(generated, temperature=temperature).sample(policy, PROMPTS, 2, seed=seed, meter=alone)
        assert one.digest() == groups.digest()
    assert passes.spent("generated_tokens") == alone.spent("generated_tokens")
    assert passes.spent("flops") < alone.spent("flops")
    assert found[0].column("response_ids") != found[1].column("response_ids")


@dataclass(frozen=True)
class Own(Sampler):
    """An engine of its own, which says which temperature it was asked for."""

    def generate(self, policy, prompts, keys, end_ids):
        for place, several in enumerate(keys):
            yield place, [Sampled([int(self.temperature)], [-1.0]) for _ in several]


def test_an_engine_of_its_own_is_asked_once_for_each_temperature(policy):
    found = Own().sample_at(policy, PROMPTS, 1, [7.0, 9.0], seeds=[(0,), (1,)])
    assert [groups.column("response_ids") for groups in found] == [[[[7]]] * 4, [[[9]]] * 4]
    assert [groups[0]["sampled_by"][0]["temperature"] for groups in found] == [7.0, 9.0]


@dataclass(frozen=True)
class Cut(Sampler):
    """Keeps more tokens the higher its temperature is."""

    def warp(self, logprobs):
        least = logprobs.topk(2 if self.temperature < 1 else 50).values[:, -1:]
        return logprobs.masked_fill(logprobs < least, -torch.inf)


def test_a_truncation_of_its_own_knows_each_temperature(policy):
    found = Cut(max_new_tokens=12).sample_at(policy, PROMPTS, 2, [1.0, 0.4], seeds=[(0,), (1,)])
    for groups, temperature, seed in zip(found, [1.0, 0.4], [(0,), (1,)], strict=True):
        alone = Cut(max_new_tokens=12, temperature=temperature).sample(policy, PROMPTS, 2, seed=seed)
        assert alone.digest() == groups.digest()


def test_same_plan_same_bytes(policy, samples):
    again = Sampler(max_new_tokens=24).sample(policy, PROMPTS, 3, seed=(0, "test"))
    assert again.digest() == samples.digest()


def test_other_seed_and_repeated_prompt_differ(policy, samples):
    other = Sampler(max_new_tokens=24).sample(policy, PROMPTS, 3, seed=(1, "test"))
    assert other[0]["response_ids"] != samples[0]["response_ids"]
    assert samples[0]["prompt_id"] == samples[3]["prompt_id"]
    assert samples[0]["response_ids"] != samples[3]["response_ids"]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_stored_logprobs_are_those_of_the_training_path(policy, temperature):
    """P2: cached decoding against the full pass, at the same T; forgetting T is off by tenths of nats."""
    groups = Sampler(max_new_tokens=24, temperature=temperature).sample(policy, PROMPTS, 3, seed=(0, "t"))
    encoded, _ = encode_groups(groups, policy.chat, max_prompt_tokens=500, max_response_tokens=100)
    firsts = [3 * i for i in range(len(encoded))]
    batch = collate(encoded, range(len(encoded)), firsts, pad_id=policy.chat.pad_id)
    with torch.no_grad():
        ours = policy.tensors(batch, temperature=temperature)["logprobs"]
        wrong = policy.tensors(batch, temperature=1.3)["logprobs"]
    stored = [lp for row in groups for lp in row["logprobs"]]
    for place, number in enumerate(batch.responses.tolist()):
        kept = torch.tensor(stored[number])
        torch.testing.assert_close(ours[place, : len(kept)], kept, rtol=0, atol=1e-5)  # 2e-6 measured
        assert (wrong[place, : len(kept)] - kept).abs().max() > 1e-3


def test_finished_means_an_end_token_and_no_more(policy, samples):
    for row in samples:
        for ids, finished, logprobs in zip(row["response_ids"], row["finished"], row["logprobs"], strict=True):
            assert finished == (ids[-1] in policy.chat.end_ids)
            assert not set(ids[:-1]) & set(policy.chat.end_ids)
            assert len(ids) == len(logprobs) <= 24
            assert finished or len(ids) == 24


def test_responses_end_sometimes():
    """Over many samples the tiny model does draw its end token, so the tests above see both kinds."""
    policy = Policy.load("tiny")
    groups = Sampler(max_new_tokens=64).sample(policy, PROMPTS, 16, seed=(3,))
    finished = [f for row in groups for f in row["finished"]]
    assert any(finished)
    assert not all(finished)


def test_greedy_equals_the_models_own_generate(policy):
    groups = Sampler(max_new_tokens=12, greedy=True).sample(policy, PROMPTS.select([0, 2]), 1)
    for row in groups:
        prompt = torch.tensor([policy.chat.encode_prompt(row["prompt"])])
        out = policy.model.generate(prompt, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(prompt))
        assert out[0, prompt.shape[1] :].tolist() == row["response_ids"][0]


@dataclass(frozen=True)
class TopTwo(Sampler):
    """Keeps the two likeliest tokens."""

    def warp(self, logprobs):
        least = logprobs.topk(2, -1).values[:, -1:]
        return logprobs.masked_fill(logprobs < least, float("-inf"))


def test_truncating_sampler_keeps_both_logprobs(policy):
    groups = TopTwo(max_new_tokens=8).sample(policy, PROMPTS.select([0]), 4, seed=(0,))
    for full, truncated in zip(groups[0]["logprobs"], groups[0]["sampled_logprobs"], strict=True):
        assert all(t > f for f, t in zip(full, truncated, strict=True))
        assert all(t > -20 for t in truncated)


def test_logprobs_are_before_truncation():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    warp = TopTwo().warp
    ids, logprobs, after = pick_tokens(logits, np.array([0.999]), 0.5, warp)
    wanted = torch.log_softmax(logits / 0.5, -1)[0, 1]
    assert ids.item() == 1
    torch.testing.assert_close(logprobs[0], wanted)
    torch.testing.assert_close(after[0], torch.log_softmax(torch.tensor([4.0, 2.0]), -1)[1])


def test_stop_text_ends_a_response(policy):
    free = Sampler(max_new_tokens=24).sample(policy, PROMPTS.select([0]), 1, seed=(0,))
    text = free[0]["responses"][0]
    letter = text[len(text) // 2]
    cut = Sampler(max_new_tokens=24, stop=(letter,)).sample(policy, PROMPTS.select([0]), 1, seed=(0,))
    assert cut[0]["responses"][0] == text[: text.index(letter) + 1]
    assert cut[0]["finished"] == [True]
    assert len(cut[0]["logprobs"][0]) == len(cut[0]["response_ids"][0])


def test_side_by_side_adds_up_and_refuses_other_prompts(policy, samples):
    hot = replace(Sampler(max_new_tokens=24), temperature=1.5).sample(policy, PROMPTS, 2, seed=(0, "hot"))
    both = sample_side_by_side([samples, hot])
    assert [len(row["responses"]) for row in both] == [5] * 4
    assert [s["temperature"] for s in both[0]["sampled_by"]] == [1.0] * 3 + [1.5] * 2
    with pytest.raises(DataError, match="same prompts"):
        sample_side_by_side([samples, hot.select([1, 0, 2, 3])])


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="temperature"):
        Sampler(temperature=0)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        Sampler(max_new_tokens=0)


def test_pace_and_time_left_are_told_from_a_quarter_on():
    """The first responses to end are the short ones, and most of what was written is not theirs."""
    lines: list[str] = []
    tell = _shown("sampling", lambda advance: lines.append(str(advance)))
    tell(1, 12, 10, 5.0)
    tell(3, 12, 300, 3.0)
    assert lines == ["sampling: 1/12 responses", "sampling: 3/12 responses, 100 tokens/s, 9 s left"]
