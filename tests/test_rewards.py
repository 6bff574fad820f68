"""Rewards: raw scores, missing ones with their reason, and the piecewise rule on the raw scale."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch

from alignkit.engine.judging import Judging
from alignkit.engine.setting import Setting
from alignkit.errors import ConfigError, DataError
from alignkit.evaluation.threshold import pick_threshold
from alignkit.functional import is_constant, whiten
from alignkit.groups import Groups
from alignkit.meter import Meter
from alignkit.rewards import FunctionReward, Piecewise, Reward, Scores, WeightedSum, score_groups
from alignkit.stages.handles import RewardHandle


def logit(p):
    return math.log(p / (1 - p))


class Given(Reward):
    """Scores as told, in order."""

    def __init__(self, name, values):
        self.name, self.values, self.calls = name, values, 0

    def score(self, groups):
        self.calls += 1
        flat = iter(self.values)
        values = [[next(flat) for _ in row["responses"]] for row in groups]
        return Scores(values, [[None if v is not None else f"{self.name} is silent" for v in row] for row in values])

    def key(self):
        return self.name


def four(tags=(True, False, False, True)):
    return Groups.from_rows(
        {"prompt": f"p{i}", "responses": ["r"], "tags": ["safety"] if t else []} for i, t in enumerate(tags)
    )


def test_piecewise_golden():
    """R_s = [.9 .1 .9 .1], R_h = [.3 .8 .6 .2], tagged [T F F T] -> [.9 .1 .6 .1], on raw scores."""
    safe, helpful = [0.9, 0.1, 0.9, 0.1], [0.3, 0.8, 0.6, 0.2]
    reward = Piecewise(Given("s", [logit(p) for p in safe]), Given("h", [logit(p) for p in helpful]))
    values, _ = score_groups(four(), reward).rewards("piecewise")
    assert [v[0] for v in values] == pytest.approx([logit(p) for p in (0.9, 0.1, 0.6, 0.1)])
    assert reward.raw_threshold == pytest.approx(-1.7346010553881064)


def test_threshold_is_compared_on_the_raw_scale():
    """A raw safety score of 0.1 is a probability of 0.52: safe, so helpfulness counts."""
    reward = Piecewise(Given("s", [0.1, -1.74]), Given("h", [5.0, 5.0]))
    values, _ = score_groups(four((False, False)), reward).rewards("piecewise")
    assert [v[0] for v in values] == [5.0, -1.74]


def test_saturated_scores_stay_finite_and_apart():
    reward = Piecewise(Given("s", [40.0, 41.0]), Given("h", [0.0, 0.0]))
    values, _ = score_groups(four((True, True)), reward).rewards("piecewise")
    assert [v[0] for v in values] == [40.0, 41.0]


def test_normalised_parts_have_mean_0_and_variance_1_over_what_each_judges_and_the_threshold_stays_raw():
    """R_s = [1 . . 3 -2], R_h = [. 10 20 . 15], tagged [T F F T F]: s has mean 2 and h 15 over their own kinds."""
    tags = (True, False, False, True, False)
    safe, helpful = Given("s", [1.0, 5.0, 5.0, 3.0, -2.0]), Given("h", [7.0, 10.0, 20.0, 7.0, 15.0])
    plain = Piecewise(safe, helpful)
    raw = score_groups(four(tags), plain)
    assert [v[0] for v in raw.rewards("piecewise")[0]] == [1.0, 10.0, 20.0, 3.0, -2.0]
    reward = plain.normalised(raw)
    assert reward.safety_scale == pytest.approx((2.0, math.sqrt(2)))
    assert reward.helpfulness_scale == pytest.approx((15.0, 5.0))
    scored = score_groups(four(tags), reward)
    found = [v[0] for v in scored.rewards("piecewise")[0]]
    assert found == pytest.approx([-1 / math.sqrt(2), -1.0, 1.0, 1 / math.sqrt(2), -4 / math.sqrt(2)])
    assert [v[0] for v in scored.rewards("s")[0]] == [1.0, 5.0, 5.0, 3.0, -2.0]  # the parts stay raw
    assert reward.key() != plain.key()
    assert replace(reward, safety_scale=(0.0, 1.0), helpfulness_scale=(0.0, 1.0)).key() == plain.key()


def test_a_part_that_judges_no_two_responses_apart_keeps_its_scale():
    """Without prompts of the other kind nothing is compared across kinds, so there is nothing to put on one scale."""
    plain = Piecewise(Given("s", [1.0, 3.0, 1.0, 3.0]), Given("h", [3.0, 4.0, 5.0, 6.0]))
    found = plain.normalised(score_groups(four((True, True, True, True)), plain))
    assert found.helpfulness_scale == (0.0, 1.0)
    assert found.safety_scale == pytest.approx((2.0, math.sqrt(4 / 3)))
    alike = Piecewise(Given("s", [1.0, 1.0]), Given("h", [3.0, 4.0]))
    assert alike.normalised(score_groups(four((True, True)), alike)) == alike
    with pytest.raises(ConfigError, match=r"safety_scale=.*must be positive"):
        Piecewise(Given("s", []), Given("h", []), safety_scale=(0.0, 0.0))


def test_parts_are_logged_and_asked_once():
    safe, helpful = Given("s", [1.0] * 4), Given("h", [2.0] * 4)
    groups = score_groups(four(), Piecewise(safe, helpful))
    assert groups.reward_names() == ["h", "piecewise", "s"]
    assert safe.calls == helpful.calls == 1
    assert score_groups(groups, Piecewise(safe, helpful)).reward_names() == ["h", "piecewise", "s"]


class OfAModel(Reward):
    """The length of a response, as a model would say it; notes what it was asked about."""

    computed_in = "float32"

    def __init__(self, name):
        self.name, self.asked = name, []

    def score(self, groups):
        self.asked.append([row["prompt"][0]["content"] for row in groups])
        return Scores([[float(len(r)) for r in row["responses"]] for row in groups], [[None] for _ in groups], 7, 70)

    def key(self):
        return self.name


@pytest.mark.parametrize("tags", [(True, False, False, True), (True,) * 4, (False,) * 4])
def test_a_model_of_helpfulness_reads_only_what_its_score_is_needed_of(tags):
    safe, helpful = OfAModel("s"), OfAModel("h")
    needed = [f"p{i}" for i, tagged in enumerate(tags) if not tagged]
    meter = Meter()
    groups = score_groups(four(tags), Piecewise(safe, helpful), meter)
    assert safe.asked == [["p0", "p1", "p2", "p3"]]
    assert helpful.asked == ([needed] if needed else [])
    assert [present[0] for present in groups.rewards("h")[1]] == [not tagged for tagged in tags]
    assert groups.rewards("piecewise") == ([[1.0]] * 4, [[True]] * 4)
    assert meter.counts["scored_tokens"] == 7 * (1 + bool(needed))
    alone = Piecewise(OfAModel("s"), OfAModel("h")).score(four(tags))
    assert alone.values == [[1.0]] * 4
    assert (alone.tokens, alone.flops) == (7 * (1 + bool(needed)), 70 * (1 + bool(needed)))


def test_missing_part_is_missing_with_its_reason():
    groups = score_groups(four((True,)), Piecewise(Given("s", [None]), Given("h", [2.0])))
    values, present = groups.rewards("piecewise")
    assert (values, present) == ([[0.0]], [[False]])
    assert next(r for r in groups[0]["rewards"] if r["name"] == "piecewise")["reasons"] == ["s is silent"]


def test_weighted_sum():
    reward = WeightedSum((Given("a", [1.0, None]), Given("b", [10.0, 1.0])), (2.0, -0.5))
    values, present = score_groups(four((False, False)), reward).rewards("weighted_sum")
    assert values[0] == [-3.0]
    assert present == [[True], [False]]
    with pytest.raises(ConfigError, match="weights"):
        WeightedSum((Given("a", []),), (1.0, 2.0))
    with pytest.raises(ConfigError, match="share a name"):
        score_groups(four(), WeightedSum((Given("a", [0.0] * 4), Given("a", [0.0] * 4)), (1.0, 1.0)))


def test_functions_get_what_they_name():
    rows = [{"prompt": "hello", "responses": ["ab", "abc"], "tags": ["t"], "meta": {"k": 1}, "finished": [True, False]}]

    def reward(prompt, response, finished, tags, meta):
        return len(prompt) + len(response) + 100 * finished + len(tags) + meta["k"]

    assert FunctionReward(reward).score(Groups.from_rows(rows)).values == [[109.0, 10.0]]

    def odd(respones):
        return 0.0

    with pytest.raises(ConfigError, match="respones"):
        FunctionReward(odd)


ROW = {"prompt": "p", "responses": ["x", "y"], "finished": [True, False], "meta": {"k": 3}, "tags": ["t"]}


def with_defaults(response, finished=None, meta=None, *, tags=(), strength=5.0):
    return {None: -1.0, True: 1.0, False: 0.0}[finished] + 10.0 * bool(meta) + 100.0 * len(tags) + 1000 * strength


def with_the_rest(response, **rest):
    return float(len(rest)) + rest["finished"]


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (with_defaults, [5111.0, 5110.0]),
        (functools.partial(with_defaults, tags=()), [5011.0, 5010.0]),
        (functools.partial(with_defaults, strength=0.0), [111.0, 110.0]),
        (with_the_rest, [7.0, 6.0]),
    ],
)
def test_what_is_offered_is_passed_whether_it_has_a_default_or_not(function, values):
    assert FunctionReward(function, "r").score(Groups.from_rows([ROW])).values == [values]


def test_what_can_only_be_given_by_position_is_refused():
    def by_place(response, /):
        return 0.0

    with pytest.raises(ConfigError, match="by position"):
        FunctionReward(by_place)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_no_number_for_a_failure(value):
    def broken(response):
        return value

    scores = FunctionReward(broken).score(four((True,)))
    assert scores.values == [[None]]
    assert scores.reasons[0][0]
    assert scores.missing() == 1


def test_unknown_reward_name_is_refused():
    with pytest.raises(DataError, match="no reward"):
        four().rewards("gold")


def test_threshold_is_picked_with_precision_and_recall():
    scores = [-3.0, -2.5, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    safe = [False, False, True, False, True, True, False, True]
    choice = pick_threshold(scores, safe, min_precision=0.75)
    assert choice.precision == pytest.approx(0.75)
    assert choice.recall == pytest.approx(0.75)
    assert choice.threshold == pytest.approx(1 / (1 + math.exp(0.5)))
    strict = pick_threshold(scores, safe, min_precision=0.9)
    assert (strict.precision, strict.recall) == (1.0, 0.5)
    assert len(choice.table) == 8
    with pytest.raises(ConfigError, match="unsafe"):
        pick_threshold([1.0], [True])


# -- the type that scores are computed in ------------------------------------------------------------------------------


class Says(Reward):
    """Scores of the responses in turn."""

    name = "says"

    def __init__(self, *values, computed_in="float64"):
        self.values, self.computed_in = values, computed_in

    def score(self, groups):
        values = iter(self.values)
        return Scores([[next(values) for _ in row["responses"]] for row in groups], [[None] * 2 for _ in groups])

    def key(self):
        return list(self.values)


PAIR = Groups.from_rows([{"prompt": "a", "responses": ["b", "c"]}])
NOISE = float(torch.tensor(1.2345678)), float(torch.nextafter(torch.tensor(1.2345678), torch.tensor(2.0)))


def judged(reward):
    judging = Judging(Setting(seed=(0, "s"), max_tokens=100), reward)
    return judging.rewards(judging.score(PAIR))[0]


@pytest.mark.parametrize("values", [(1e8, 1e8 + 1), (1e6, 1e6 + 1), (1e6 + 0.5, 1e6), (0.1, 0.1 + 1e-9)])
def test_scores_of_a_function_that_differ_are_told_apart(values):
    """In float32 the first two are one number, and the others closer than its rounding."""
    found = judged(Says(*values))
    assert found.dtype is torch.float64
    assert not bool(is_constant(found))
    assert math.copysign(1, float(whiten(found)[0])) == math.copysign(1, values[0] - values[1])
    if values[0] > 1:  # beside the eps of a variance the last is nearly nothing
        assert whiten(found).abs().tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize(
    "reward",
    [
        Says(*NOISE),
        Says(*(0.3 * each for each in NOISE), computed_in="float32"),
        WeightedSum((Says(*NOISE),), (0.3,)),
        WeightedSum((Says(*(0.3 * each for each in NOISE), computed_in="float32"),), (0.3,)),
    ],
    ids=["a function", "as it says", "a part", "a part as it says"],
)
def test_the_rounding_of_a_model_is_no_difference(reward):
    found = judged(reward)
    assert found.dtype is torch.float32
    assert bool(is_constant(found))
    assert whiten(found).tolist() == [0.0, 0.0]


def test_a_reward_model_computes_in_float32():
    assert RewardHandle.computed_in == "float32"
