"""The losses of comparisons: golden values, the identities between them, and how they behave at the ends."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from alignkit_dpo.losses import (
    PAIR_LOSSES,
    apo_down,
    apo_zero,
    bco_pair,
    chosen_nll,
    cpl,
    discopop,
    dpo,
    dpo_norm,
    exo_pair,
    hinge,
    ipo,
    log_odds,
    nca_pair,
    orpo,
    preference_statistics,
    robust,
    simpo,
    slic,
    sppo_hard,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit import ConfigError, PluginError
from alignkit.testing import default_host

quick = settings(max_examples=40, deadline=None)
nats = st.floats(-60, 0, allow_nan=False, width=32)
both = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
REFERENCED = {
    "dpo",
    "robust",
    "hinge",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
}


def one(*values: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([value], dtype=dtype) for value in values)


def at_gap(
    loss: Callable[..., Tensor], h: float, dtype: torch.dtype = torch.float64, p: float = 1.0, **settings: float
) -> float:
    """The loss of one pair whose h is as given, all of it on the chosen side."""
    names = inspect.signature(loss).parameters
    tensors = dict(zip(names, one(h - 7.5, -5.0, -7.5, -5.0, dtype=dtype), strict=False))
    tensors |= {n: torch.tensor([8.0], dtype=dtype) for n in names if n.endswith("lengths")}
    tensors |= {"preference_prob": torch.tensor([p], dtype=dtype)} if "preference_prob" in names else {}
    return float(loss(**tensors, **settings))


def near(dtype: torch.dtype, value: float) -> object:
    return pytest.approx(
        value, abs=1e-9 if dtype is torch.float64 else 2e-6, rel=1e-9 if dtype is torch.float64 else 1e-6
    )


# -- golden values -----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("h", "settings", "value"),
    [
        (0.0, {"beta": 0.1}, math.log(2)),
        (0.0, {"beta": 3.0, "label_smoothing": 0.3}, math.log(2)),
        (1.0, {"beta": 0.1}, 0.644396660),
        (1.0, {"beta": 0.1, "label_smoothing": 0.1}, 0.654396660),
        (5.0, {"beta": 0.1}, 0.474076984),
        (-2.0, {"beta": 0.5}, 1.313261688),
    ],
)
def test_dpo_golden(h: float, settings: dict[str, float], value: float, dtype: torch.dtype) -> None:
    assert at_gap(dpo, h, dtype, **settings) == near(dtype, pytest.approx(value, abs=1e-9).expected)


@both
def test_ipo_golden(dtype: torch.dtype) -> None:
    """Target 1/(2 beta) = 5; per token, the lengths being 8, a gap of 8 counts as 1."""
    assert [at_gap(ipo, h, dtype, beta=0.1) for h in (0.0, 1.0, 5.0)] == pytest.approx([25.0, 16.0, 0.0], abs=1e-4)
    assert at_gap(ipo, 8.0, dtype, beta=0.1, mean=True) == near(dtype, 16.0)
    tensors = one(-4.0, -12.0, -6.0, -9.0, 2.0, 3.0, 1.0, dtype=dtype)  # 2 over 2 tokens, -3 over 3: a gap of 2
    assert ipo(*tensors, beta=0.1, mean=True).item() == near(dtype, 9.0)
    assert at_gap(ipo, 1.0, dtype, p=0.25, beta=0.1) == near(dtype, 0.25 * 16 + 0.75 * 36)


@both
def test_robust_golden(dtype: torch.dtype) -> None:
    """l(-1) = l(1) + 1, so ((1 - e) l(1) - e l(-1)) / (1 - 2e) = l(1) - e / (1 - 2e) with beta h = 1."""
    assert at_gap(robust, 10.0, dtype, beta=0.1, label_smoothing=0.1) == near(dtype, 0.3132616875 - 0.125)


@both
def test_hinges_golden(dtype: torch.dtype) -> None:
    assert [at_gap(hinge, h, dtype, beta=0.05) for h in (-10.0, 0.0, 10.0, 20.0, 30.0)] == [1.5, 1.0, 0.5, 0.0, 0.0]
    assert slic(*one(-1.0, -1.25, dtype=dtype), delta=1.0).item() == 0.75
    assert slic(*one(-1.0, -3.0, dtype=dtype), delta=1.0).item() == 0.0


@both
def test_cpl_golden(dtype: torch.dtype) -> None:
    """log-probs -1 and -2, alpha 0.1: with lambda 1/2 the two exponents are equal."""
    assert cpl(*one(-1.0, -2.0, dtype=dtype), alpha=0.1, bias=0.5).item() == near(dtype, math.log(2))
    assert cpl(*one(-1.0, -2.0, dtype=dtype), alpha=0.1, bias=1.0).item() == near(dtype, 0.6443966600)


@both
def test_simpo_golden(dtype: torch.dtype) -> None:
    """-6 over 3 tokens is -2, -12 over 4 is -3: beta 2 and gamma 1 make an argument of 1."""
    tensors = one(-6.0, -12.0, 3.0, 4.0, 1.0, dtype=dtype)
    assert simpo(*tensors, beta=2.0, gamma=1.0).item() == near(dtype, 0.3132616875)
    # A half of -log s(1), a half of -log s(-3): the margin is asked of whichever response won.
    soft = simpo(*tensors[:4], torch.full((1,), 0.5, dtype=dtype), beta=2.0, gamma=1.0)
    assert soft.item() == near(dtype, (0.3132616875 + 3.0485873516) / 2)


def asked_of(loss: Callable[..., Tensor]) -> list[str]:
    return [n for n, p in inspect.signature(loss).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("name", [name for name, loss in PAIR_LOSSES.items() if "preference_prob" in asked_of(loss)])
@pytest.mark.parametrize("prob", [0.5, 0.7, 0.96])
def test_a_soft_label_is_the_mean_of_the_hard_ones(name: str, prob: float) -> None:
    """p times the loss of the pair and 1 - p times that of the pair turned round."""
    loss = PAIR_LOSSES[name]
    pair = {
        n: torch.tensor([3.0 + i if n.endswith("lengths") else -2.0 - i * i], dtype=torch.float64)
        for i, n in enumerate(asked_of(loss))
    }
    sides = {"chosen": "rejected", "rejected": "chosen"}
    turned = {n: pair[next((n.replace(a, b) for a, b in sides.items() if a in n), n)] for n in pair}

    def at(tensors: dict[str, Tensor], p: float) -> float:
        return float(loss(**tensors | {"preference_prob": torch.tensor([p], dtype=torch.float64)}))

    mean = prob * at(pair, 1.0) + (1 - prob) * at(turned, 1.0)
    assert at(pair, prob) == pytest.approx(mean, rel=1e-12)
    assert at(turned, 1 - prob) == pytest.approx(mean, rel=1e-12)


@both
def test_orpo_golden(dtype: torch.dtype) -> None:
    """Per token 0.8 and 0.5: odds 4 and 1, -log s(log 4) = log(5/4) = -log 0.8, so that the loss is 1.1 log(5/4)."""
    tensors = one(3 * math.log(0.8), 2 * math.log(0.5), 3.0, 2.0, dtype=dtype)
    assert orpo(*tensors, beta=0.1).item() == near(dtype, 1.1 * math.log(1.25))


def test_log_odds_of_almost_certain_tokens_is_finite() -> None:
    for dtype in (torch.float64, torch.float32):
        certain = log_odds(torch.zeros(2, dtype=dtype))
        assert bool(torch.isfinite(certain).all())
        assert certain[0] > 10
    assert float(log_odds(torch.tensor(-1e-3, dtype=torch.float64))) == pytest.approx(
        math.log(math.exp(-1e-3) / (1 - math.exp(-1e-3)))
    )
    assert float(log_odds(torch.tensor(-200.0))) == pytest.approx(-200.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


PLAIN: dict[Callable[..., Tensor], Callable[[float, float, float], float]] = {
    exo_pair: lambda w, lo, b: sum(
        q * (math.log(q) - math.log(p))
        for q, p in zip((sigmoid(b * (w - lo)), sigmoid(b * (lo - w))), (0.999, 0.001), strict=True)
    ),
    nca_pair: lambda w, lo, b: -math.log(sigmoid(b * w)) - (math.log(sigmoid(-b * w)) + math.log(sigmoid(-b * lo))) / 2,
    bco_pair: lambda w, lo, b: -math.log(sigmoid(b * w)) - math.log(sigmoid(-b * lo)),
    sppo_hard: lambda w, lo, b: (w - 1 / (2 * b)) ** 2 + (lo + 1 / (2 * b)) ** 2,
    apo_zero: lambda w, lo, b: 1 - sigmoid(b * w) + sigmoid(b * lo),
    apo_down: lambda w, lo, b: sigmoid(b * w) + 1 - sigmoid(b * (w - lo)),
    discopop: lambda w, lo, b: (
        (1 - sigmoid(b * (w - lo) / 0.05)) * -math.log(sigmoid(b * (w - lo)))
        + sigmoid(b * (w - lo) / 0.05) * math.exp(-b * (w - lo))
    ),
}
"""Each formula of its paper in plain Python: (log-ratio of the chosen, of the rejected response, beta)."""


@pytest.mark.parametrize("loss", PLAIN, ids=lambda loss: loss.__name__)
@both
def test_against_the_paper_in_plain_python(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    for w, lo in [(0.0, 0.0), (1.5, -2.0), (-3.0, 1.0), (-0.5, -2.25), (2.0, 2.0)]:
        got = loss(*one(w - 9.0, lo - 4.0, -9.0, -4.0, dtype=dtype), beta=0.3).item()
        assert got == pytest.approx(PLAIN[loss](w, lo, 0.3), rel=1e-9 if dtype is torch.float64 else 2e-5)


def test_dpo_norm_is_dpo_on_means() -> None:
    w, lo, ref_w, ref_lo, p = one(-6.0, -10.0, -9.0, -5.0, 1.0)
    expected = dpo(w / 3, lo / 5, ref_w / 3, ref_lo / 5, p, beta=2.0)
    assert dpo_norm(w, lo, ref_w, ref_lo, *one(3.0, 5.0), p, beta=2.0).item() == pytest.approx(
        expected.item(), abs=1e-12
    )


def test_chosen_nll_is_per_token() -> None:
    assert chosen_nll(*one(-6.0, 4.0)).item() == 1.5


# -- identities --------------------------------------------------------------------------------------------------------


@quick
@given(nats, nats, nats, nats, st.floats(0.01, 2), st.floats(0, 0.49))
def test_what_becomes_dpo(w: float, lo: float, ref_w: float, ref_lo: float, beta: float, eps: float) -> None:
    pair, sure = one(w, lo, ref_w, ref_lo), one(1.0)[0]
    plain = dpo(*pair, sure, beta=beta)
    gap = (w - ref_w) - (lo - ref_lo)
    assert plain.item() == pytest.approx(math.log1p(math.exp(-abs(beta * gap))) + max(-beta * gap, 0.0), abs=1e-9)
    assert torch.equal(dpo(*pair, sure, beta=beta, label_smoothing=0.0), plain)
    assert torch.equal(robust(*pair, beta=beta, label_smoothing=0.0), plain)
    free = dpo(*pair[:2], *one(0.0, 0.0), sure, beta=beta)
    assert cpl(*pair[:2], alpha=beta, bias=1.0).item() == pytest.approx(free.item(), abs=1e-12)
    # Smoothing is a soft label, and a soft label is a mixture of both orders of the pair.
    smooth = dpo(*pair, sure, beta=beta, label_smoothing=eps)
    swapped = dpo(pair[1], pair[0], pair[3], pair[2], sure, beta=beta)
    assert smooth.item() == pytest.approx(dpo(*pair, one(1 - eps)[0], beta=beta).item(), abs=1e-9)
    both = dpo(*pair, one(0.7)[0], beta=beta, label_smoothing=eps)
    assert both.item() == pytest.approx(dpo(*pair, one(0.7 * (1 - eps) + 0.3 * eps)[0], beta=beta).item(), abs=1e-9)
    assert smooth.item() == pytest.approx(((1 - eps) * plain + eps * swapped).item(), abs=1e-9)


@quick
@given(nats, nats, nats, nats, st.floats(0.01, 0.45))
def test_robust_undoes_the_noise_on_average(w: float, lo: float, ref_w: float, ref_lo: float, eps: float) -> None:
    pair = one(w, lo, ref_w, ref_lo)
    flipped = (pair[1], pair[0], pair[3], pair[2])
    seen = (1 - eps) * robust(*pair, label_smoothing=eps) + eps * robust(*flipped, label_smoothing=eps)
    assert seen.item() == pytest.approx(dpo(*pair, one(1.0)[0]).item(), abs=1e-6)


@quick
@given(nats, nats, nats, nats, st.floats(0, 1))
def test_swapping_a_pair_swaps_its_label(w: float, lo: float, ref_w: float, ref_lo: float, p: float) -> None:
    pair, lengths = one(w, lo, ref_w, ref_lo), one(3.0, 5.0)
    swapped = (pair[1], pair[0], pair[3], pair[2])
    label, other = one(p, 1 - p)
    assert dpo(*pair, label).item() == pytest.approx(dpo(*swapped, other).item(), abs=1e-9)
    assert ipo(*pair, *lengths, label).item() == pytest.approx(
        ipo(*swapped, lengths[1], lengths[0], other).item(), rel=1e-9
    )


@quick
@given(st.floats(-8, 8), st.floats(0.02, 1))
def test_soft_labels_of_ipo_move_its_target(h: float, beta: float) -> None:
    """p (h - t)^2 + (1 - p)(h + t)^2 is least at h = (2p - 1) t."""
    p, t = 0.8, 1 / (2 * beta)
    best = at_gap(ipo, 0.6 * t, p=p, beta=beta)
    assert at_gap(ipo, h, p=p, beta=beta) >= best - 1e-9


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_gradient_of_dpo_is_the_paper_s() -> None:
    """-beta s(-beta h) (grad log pi_w - grad log pi_l) (Rafailov et al. 2023, section 4), on a softmax of 7."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    w, lo = torch.tensor([1, 4, 4]), torch.tensor([0, 6])
    ref = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0)

    def logprob(tokens: Tensor) -> Tensor:
        return logits.log_softmax(0)[tokens].sum()

    beta, sure = 0.7, one(1.0)[0]
    pair = (logprob(w)[None], logprob(lo)[None], ref[w].sum()[None], ref[lo].sum()[None])
    (got,) = torch.autograd.grad(dpo(*pair, sure, beta=beta).sum(), logits)
    h = float(((pair[0] - pair[2]) - (pair[1] - pair[3])).detach())
    (grad_w,), (grad_lo,) = (torch.autograd.grad(logprob(tokens), logits) for tokens in (w, lo))
    torch.testing.assert_close(got, -beta * sigmoid(-beta * h) * (grad_w - grad_lo), rtol=0, atol=1e-12)


