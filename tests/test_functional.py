"""The pure functions against golden values, plain-Python references and their invariants (float64 and float32)."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import functional as F
from alignkit.errors import ConfigError, DataError
from alignkit.fields import check_range
from alignkit.functional import logistic_ranking, preference_cross_entropy

DTYPES = [torch.float64, torch.float32]
quick = settings(max_examples=40, deadline=None)
finite = st.floats(-5, 5, width=32)


def close(actual: torch.Tensor, expected: object, dtype: torch.dtype = torch.float64) -> None:
    wanted = torch.as_tensor(expected, dtype=dtype)
    tolerance = 1e-8 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(actual.to(dtype), wanted, rtol=tolerance, atol=tolerance)


@st.composite
def ragged(draw: st.DrawFn, fields: int = 2) -> list[list[list[float]]]:
    """`fields` lists of rows that share their lengths (1 to 6 tokens, 1 to 4 rows)."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return [[draw(st.lists(finite, min_size=n, max_size=n)) for n in lengths] for _ in range(fields)]


def pad(rows: list[list[float]], extra: int = 0, fill: float = 0.0) -> torch.Tensor:
    width = max(map(len, rows)) + extra
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.float64)


def mask_of(rows: list[list[float]], extra: int = 0) -> torch.Tensor:
    return ~torch.isnan(pad(rows, extra, math.nan))


