"""Intervals cover what they claim, closed forms hold, and nothing that is not a number gets through."""

from __future__ import annotations

import itertools
import math
import statistics
import subprocess
import sys

import numpy as np
import pytest

from alignkit.errors import ConfigError, NumericError
from alignkit.evaluation import (
    Interval,
    accuracy_by_level,
    best_of_n_curve,
    bootstrap_mean,
    paired_difference,
    per_prompt_scores,
    pooled,
    score_histogram,
    summarise_evaluation,
    wilson,
)

FAST = {"resamples": 400}


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.normal(0.7, 2.0, 60), 0.7),
        (lambda rng: (rng.random(80) < 0.3).astype(float), 0.3),
        (lambda rng: rng.exponential(1.0, 120), 1.0),
    ],
    ids=["normal", "bernoulli", "exponential"],
)
def test_the_interval_holds_the_true_mean_about_as_often_as_it_says(draw, truth):
    rng = np.random.default_rng(1)
    intervals = [bootstrap_mean(draw(rng), **FAST, seed=i) for i in range(400)]
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert 0.905 <= covered <= 0.98
    assert all(i.low <= i.mean <= i.high for i in intervals)


@pytest.mark.parametrize("prompts", [5, 7, 10])
@pytest.mark.parametrize(("draw", "truth"), [("normal", 0.0), ("uniform", 0.5), ("exponential", 1.0)])
def test_the_interval_of_a_few_prompts_holds_the_true_mean_too(draw, truth, prompts):
    """The percentile bootstrap held 0.80 (exponential, 5 prompts) to 0.90, Student's 0.89 of the exponential."""
    rng = np.random.default_rng(0)
    found = [bootstrap_mean(getattr(rng, draw)(size=prompts), resamples=400) for _ in range(600)]
    assert 0.915 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.99
    assert all(each.low <= each.mean <= each.high for each in found)


@pytest.mark.parametrize(("chance", "prompts"), [(0.02, 40), (0.1, 10), (0.9, 10), (0.5, 5)])
def test_the_interval_of_a_reward_of_plus_or_minus_one_holds_the_truth(chance, prompts):
    rng = np.random.default_rng(0)
    found = [bootstrap_mean(2.0 * (rng.random(prompts) < chance) - 1) for _ in range(400)]
    assert np.mean([each.low <= 2 * chance - 1 <= each.high for each in found]) >= 0.9


def test_scores_that_are_all_minus_one_are_not_certain():
    share = wilson(0, 16)
    found = bootstrap_mean([-1.0] * 16)
    assert (found.mean, found.low, found.high) == (-1.0, -1.0, pytest.approx(2 * share.high - 1))
    same = paired_difference([-1.0] * 16, [-1.0] * 16)
    zeros = paired_difference([0.0] * 16, [0.0] * 16)
    assert (same.low, same.high) == (pytest.approx(2 * zeros.low), pytest.approx(2 * zeros.high))


def test_scores_that_are_nearly_all_equal_have_an_interval_that_ends():
    found = bootstrap_mean([10.0] * 8 + [9.9, 0.0])
    assert 0 < found.low < 7 < 11 < found.high < 14


def test_the_interval_has_the_width_of_the_normal_one_for_many_prompts():
    values = np.random.default_rng(0).normal(size=2000)
    found = bootstrap_mean(values, resamples=4000)
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(2000), rel=0.06)


def test_a_wider_confidence_gives_a_wider_interval():
    values = np.random.default_rng(0).normal(size=50)
    half, most = (bootstrap_mean(values, confidence=c) for c in (0.5, 0.99))
    assert most.low < half.low < half.high < most.high


def test_one_seed_gives_one_interval_and_chunks_do_not_show(monkeypatch):
    values = np.random.default_rng(0).normal(size=37)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    whole = bootstrap_mean(values, resamples=2000)
    monkeypatch.setattr("alignkit.evaluation.statistics._CHUNK", 500)
    small = bootstrap_mean(values, resamples=2000)
    assert small.low == pytest.approx(whole.low, abs=0.03)
    assert small.high == pytest.approx(whole.high, abs=0.03)


def test_samples_of_one_prompt_are_one_unit():
    once = bootstrap_mean([0.0, 1.0, 2.0, 5.0])
    thrice = bootstrap_mean([[v] * 3 for v in (0.0, 1.0, 2.0, 5.0)])
    ragged = bootstrap_mean([[0.0], [1.0, 1.0], [2.0], [4.0, 6.0]])
    assert once == thrice == ragged
    assert once.n == 4