def test_gradient_at_the_start_is_half_beta_and_does_not_touch_the_reference() -> None:
    tensors = [t.requires_grad_() for t in one(-3.0, -4.0, -3.0, -4.0)]
    grads = torch.autograd.grad(dpo(*tensors, one(1.0)[0], beta=0.1).sum(), tensors[:2])
    assert [g.item() for g in grads] == pytest.approx([-0.05, 0.05], abs=1e-12)
    h1 = [t.requires_grad_() for t in one(-2.0, -4.0, -3.0, -4.0)]
    (grad,) = torch.autograd.grad(dpo(*h1, one(1.0)[0], beta=0.1).sum(), h1[:1])
    assert grad.item() == pytest.approx(-0.047502081, abs=1e-9)


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
@pytest.mark.parametrize("h", [-2000.0, -300.0, 300.0, 2000.0])
def test_won_and_lost_pairs_stay_finite(name: str, h: float) -> None:
    """In float32, value and gradient; a pair that is won is an element like any other, not a NaN and not dropped."""
    loss = PAIR_LOSSES[name]
    names = inspect.signature(loss).parameters
    tensors = {n: torch.tensor([-10.0, -10.0]) for n in names if n.endswith("logprobs")}
    side = "chosen_logprobs" if h < 0 else "rejected_logprobs"
    tensors[side] = torch.tensor([-10.0 - abs(h), -10.0]).requires_grad_()
    tensors |= {n: torch.tensor([5.0, 5.0]) for n in names if n.endswith("lengths")}
    tensors |= {"preference_prob": torch.ones(2)} if "preference_prob" in names else {}
    value = loss(**tensors)
    (grad,) = torch.autograd.grad(value.mean(), tensors[side])
    assert value.shape == (2,)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_a_loss_treats_each_pair_on_its_own(name: str) -> None:
    """Which pairs stand beside it, and in which order, changes nothing: so batches may be split anyhow."""
    loss, generator = PAIR_LOSSES[name], torch.Generator().manual_seed(1)
    names = inspect.signature(loss).parameters
    tensors = {n: -10 * torch.rand(5, generator=generator) for n in names if n.endswith("logprobs")}
    tensors |= {n: torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) for n in names if n.endswith("lengths")}
    tensors |= {"preference_prob": torch.tensor([1.0, 0.9, 0.5, 0.7, 0.0])} if "preference_prob" in names else {}
    whole = loss(**tensors)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(loss(**{n: t[order] for n, t in tensors.items()}), whole[order])
    assert torch.equal(torch.cat([loss(**{n: t[i : i + 1] for n, t in tensors.items()}) for i in range(5)]), whole)