def gae_by_definition(r: list[float], v: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}: the definition, not the recursion."""
    n = len(r)
    delta = [r[t] + gamma * (v[t + 1] if t + 1 < n else 0.0) - v[t] for t in range(n)]
    return [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)]


# -- GAE ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("gamma", "lam", "advantages"),
    [
        (1, 0.95, [0.46575, 0.385, 0.3]),
        (1, 1, [0.5, 0.4, 0.3]),
        (0.9, 0.5, [0.11425, 0.165, 0.3]),
        (1, 0, [0.1, 0.1, 0.3]),
    ],
)
def test_gae_golden(dtype: torch.dtype, gamma: float, lam: float, advantages: list[float]) -> None:
    rewards = torch.tensor([[0, 0, 1, 99]], dtype=dtype)
    values = torch.tensor([[0.5, 0.6, 0.7, -99]], dtype=dtype)
    got, returns = F.gae(rewards, values, torch.tensor([[1, 1, 1, 0]]), gamma, lam)
    close(got, [[*advantages, 0.0]], dtype)
    close(returns, [[advantages[0] + 0.5, advantages[1] + 0.6, advantages[2] + 0.7, 0.0]], dtype)


@quick
@given(ragged(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 3))
def test_gae_is_its_definition_whatever_the_padding(
    rows: list[list[list[float]]], gamma: float, lam: float, extra: int
) -> None:
    rewards, values = rows
    mask = mask_of(rewards, extra)
    got, returns = F.gae(pad(rewards, extra, math.nan), pad(values, extra, math.nan), mask, gamma, lam)
    expected = [gae_by_definition(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)]
    torch.testing.assert_close(got, pad(expected, extra), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(returns, pad(expected, extra) + pad(values, extra), rtol=1e-9, atol=1e-9)


@quick
@given(ragged())
def test_gae_monte_carlo_returns_do_not_depend_on_values(rows: list[list[list[float]]]) -> None:
    rewards, values = rows
    _, returns = F.gae(pad(rewards), pad(values), mask_of(rewards), 1.0, 1.0)
    to_come = [[sum(row[t:]) for t in range(len(row))] for row in rewards]
    torch.testing.assert_close(returns, pad(to_come), rtol=1e-9, atol=1e-9)


def test_gae_discount_and_lambda_are_not_the_same_thing() -> None:
    rewards, values, mask = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2)
    a, _ = F.gae(rewards, values, mask, 0.5, 1.0)
    b, _ = F.gae(rewards, values, mask, 1.0, 0.5)
    close(a, [[-0.5, -1.0]], torch.float32)
    close(b, [[0.5, -1.0]], torch.float32)


# -- masked statistics -------------------------------------------------------------------------------------------------


def test_token_mean_is_not_the_mean_of_means() -> None:
    x, mask = pad([[2.0, 2.0, 2.0, 2.0], [-1.0]], fill=math.nan), mask_of([[0.0] * 4, [0.0]])
    close(F.masked_mean(x, mask), 1.4)  # 7 / 5, where the mean of the means would be 0.5
    close(F.masked_mean(x, mask, 1), [2.0, -1.0])
    close(F.masked_sum(x, mask, 1), [8.0, -1.0])


def test_an_empty_row_has_mean_zero_and_a_clean_gradient() -> None:
    x = torch.tensor([[math.nan, math.inf]], requires_grad=True)
    mean = F.masked_mean(x, torch.zeros(1, 2, dtype=torch.bool), 1)
    mean.sum().backward()
    assert mean.tolist() == [0.0]
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_whiten_golden(dtype: torch.dtype) -> None:
    x = torch.tensor([1, 2, 3, 4], dtype=dtype)
    close(F.whiten(x), [-1.3416407811, -0.4472135937, 0.4472135937, 1.3416407811], dtype)
    close(F.whiten(x, shift_mean=False), [1.15835922, 2.05278641, 2.94721359, 3.84164078], dtype)
    assert abs(float(F.whiten(x)[3]) - 1.1618950) > 0.1  # the unbiased variance


@quick
@given(st.lists(finite, min_size=2, max_size=9).filter(lambda x: statistics.pstdev(x) > 1e-2), st.integers(0, 3))
def test_whiten_of_masked_is_whiten_of_what_is_shown(items: list[float], extra: int) -> None:
    x = pad([items], extra, math.nan)
    got = F.whiten(x, mask_of([items], extra))
    mean, deviation = statistics.fmean(items), math.sqrt(statistics.pvariance(items) + 1e-8)
    expected = [(value - mean) / deviation for value in items]
    torch.testing.assert_close(got, pad([expected], extra), rtol=1e-7, atol=1e-7)
    shown = got[0, : len(items)]
    assert abs(float(shown.mean())) < 1e-7
    assert abs(float(shown.var(unbiased=False)) - 1) < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [1.0, 5.3, 37.7, 100.1, -1000.3, 1e-6])
def test_numbers_that_are_equal_up_to_rounding_whiten_to_nothing(value: float, dtype: torch.dtype) -> None:
    """What lies one spacing of the dtype apart is one number; ten thousand spacings apart it is two."""
    alike = torch.full((64,), value, dtype=dtype)
    near = torch.nextafter(alike, alike + alike.abs()).where(torch.arange(64) % 2 == 0, alike)
    for x in (alike, near):
        assert bool(F.is_constant(x))
        assert float(F.whiten(x).abs().max()) == 0.0
        torch.testing.assert_close(F.whiten(x, shift_mean=False), alike, rtol=1e-5, atol=0)
        assert float(F.explained_variance(torch.randn(64, dtype=dtype), x)) == 0.0
    apart = alike * (1 + 1e4 * torch.finfo(dtype).eps * (torch.arange(64) % 2).to(dtype))
    assert not bool(F.is_constant(apart))
    hidden = torch.cat([alike, torch.tensor([math.nan, 1e9], dtype=dtype)])
    shown = torch.arange(66) < 64
    assert float(F.whiten(hidden, shown).abs().max()) == 0.0


def test_whiten_needs_two() -> None:
    with pytest.raises(ConfigError, match="2 or more"):
        F.whiten(torch.ones(2, 2), torch.tensor([[1, 0], [0, 0]]))
    close(F.whiten(torch.tensor([3.0, 3.0])), [0.0, 0.0], torch.float32)


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, 7.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    close(F.explained_variance(returns + 5, returns, mask), 1.0, torch.float32)
    close(F.explained_variance(torch.zeros(1, 4), returns, mask), 0.0, torch.float32)
    close(F.explained_variance(-returns, returns, mask), -3.0, torch.float32)
    close(F.explained_variance(returns, torch.ones(1, 4), mask), 0.0, torch.float32)


@quick
@given(ragged(fields=1))
def test_hidden_elements_get_no_gradient(rows: list[list[list[float]]]) -> None:
    (items,) = rows
    items = [[*row, row[0] + 1.0] for row in items]
    mask = mask_of(items, 2)
    x = pad(items, 2, math.nan).requires_grad_()
    (F.whiten(x, mask) * torch.arange(x.numel()).reshape(x.shape)).sum().backward()
    assert x.grad is not None
    assert not x.grad[~mask].any()
    assert x.grad[mask].isfinite().all()


# -- KL estimators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("gap", "k3"), [(0.1, 0.004837418036), (-0.1, 0.005170918076)])
def test_kl_estimators_golden(dtype: torch.dtype, gap: float, k3: float) -> None:
    pi, ref = torch.tensor([gap - 1], dtype=dtype), torch.tensor([-1.0], dtype=dtype)
    close(F.k1(pi, ref), [gap], dtype)
    close(F.k2(pi, ref), [0.005], dtype)
    close(F.k3(pi, ref), [k3], dtype)


def test_kl_estimators_by_enumeration() -> None:
    """Over a vocabulary of five, k1 and k3 are unbiased and k2 is not."""
    generator = torch.Generator().manual_seed(0)
    pi, ref = torch.randn(2, 5, dtype=torch.float64, generator=generator).log_softmax(-1)
    kl = float((pi.exp() * (pi - ref)).sum())
    expected = {name: float((pi.exp() * f(pi, ref)).sum()) for name, f in F.KL_ESTIMATORS.items()}
    assert expected["k1"] == pytest.approx(kl, abs=1e-12)
    assert expected["k3"] == pytest.approx(kl, abs=1e-12)
    assert abs(expected["k2"] - kl) > 1e-3


@quick
@given(st.lists(st.floats(-30, 0), min_size=1, max_size=5), st.data())
def test_k3_is_never_negative_and_equal_policies_have_exactly_none(pi: list[float], data: st.DataObject) -> None:
    ref = data.draw(st.lists(st.floats(-30, 0), min_size=len(pi), max_size=len(pi)))
    p, r = torch.tensor(pi), torch.tensor(ref)
    assert (F.k3(p, r) >= 0).all()
    for estimator in F.KL_ESTIMATORS.values():
        assert not estimator(p, p).any()


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "last", "after_eos"),
    [
        ([1, 1, 1, 0], 2, 3),  # 5 9 EOS pad
        ([1, 1, 1, 1], 3, 3),  # 5 9 7 EOS, and cut off without one
        ([1, 0, 0, 0], 0, 1),  # EOS pad pad pad
        ([0, 0, 0, 0], -1, 0),  # nothing but padding
    ],
)
def test_where_a_score_lands(shown: list[int], last: int, after_eos: int) -> None:
    mask = torch.tensor([shown])
    assert F.last_token_index(mask).tolist() == [last]
    assert F.score_index(mask, "after_eos").tolist() == [after_eos]
    room, last_or_none = torch.nn.functional.pad(mask, (0, 1)), max(last, 0)
    assert F.score_index(room, "after_eos", torch.tensor([True])).tolist() == [last + 1]
    assert F.score_index(room, "after_eos", torch.tensor([False])).tolist() == [last_or_none]
    if last < 0:
        with pytest.raises(DataError, match="without tokens"):
            F.score_index(mask)
        return
    rewards = F.score_at_last(torch.tensor([7.0]), mask)
    assert rewards[0, last] == 7
    assert rewards.count_nonzero() == 1
    assert F.score_at_last(torch.tensor([7.0]), mask, "after_eos")[0, after_eos] == 7


def test_an_unknown_place_for_scores_is_refused() -> None:
    with pytest.raises(ConfigError, match="middle"):
        F.score_index(torch.ones(1, 1), "middle")  # type: ignore[arg-type]


# -- losses by element -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipped_surrogate_golden(dtype: torch.dtype) -> None:
    ratio = torch.tensor([0.5, 0.8, 1, 1.2, 1.5], dtype=dtype)
    close(F.clipped_surrogate(ratio, torch.ones_like(ratio), 0.2, 0.2), [-0.5, -0.8, -1, -1.2, -1.2], dtype)
    close(F.clipped_surrogate(ratio, -torch.ones_like(ratio), 0.2, 0.2), [0.8, 0.8, 1, 1.2, 1.5], dtype)
    close(F.clipped_surrogate(ratio, torch.ones_like(ratio), 0.1, 0.4), [-0.5, -0.8, -1, -1.2, -1.4], dtype)


def test_clipped_surrogate_gradient_stops_only_where_it_would_gain() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    F.clipped_surrogate(ratio, advantages, 0.2, 0.2).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == [0.0, 1.0, -1.0, 0.0]


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    ratio = (0.3 * x.detach()).exp().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: F.k3(a, b), (x, y))
    assert torch.autograd.gradcheck(lambda a: F.whiten(a, mask), (x,))
    assert torch.autograd.gradcheck(lambda a: F.masked_mean(a, mask, 1), (x,))
    assert torch.autograd.gradcheck(lambda a, b: F.logistic_ranking(a - b, 0.5), (x, y))
    assert torch.autograd.gradcheck(lambda a: F.clipped_surrogate(a, y.detach(), 0.2, 0.2), (ratio,))


def test_logistic_ranking_stays_finite() -> None:
    far = torch.tensor([-1000.0, 1000.0])
    assert F.logistic_ranking(far).tolist() == [1000.0, 0.0]
    assert math.isinf(-float(torch.sigmoid(torch.tensor(-200.0)).log()))  # what the naive form would give


def test_shapes_are_never_broadcast() -> None:
    with pytest.raises(ConfigError, match=r"logprobs \[2, 3\], ref_logprobs \[3\]"):
        F.k1(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ConfigError, match="mask"):
        F.masked_mean(torch.zeros(2, 3), torch.ones(2, 1))


# -- responses of groups -----------------------------------------------------------------------------------------------


def test_soft_preference_golden_and_limits():
    """p = .6, d = 1 by hand: .6 log(1+e^-1) + .4 log(1+e)."""
    difference = torch.tensor([1.0, -3.0, 0.0], dtype=torch.float64, requires_grad=True)
    soft = preference_cross_entropy(difference, 0.6)
    assert float(soft[0].detach()) == pytest.approx(0.713261688, abs=1e-9)
    torch.testing.assert_close(preference_cross_entropy(difference, 1.0), logistic_ranking(difference))
    (gradient,) = torch.autograd.grad(preference_cross_entropy(difference, 0.5).sum(), difference)
    assert float(gradient[2]) == 0.0
    assert torch.isfinite(preference_cross_entropy(torch.tensor([1e4, -1e4]), 0.3)).all()


def test_a_number_out_of_its_range_is_refused_by_name() -> None:
    check_range("method", beta=0.0, gamma=2.5)
    check_range("method", 1, 4, n=4)
    for values, text in (
        ({"beta": -0.1}, "beta=-0.1 must be finite and at least 0"),
        ({"beta": math.inf}, "beta=inf must be finite and at least 0"),
        ({"gamma": 1.0, "beta": math.nan}, "beta=nan must be finite and at least 0"),
    ):
        with pytest.raises(ConfigError, match=text):
            check_range("method", **values)
    with pytest.raises(ConfigError, match=r"share=1.5 must be finite and in \[0, 1\]"):
        check_range("method", high=1.0, share=1.5)


@pytest.mark.parametrize("limits", [(-0.1, 0.2), (0.2, -0.1), (math.nan, 0.2)])
def test_a_clip_range_is_not_negative(limits: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="clip range"):
        F.clipped_surrogate(torch.ones(2), torch.ones(2), *limits)