def test_constant_values_and_a_single_prompt_have_width_zero():
    assert bootstrap_mean([2.0] * 10) == Interval(2.0, 2.0, 2.0, 10)
    assert bootstrap_mean([2.0]) == Interval(2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_refused_everywhere(bad):
    calls = [
        lambda: bootstrap_mean([1.0, bad]),
        lambda: bootstrap_mean([[1.0, bad], [1.0, 2.0]]),
        lambda: bootstrap_mean({"a": bad}),
        lambda: paired_difference([1.0, bad], [1.0, 1.0]),
        lambda: pooled([[1.0], [bad]]),
        lambda: best_of_n_curve([[1.0, bad]]),
        lambda: accuracy_by_level([bad], [0.0]),
        lambda: score_histogram([bad], [0.0]),
    ]
    for call in calls:
        with pytest.raises(NumericError, match="NaN or infinite"):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_mean([]),
        lambda: bootstrap_mean([1.0], confidence=95),
        lambda: bootstrap_mean([1.0], resamples=0),
        lambda: paired_difference([1.0, 2.0], [1.0]),
        lambda: paired_difference({"a": 1.0}, {"b": 1.0}),
        lambda: paired_difference({"a": 1.0}, [1.0]),
        lambda: pooled([]),
        lambda: pooled([[1.0], {"a": 1.0}]),
        lambda: wilson(1, 0),
        lambda: best_of_n_curve([[1.0], []]),
        lambda: accuracy_by_level([1.0], [0.0], []),
    ],
)
def test_what_cannot_be_computed_is_an_error(call):
    with pytest.raises(ConfigError):
        call()


def test_pairing_removes_what_prompts_have_in_common():
    rng = np.random.default_rng(0)
    difficulty, noise = rng.normal(0, 10, 200), rng.normal(0, 0.1, 200)
    gain = paired_difference(difficulty + 0.5 + noise, difficulty)
    assert 0.45 < gain.low < gain.mean < gain.high < 0.55
    assert bootstrap_mean(difficulty).high - bootstrap_mean(difficulty).low > 2


def test_pairs_by_prompt_id_do_not_depend_on_order():
    a, b = {"x": 3.0, "y": 1.0, "z": 2.0}, {"z": 1.0, "x": 1.0, "y": 1.0}
    assert paired_difference(a, b) == paired_difference([3.0, 1.0, 2.0], [1.0, 1.0, 1.0])
    assert paired_difference(a, b).mean == pytest.approx(1.0)


def test_pooling_by_place_concatenates_and_by_prompt_id_averages_first():
    seeds = [[0.0, 1.0, 4.0], [2.0, 3.0]]
    assert pooled(seeds) == bootstrap_mean([0.0, 1.0, 4.0, 2.0, 3.0])
    shared = [{"a": 0.0, "b": 1.0, "c": 4.0}, {"b": 3.0, "a": 2.0, "c": 4.0}]
    assert pooled(shared) == bootstrap_mean([1.0, 2.0, 4.0])
    assert pooled([shared[0]] * 3) == bootstrap_mean(shared[0])
    assert not pooled([[0.0, 0.1, 0.05]]).overlaps(pooled([[1.0, 1.1, 1.05]]))


def test_wilson_matches_its_closed_form_and_stays_in_range():
    found = wilson(8, 10)
    assert (found.mean, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.49016, abs=1e-4)
    assert found.high == pytest.approx(0.94332, abs=1e-4)
    for k, n in [(0, 1), (1, 1), (0, 50), (50, 50), (1, 3)]:
        edge = wilson(k, n)
        assert 0.0 <= edge.low <= edge.mean <= edge.high <= 1.0
    assert wilson(50, 50).low < 0.94


def test_best_of_n_equals_the_mean_over_all_subsets():
    scores = np.random.default_rng(0).normal(size=(3, 6)).tolist()
    curve = best_of_n_curve(scores)
    assert list(curve) == [1, 2, 3, 4, 5, 6]
    for n, point in curve.items():
        subsets = [list(itertools.combinations(row, n)) for row in scores]
        for name, take in (("max", max), ("median", statistics.median)):
            brute = statistics.mean(statistics.mean(take(subset) for subset in rows) for rows in subsets)
            assert point[name] == pytest.approx(brute, abs=1e-12)
    assert curve[1]["max"] == pytest.approx(curve[1]["median"])
    assert [p["max"] for p in curve.values()] == sorted(p["max"] for p in curve.values())


def test_best_of_n_of_uniform_samples_is_n_over_n_plus_one():
    scores = np.random.default_rng(0).random((4000, 8))
    curve = best_of_n_curve(scores.tolist())
    assert curve[8]["max"] == pytest.approx(8 / 9, abs=0.01)
    assert curve[8]["median"] == pytest.approx(0.5, abs=0.01)


