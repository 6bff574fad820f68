"""The ranking losses against golden values and their invariants (float64 and float32)."""

from __future__ import annotations

import math

import pytest
import torch
from alignkit_margin_rm import MARGINS, margin_ranking, margin_ranking_with_safety, pairwise_ranking, rating_margins
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import ConfigError, DataError
from alignkit.plugin import RATINGS

DTYPES = [torch.float64, torch.float32]
GOLDEN = {  # -log sigmoid(0.5 - m)
    0: 0.474076984,
    1 / 3: 0.613282058,
    2 / 3: 0.779948725,
    1: 0.974076984,
    2: 1.701413278,
    3: 2.578889734,
}
quick = settings(max_examples=40, deadline=None)
scores = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=6)


def close(actual: torch.Tensor, expected: list[float], dtype: torch.dtype = torch.float64) -> None:
    tolerance = 1e-8 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=dtype), rtol=tolerance, atol=tolerance)


def softplus(x: float) -> float:
    """log(1 + e^x) in plain Python: -log sigmoid(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("table", "margins"), [("small", [1, 2 / 3, 1 / 3, 0, 0]), ("large", [3, 2, 1, 0, 0]), ("none", [0] * 5)]
)
def test_margin_ranking_golden(dtype: torch.dtype, table: str, margins: list[float]) -> None:
    chosen, rejected = torch.full((5,), 1.75, dtype=dtype), torch.full((5,), 1.25, dtype=dtype)
    rating = torch.tensor([0, 1, 2, 3, -1])
    close(margin_ranking(chosen, rejected, rating, table=table), [GOLDEN[m] for m in margins], dtype)
    close(pairwise_ranking(chosen, rejected, torch.tensor(margins, dtype=dtype)), [GOLDEN[m] for m in margins], dtype)


def test_a_margin_of_the_data_takes_the_place_of_the_ratings() -> None:
    """2 where the data says so, rated or not; where it says nothing the rating counts."""
    chosen, rejected = torch.full((3,), 1.75), torch.full((3,), 1.25)
    rating, margin, safe = torch.tensor([-1, 0, 0]), torch.tensor([2.0, 2.0, 0.0]), torch.full((3,), -1.0)
    wanted = [GOLDEN[2], GOLDEN[2], GOLDEN[1]]
    close(margin_ranking(chosen, rejected, rating, margin), wanted, torch.float32)
    close(margin_ranking_with_safety(chosen, rejected, rating, safe, safe, margin), wanted, torch.float32)


def test_tables_follow_the_scale_of_ratings() -> None:
    for table in MARGINS.values():
        assert len(table) == len(RATINGS)
        assert list(table) == sorted(table, reverse=True)


@quick
@given(scores, st.data())
def test_margin_zero_is_plain_bradley_terry_bitwise(chosen: list[float], data: st.DataObject) -> None:
    rejected = data.draw(st.lists(st.floats(-20, 20, width=32), min_size=len(chosen), max_size=len(chosen)))
    for dtype in DTYPES:
        a, b = torch.tensor(chosen, dtype=dtype), torch.tensor(rejected, dtype=dtype)
        plain = -torch.nn.functional.logsigmoid(a - b)
        rating = torch.tensor([0, 1, 2, 3, -1, 0][: len(a)])
        assert torch.equal(margin_ranking(a, b, rating, table="none"), plain)
        assert torch.equal(margin_ranking(a, b, torch.full_like(rating, -1)), plain)
        assert torch.equal(margin_ranking(a, b, torch.full_like(rating, 3)), plain)
        assert torch.equal(pairwise_ranking(a, b, torch.zeros_like(a)), plain)


@quick
@given(st.floats(-20, 20), st.floats(-20, 20), st.sampled_from([0, 1, 2, 3]), st.floats(-5, 5))
def test_against_plain_python_shift_swap_and_gradient(c: float, r: float, level: int, shift: float) -> None:
    m = MARGINS["small"][level]
    chosen, rejected = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (c, r))
    rating = torch.tensor([level])
    loss = margin_ranking(chosen, rejected, rating)
    assert loss.item() == pytest.approx(softplus(-(c - r - m)), rel=1e-9, abs=1e-12)
    assert margin_ranking(chosen + shift, rejected + shift, rating).item() == pytest.approx(loss.item(), abs=1e-9)
    none = torch.tensor([-1])
    swapped, straight = margin_ranking(rejected, chosen, none), margin_ranking(chosen, rejected, none)
    assert swapped.item() == pytest.approx(straight.item() + (c - r), abs=1e-9)
    loss.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-1 / (1 + math.exp(c - r - m)), abs=1e-9)
    assert float(rejected.grad) == -float(chosen.grad)


def test_a_larger_margin_costs_more() -> None:
    d, zero = torch.full((4,), 0.5), torch.zeros(4)
    loss = margin_ranking(d, zero, torch.arange(4))
    assert loss.tolist() == sorted(loss.tolist(), reverse=True)
    assert (margin_ranking(d, zero, torch.arange(4), table="large") >= loss).all()


@pytest.mark.parametrize("level", [4, -2, 9])
def test_a_rating_outside_the_table_is_refused(level: int) -> None:
    with pytest.raises(DataError, match=rf"\[{level}\] are outside"):
        margin_ranking(torch.zeros(2), torch.zeros(2), torch.tensor([0, level]))


def test_an_unknown_table_and_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="huge"):
        rating_margins(torch.tensor([0]), "huge")
    with pytest.raises(ConfigError, match="shapes differ"):
        pairwise_ranking(torch.zeros(2), torch.zeros(2), torch.zeros(1))


def test_extreme_scores_stay_finite() -> None:
    loss = margin_ranking(torch.tensor([-500.0, 500.0]), torch.tensor([500.0, -500.0]), torch.tensor([0, 0]))
    assert loss.tolist() == [1001.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_safety_term_against_plain_python(dtype: torch.dtype) -> None:
    chosen, rejected = torch.tensor([2.0, -1.0, 0.5], dtype=dtype), torch.tensor([1.0, 0.5, -3.0], dtype=dtype)
    rating = torch.tensor([0, 3, -1])
    chosen_safe, rejected_safe = torch.tensor([1, 0, -1]), torch.tensor([1, 1, -1])
    loss = margin_ranking_with_safety(chosen, rejected, rating, chosen_safe, rejected_safe, safety_weight=0.5)
    safe = [softplus(-2.0) + softplus(-1.0), softplus(-1.0) + softplus(-0.5), 0.0]
    ranking = margin_ranking(chosen, rejected, rating).tolist()
    close(loss, [r + 0.5 * s / 2 for r, s in zip(ranking, safe, strict=True)], dtype)


def test_without_safety_labels_or_weight_it_is_margin_ranking_bitwise() -> None:
    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.5])
    rating, unknown, safe = torch.tensor([0, 2]), torch.tensor([-1.0, -1.0]), torch.tensor([True, False])
    plain = margin_ranking(chosen, rejected, rating)
    assert torch.equal(margin_ranking_with_safety(chosen, rejected, rating, unknown, unknown), plain)
    assert torch.equal(margin_ranking_with_safety(chosen, rejected, rating, safe, safe, safety_weight=0.0), plain)


def test_safety_pushes_unsafe_scores_down_and_safe_ones_up() -> None:
    chosen, rejected = (torch.zeros(1, requires_grad=True) for _ in range(2))
    arguments = (torch.tensor([-1]), torch.tensor([0]), torch.tensor([1]))
    margin_ranking_with_safety(chosen, rejected, *arguments, safety_weight=10.0).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert float(chosen.grad) > 0 > float(rejected.grad)


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    rating, safe, other = torch.tensor([0, 1, 2, 3, -1]), torch.tensor([1, 0, -1, 1, 0]), torch.tensor([0, 0, 1, -1, 1])
    assert torch.autograd.gradcheck(
        lambda c, r: margin_ranking_with_safety(c, r, rating, safe, other), (chosen, rejected)
    )
