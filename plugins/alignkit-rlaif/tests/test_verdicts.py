"""The arithmetic of verdicts, and the loss on soft labels: golden values and what must hold whatever the judge says."""

from __future__ import annotations

import math

import pytest
import torch
from alignkit_rlaif.losses import soft_ranking
from alignkit_rlaif.verdicts import (
    both_orders,
    clamp,
    consistent,
    expected_score,
    ranks_of,
    rating_of,
    two_way,
    unit_score,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.plugin import logistic_ranking

quick = settings(max_examples=100, deadline=None)
probs = st.floats(0, 1, exclude_min=True, exclude_max=True)


def test_two_passes_of_log_probs_give_the_worked_example() -> None:
    a_first = two_way([math.exp(-0.2), math.exp(-1.7)])
    b_first = two_way([math.exp(-0.5), math.exp(-0.9)])
    assert a_first == pytest.approx(0.817574476, abs=1e-9)
    assert b_first == pytest.approx(0.598687660, abs=1e-9)
    assert both_orders(a_first, b_first) == pytest.approx(0.609443408, abs=1e-9)


@quick
@given(probs, probs)
def test_exchanging_the_responses_exchanges_the_probability(ab: float, ba: float) -> None:
    assert both_orders(ab, ba) + both_orders(ba, ab) == pytest.approx(1, abs=1e-15)
    assert 0 <= both_orders(ab, ba) <= 1


@quick
@given(probs)
def test_a_judge_of_places_gives_exactly_one_half_and_is_inconsistent(first: float) -> None:
    assert both_orders(first, first) == 0.5
    assert not consistent(first, first)


def test_consistency_means_that_both_orders_name_one_response() -> None:
    assert consistent(0.9, 0.2)
    assert consistent(0.1, 0.6)
    assert not consistent(0.9, 0.6)
    assert not consistent(0.5, 0.1)


def test_the_clamp_of_constitutional_ai() -> None:
    assert clamp(0.97, 0.4, 0.6) == 0.6
    assert clamp(0.03, 0.4, 0.6) == 0.4
    assert clamp(0.55, 0.4, 0.6) == 0.55


def test_strength_of_preference_gives_the_four_levels_whichever_side_is_preferred() -> None:
    expected = {
        0.95: "significantly_better",
        0.9: "significantly_better",
        0.8: "better",
        0.65: "slightly_better",
        0.55: "negligibly_better_or_unsure",
        0.5: "negligibly_better_or_unsure",
    }
    assert {p: rating_of(p) for p in expected} == expected
    assert {p: rating_of(1 - p) for p in (0.95, 0.8, 0.65)} == {p: expected[p] for p in (0.95, 0.8, 0.65)}


def test_the_expected_score_is_a_mean_over_the_normalised_scores() -> None:
    assert expected_score([0.0] * 9 + [0.3]) == pytest.approx(10)
    assert expected_score([0.1] * 10) == pytest.approx(5.5)
    assert expected_score([0.1, 0.0, 0.3]) == pytest.approx((0.1 * 1 + 0.3 * 3) / 0.4)
    assert [unit_score(s, 10) for s in (1, 5.5, 10)] == [-1, 0, 1]


def test_ranks_are_those_of_the_core() -> None:
    assert ranks_of([0.2, 0.9, 0.9, 0.1]) == [3, 1, 1, 4]


# -- soft labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_soft_ranking_has_its_golden_value(dtype: torch.dtype) -> None:
    chosen, rejected, p = (torch.tensor([v], dtype=dtype) for v in (3.0, 2.0, 0.6))
    assert float(soft_ranking(chosen, rejected, p)) == pytest.approx(
        0.713261688, abs=1e-9 if dtype.itemsize == 8 else 1e-6
    )


def test_a_certain_label_is_pairwise_ranking() -> None:
    chosen, rejected = torch.tensor([1.5, -0.3, 40.0]), torch.tensor([0.2, 0.4, -40.0])
    torch.testing.assert_close(soft_ranking(chosen, rejected, torch.ones(3)), logistic_ranking(chosen - rejected))


def test_a_label_of_one_half_has_no_gradient_where_the_scores_are_equal() -> None:
    chosen = torch.zeros(1, requires_grad=True)
    soft_ranking(chosen, torch.zeros(1), torch.tensor([0.5])).sum().backward()
    assert float(chosen.grad) == 0


def test_exchanging_the_pair_and_its_label_changes_nothing() -> None:
    a, b, p = torch.tensor([0.7, -2.0]), torch.tensor([0.1, 3.0]), torch.tensor([0.8, 0.6])
    torch.testing.assert_close(soft_ranking(a, b, p), soft_ranking(b, a, 1 - p))