@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES) - {"apo_down", "discopop"}))
def test_a_loss_prefers_the_chosen_response(name: str) -> None:
    """From a fair start a gradient step raises the chosen and lowers the rejected log-prob."""
    loss = PAIR_LOSSES[name]
    names = inspect.signature(loss).parameters
    tensors = {n: torch.tensor([-6.0]).requires_grad_() for n in names if n.endswith("logprobs")}
    tensors |= {n: torch.tensor([4.0]) for n in names if n.endswith("lengths")}
    tensors |= {"preference_prob": torch.ones(1)} if "preference_prob" in names else {}
    down = torch.autograd.grad(loss(**tensors).sum(), [tensors["chosen_logprobs"], tensors["rejected_logprobs"]])
    assert down[0].item() < 0 < down[1].item()


def test_discopop_begins_by_going_the_wrong_way() -> None:
    """Its weight turns faster than its parts fall: the slope at 0 is -3/4 + (1 - log 2) / (4 tau), 0.784 for 0.05."""
    tensors = [t.requires_grad_() for t in one(-6.0, -6.0, -6.0, -6.0)]
    (slope,) = torch.autograd.grad(discopop(*tensors, beta=1.0, tau=0.05).sum(), tensors[:1])
    assert slope.item() == pytest.approx(-0.75 + (1 - math.log(2)) / 0.2, abs=1e-12)