def test_best_of_n_of_many_samples_is_the_exact_expectation():
    """The k-th smallest of n is the i-th of N with probability C(i-1, k-1) C(N-i, n-k) / C(N, n): in whole numbers."""
    size = 120
    scores = [sorted(row) for row in np.random.default_rng(0).normal(size=(2, size)).tolist()]
    curve = best_of_n_curve(scores)

    def expected(n, k):
        counts = [math.comb(i, k - 1) * math.comb(size - 1 - i, n - k) for i in range(size)]
        return statistics.mean(
            math.fsum(count / math.comb(size, n) * value for count, value in zip(counts, row, strict=True))
            for row in scores
        )

    for n in (1, 2, 3, 60, 61, 119, 120):
        assert curve[n]["max"] == pytest.approx(expected(n, n), abs=1e-12)
        middle = {(n + 1) // 2, n // 2 + 1}
        assert curve[n]["median"] == pytest.approx(statistics.mean(expected(n, k) for k in middle), abs=1e-12)


def test_best_of_n_of_thousands_of_samples_stays_finite():
    curve = best_of_n_curve([list(range(1, 1501))])
    assert curve[1500]["max"] == pytest.approx(1500)
    assert curve[750]["max"] == pytest.approx(750 * 1501 / 751)  # n (N + 1) / (n + 1)
    assert curve[751]["median"] == pytest.approx(1501 / 2)


def test_best_of_n_ends_at_the_smallest_number_of_samples():
    """Of 1, 2, 3 twice and of 4, 6, each prompt weighing the same: the maximum of two is 8/3 or 6."""
    curve = best_of_n_curve([[1.0, 2.0, 3.0], [6.0, 4.0], [3.0, 2.0, 1.0]])
    assert list(curve) == [1, 2]
    assert curve[1] == {"max": pytest.approx(3), "median": pytest.approx(3)}
    assert curve[2] == {"max": pytest.approx((2 * 8 / 3 + 6) / 3), "median": pytest.approx(3)}


def test_accuracy_by_level_tells_ties_apart_and_keeps_the_levels_in_order():
    ratings = ["slightly_better", "significantly_better", "significantly_better", None, "my_level"]
    found = accuracy_by_level([1.0, 2.0, 2.0, 0.0, 1.0], [2.0, 1.0, 2.0, 0.0, 0.0], ratings)
    assert list(found["accuracy"]) == ["overall", "significantly_better", "slightly_better", "my_level"]
    assert found["ties"] == 2
    overall = found["accuracy"]["overall"]
    assert (overall["mean"], overall["n"], overall["ties"]) == (2 / 5, 5, 2)
    assert found["accuracy"]["significantly_better"]["mean"] == 0.5
    assert found["accuracy"]["slightly_better"]["mean"] == 0.0
    assert list(accuracy_by_level([1.0], [0.0])["accuracy"]) == ["overall"]


def test_a_constant_reward_model_does_not_look_right():
    found = accuracy_by_level([0.0] * 9, [0.0] * 9)
    assert found["accuracy"]["overall"]["mean"] == 0.0
    assert found["ties"] == 9


def test_the_histogram_counts_every_score_over_common_bins():
    found = score_histogram([1.0, 2.0, 3.0], [-1.0, 0.0], bins=4)
    assert len(found["edges"]) == 5
    assert (sum(found["chosen"]), sum(found["rejected"])) == (3, 2)


def _rows(shift: float, samples: int) -> list[dict]:
    return [
        {
            "prompt_id": f"p{p}",
            "sample": s,
            "scores": {"gold": p + s + shift},
            "kl": 0.5,
            "response_length": 10,
            "finished": s == 0,
        }
        for p in range(5)
        for s in range(samples)
    ]


def test_the_summary_of_a_version_has_means_pairs_and_best_of_n():
    found = summarise_evaluation(_rows(1.0, 3), _rows(0.0, 3), **FAST)
    assert found["metrics"]["gold"]["mean"] == pytest.approx(4.0)
    assert found["metrics"]["finished"]["mean"] == pytest.approx(1 / 3)
    assert found["paired_to_first"]["gold"] == {
        "mean": pytest.approx(1.0), "low": pytest.approx(1.0), "high": pytest.approx(1.0), "n": 5
    }  # fmt: skip
    assert found["best_of_n"]["3"] == {"max": pytest.approx(5.0), "median": pytest.approx(4.0)}
    alone = summarise_evaluation(_rows(0.0, 1), **FAST)
    assert "best_of_n" not in alone
    assert "paired_to_first" not in alone


def test_missing_scores_are_left_out_and_never_read_as_numbers():
    rows = [{"prompt_id": "a", "scores": {"gold": None}}, {"prompt_id": "b", "scores": {"gold": 1.0}}]
    assert per_prompt_scores(rows, "gold") == {"b": 1.0}
    assert summarise_evaluation(rows, **FAST)["metrics"] == {"gold": wilson(1, 1).to_dict()}


def test_statistics_need_no_torch():
    code = "import sys, alignkit.evaluation, alignkit.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def covered(intervals, truth):
    return float(np.mean([i["low"] <= truth <= i["high"] for i in intervals]))


@pytest.mark.parametrize(("prompts", "size"), [(16, 9), (40, 4), (40, 9)])
@pytest.mark.parametrize("spread", [0.3, 2.0, 50.0])
def test_the_accuracy_over_rankings_is_as_sure_as_its_prompts_are_many(prompts, size, spread):
    """Each prompt has an accuracy of its own, from a beta distribution of mean 0.7; all C(K, 2) pairs have it."""
    rng, found = np.random.default_rng(0), []
    of = np.repeat(np.arange(prompts), math.comb(size, 2))
    for _ in range(300):
        own = rng.beta(0.7 * spread, 0.3 * spread, prompts)
        right = (rng.random(len(of)) < own[of]).astype(float)
        found.append(accuracy_by_level(right, 1 - right, prompts=of)["accuracy"]["overall"])
    assert 0.9 <= covered(found, 0.7) <= 0.995
    assert {each["n"] for each in found} == {len(of)}


def test_pairs_of_prompts_of_their_own_have_wilsons_interval():
    right = np.array([1.0] * 7 + [0.0] * 3)
    for prompts in (None, [f"p{i}" for i in range(10)]):
        found = accuracy_by_level(right, 1 - right, prompts=prompts)["accuracy"]["overall"]
        assert found == {**wilson(7, 10).to_dict(), "ties": 0}


def test_pairs_that_all_agree_are_as_many_as_their_prompts():
    right = np.ones(36 * 5)
    found = accuracy_by_level(right, 1 - right, prompts=np.repeat(range(5), 36))["accuracy"]["overall"]
    assert found["low"] == pytest.approx(wilson(5, 5).low)
    halves = np.repeat([1.0, 0.0] * 16, 36)  # each of 32 prompts wholly right or wholly wrong
    found = accuracy_by_level(halves, 1 - halves, prompts=np.repeat(range(32), 36))["accuracy"]["overall"]
    assert found["high"] - found["low"] == pytest.approx(wilson(16, 32).high - wilson(16, 32).low, rel=0.03)
    alone = accuracy_by_level(right[:36], 1 - right[:36], prompts=[0] * 36)["accuracy"]["overall"]
    assert alone["low"] == pytest.approx(wilson(1, 1).low)


@pytest.mark.parametrize(("truth", "prompts"), [(0.02, 50), (0.97, 40), (0.5, 30), (0.1, 100)])
@pytest.mark.parametrize("samples", [1, 4])
def test_the_interval_of_zeros_and_ones_holds_the_truth_near_0_and_1_too(truth, prompts, samples):
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        # A third of the prompts decide for all their samples together, so that samples are not independent.
        hits = rng.random((prompts, samples)) < truth
        hits[: prompts // 3] = hits[: prompts // 3, :1]
        rows = [{"prompt_id": str(i), "scores": {"s": float(hit)}} for i in range(prompts) for hit in hits[i]]
        found.append(summarise_evaluation(rows)["metrics"]["s"])
    assert covered(found, truth) >= 0.9
    assert all(each["low"] <= each["mean"] <= each["high"] for each in found)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_score_that_is_the_same_everywhere_is_not_certain(value, samples):
    rows = [
        {"prompt_id": str(i), "scores": {"s": value}, "kl": 0.0, "finished": True}
        for i in range(16)
        for _ in range(samples)
    ]
    found = summarise_evaluation(rows, first=rows)
    assert found["metrics"]["s"] == wilson(int(16 * value), 16).to_dict()
    assert found["metrics"]["finished"] == wilson(16, 16).to_dict()
    assert found["metrics"]["kl"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 16}
    pair = found["paired_to_first"]["s"]
    assert (pair["mean"], -pair["low"]) == (0.0, pair["high"])
    assert pair["high"] == pytest.approx(1.96 * math.sqrt(2 / 18 / 18), rel=1e-3)


@pytest.mark.parametrize(("up", "down", "prompts"), [(0.03, 0.01, 60), (0.3, 0.1, 40), (0.0, 0.02, 50)])
def test_the_interval_of_paired_zeros_and_ones_holds_the_truth(up, down, prompts):
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        draw = rng.random(prompts)
        a, b = (draw < up).astype(float), ((draw >= up) & (draw < up + down)).astype(float)
        found.append(paired_difference(a, b).to_dict())
    assert covered(found, up - down) >= 0.92