def test_apo_down_lowers_both_and_the_rejected_more() -> None:
    tensors = [t.requires_grad_() for t in one(-6.0, -6.0, -6.0, -6.0)]
    chosen, rejected = torch.autograd.grad(apo_down(*tensors, beta=1.0).sum(), tensors[:2])
    assert chosen.item() == pytest.approx(0.0)
    assert rejected.item() == pytest.approx(0.25)


# -- what is logged ----------------------------------------------------------------------------------------------------


LENGTHS = torch.tensor([2.0, 2.0, 2.0])


def test_ties_are_not_mistakes() -> None:
    w, lo = torch.tensor([-3.0, -3.0, -5.0]), torch.tensor([-4.0, -4.0, -4.0])
    found = preference_statistics(w, lo, LENGTHS, LENGTHS, torch.tensor([-4.0, -3.0, -4.0]), lo, beta=0.5)
    assert found["accuracy"].tolist() == [1.0, 0.0, 0.0]
    assert found["ties"].tolist() == [0.0, 1.0, 0.0]
    assert found["chosen_rewards"].tolist() == [0.5, 0.0, -0.5]
    assert found["rejected_rewards"].tolist() == [0.0, 0.0, 0.0]
    assert found["margins"].tolist() == [0.5, 0.0, -0.5]
    assert torch.equal(found["chosen_logprobs"], w)
    assert torch.equal(found["rejected_logprobs"], lo)


def test_without_a_reference_the_implied_reward_is_the_logprob() -> None:
    found = preference_statistics(*one(-3.0, -4.0, 2.0, 4.0), beta=0.5)
    assert found["chosen_rewards"].item() == -1.5
    assert found["margins"].item() == 0.5


def test_the_rewards_are_per_token_and_free_of_the_reference_where_the_loss_is() -> None:
    given = one(-3.0, -4.0, 2.0, 4.0, -7.0, -9.0)
    assert preference_statistics(*given, beta=0.5)["margins"].item() == 2.0 - 2.5
    assert preference_statistics(*given, beta=0.5, per_token=True)["margins"].item() == 1.0 - 0.625
    found = preference_statistics(*given, beta=0.5, per_token=True, referenced=False)
    assert (found["chosen_rewards"].item(), found["rejected_rewards"].item()) == (-0.75, -0.5)
    assert (found["accuracy"].item(), found["chosen_logprobs"].item()) == (0.0, -3.0)


# -- wrong use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "settings", "says"),
    [
        (dpo, {"beta": 0.0}, "beta=0.0 must be positive"),
        (dpo, {"beta": math.nan}, "beta=nan must be positive"),
        (dpo, {"label_smoothing": 0.5}, "label_smoothing=0.5"),
        (robust, {"label_smoothing": 0.5}, "label_smoothing=0.5"),
        (robust, {"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        (exo_pair, {"label_smoothing": 0.0}, "label_smoothing=0.0 must be positive"),
        (discopop, {"tau": 2.0}, "tau=2.0"),
        (cpl, {"bias": 1.5}, "bias=1.5"),
        (slic, {"delta": -1.0}, "delta=-1.0"),
        *[
            (PAIR_LOSSES[name], {"beta": -0.1}, "beta=-0.1 must be positive")
            for name in ("ipo", "hinge", "simpo", "orpo")
        ],
        *[(PAIR_LOSSES[name], {"beta": 0.0}, "must be positive") for name in sorted(REFERENCED)],
    ],
)
def test_a_bad_setting_is_one_clear_error(loss: Callable[..., Tensor], settings: dict[str, float], says: str) -> None:
    tensors = {
        n: torch.ones(1) for n, p in inspect.signature(loss).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD
    }
    with pytest.raises(ConfigError, match=says):
        loss(**tensors, **settings)


def test_ipo_has_no_label_smoothing_and_says_what_it_has() -> None:
    with pytest.raises(PluginError, match=r"no hyper-parameter is called 'label_smoothing'(.|\n)*beta=0.1"):
        default_host().build("loss", "alignkit-dpo/ipo(label_smoothing=0.1)")


def test_pairs_of_unequal_number_are_refused() -> None:
    with pytest.raises(ConfigError, match="shapes differ"):
        hinge(torch.zeros(2), torch.zeros(1), torch.zeros(2), torch.zeros(2))
