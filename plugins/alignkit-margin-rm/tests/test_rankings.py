"""The losses of rankings against golden values, plainer computations, each other and their invariants."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import pytest
import torch
from alignkit_margin_rm import best_of_k, kwise_ranking, margin_ranking, pairwise_ranking, plackett_luce
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit import ConfigError, Groups, Run, use

DTYPES = [torch.float64, torch.float32]
LOSSES: list[Callable[..., Tensor]] = [kwise_ranking, plackett_luce, best_of_k]
GOLDEN = {kwise_ranking: 0.207038073, plackett_luce: 1.161057351, best_of_k: 0.440189699}
quick = settings(max_examples=40, deadline=None)
score = st.floats(-10, 10, width=32)
rankings = st.integers(2, 6).flatmap(
    lambda k: st.tuples(st.lists(score, min_size=k, max_size=k), st.lists(st.integers(1, 4), min_size=k, max_size=k))
)


def tensors(
    rows: Sequence[tuple[Sequence[float], Sequence[int]]], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """(rewards, ranks, group_mask) padded to the longest row, with NaN and nonsense where the mask is False."""
    width = max(len(scores) for scores, _ in rows)
    rewards = torch.full((len(rows), width), math.nan, dtype=dtype)
    ranks = torch.full((len(rows), width), -7)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (scores, places) in enumerate(rows):
        rewards[row, : len(scores)] = torch.tensor(scores, dtype=dtype)
        ranks[row, : len(scores)] = torch.tensor(places)
        mask[row, : len(scores)] = True
    return rewards, ranks, mask


def one(loss: Callable[..., Tensor], scores: Sequence[float], ranks: Sequence[int], **options: float) -> float:
    return float(loss(*tensors([(scores, ranks)]), **options)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_golden(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    value = loss(*tensors([([2.0, 1.0, 0.0, -1.0], [1, 2, 3, 4])], dtype))
    assert value.dtype == dtype
    assert float(value) == pytest.approx(GOLDEN[loss], abs=1e-8 if dtype == torch.float64 else 1e-6)


@quick
@given(rankings)
def test_kwise_is_the_mean_over_the_comparisons_of_a_prompt(ranking: tuple[list[float], list[int]]) -> None:
    scores, ranks = ranking
    n = range(len(scores))
    each = [math.log1p(math.exp(scores[j] - scores[i])) for i in n for j in n if ranks[i] < ranks[j]]
    assert one(kwise_ranking, scores, ranks) == pytest.approx(sum(each) / max(len(each), 1), abs=1e-9)


@quick
@given(score, score)
def test_of_two_responses_every_loss_is_the_pairwise_one(chosen: float, rejected: float) -> None:
    for dtype in DTYPES:
        pair = (torch.tensor([chosen], dtype=dtype), torch.tensor([rejected], dtype=dtype), torch.zeros(1, dtype=dtype))
        for centre in (0.0, 0.25):
            expected = pairwise_ranking(*pair, center_rewards_coefficient=centre)
            group = tensors([([chosen, rejected], [1, 2])], dtype)
            swapped = tensors([([rejected, chosen], [2, 1])], dtype)
            assert torch.equal(kwise_ranking(*group, center_rewards_coefficient=centre), expected)
            for loss in (plackett_luce, best_of_k):
                for arguments in (group, swapped):
                    value = loss(*arguments, center_rewards_coefficient=centre)
                    torch.testing.assert_close(
                        value, expected, atol=1e-12 if dtype == torch.float64 else 1e-5, rtol=1e-5
                    )


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_the_responses_does_not_matter(loss: Callable[..., Tensor]) -> None:
    scores, ranks = [0.3, -1.2, 2.0, 0.7], [2, 4, 2, 1]
    values = [one(loss, [scores[i] for i in p], [ranks[i] for i in p]) for p in permutations(range(4))]
    assert values == pytest.approx([values[0]] * len(values), abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_shift_of_one_prompt_changes_nothing_unless_scores_are_centred(loss: Callable[..., Tensor]) -> None:
    scores, ranks = [0.3, -1.2, 2.0], [2, 3, 1]
    shifted = [s + 5 for s in scores]
    assert one(loss, shifted, ranks) == pytest.approx(one(loss, scores, ranks), abs=1e-12)
    assert one(loss, shifted, ranks, center_rewards_coefficient=0.01) > one(
        loss, scores, ranks, center_rewards_coefficient=0.01
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_and_the_other_prompts_change_neither_value_nor_gradient(loss: Callable[..., Tensor]) -> None:
    rows = [([0.5, -0.5], [2, 1]), ([1.0, 0.2, -3.0, 0.4], [1, 2, 4, 2]), ([0.1, 0.2, 0.3], [1, 2, 3])]
    rewards, ranks, mask = tensors(rows)
    rewards.requires_grad_()
    together = loss(rewards, ranks, mask, center_rewards_coefficient=0.1)
    together.sum().backward()
    assert rewards.grad is not None
    assert bool((rewards.grad[~mask] == 0).all())
    for row, (scores, places) in enumerate(rows):
        alone, *rest = tensors([(scores, places)])
        alone.requires_grad_()
        value = loss(alone, *rest, center_rewards_coefficient=0.1)
        assert together[row].item() == pytest.approx(value.item(), abs=1e-12)
        value.sum().backward()
        torch.testing.assert_close(rewards.grad[row, : len(scores)], alone.grad[0])  # type: ignore[index]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_tie_contributes_nothing(loss: Callable[..., Tensor]) -> None:
    assert one(loss, [3.0, -1.0, 0.5], [2, 2, 2], center_rewards_coefficient=1.0) == 0
    # Moving two tied responses apart, with what beats or is beaten by each unchanged, moves no comparison of the two.
    rewards, ranks, mask = tensors([([1.0, 1.0], [1, 1])])
    rewards.requires_grad_()
    loss(rewards, ranks, mask).sum().backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [[0.0, 0.0]]


def test_ties_against_plain_python() -> None:
    a, b, c = 0.4, -0.3, 1.1  # a and b share the first rank
    ahead = [math.log1p(math.exp(c - x)) for x in (a, b)]
    assert one(kwise_ranking, [a, b, c], [1, 1, 2]) == pytest.approx(sum(ahead) / 2)
    assert one(plackett_luce, [a, b, c], [1, 1, 2]) == pytest.approx(sum(ahead))
    assert one(best_of_k, [a, b, c], [1, 1, 2]) == pytest.approx(sum(ahead) / 2)
    last = [one(best_of_k, [c, a, b], [1, 2, 2]), one(plackett_luce, [c, a, b], [1, 2, 2])]
    assert last == pytest.approx([math.log(sum(math.exp(x - c) for x in (a, b, c)))] * 2)


def test_plackett_luce_is_a_probability_of_the_orders() -> None:
    scores = [0.3, -1.2, 2.0]
    chances = [math.exp(-one(plackett_luce, scores, ranks)) for ranks in permutations((1, 2, 3))]
    assert sum(chances) == pytest.approx(1.0, abs=1e-12)
    best = [math.exp(-one(best_of_k, scores, [1 if i == k else 2 for i in range(3)])) for k in range(3)]
    assert best == pytest.approx(torch.tensor(scores, dtype=torch.float64).softmax(0).tolist(), abs=1e-12)


def test_longer_rankings_do_not_weigh_more() -> None:
    """Of equal scores every comparison costs log 2, however many there are; a choice from n costs log n."""
    for k in (2, 4, 9):
        ranks = list(range(1, k + 1))
        assert one(kwise_ranking, [0.0] * k, ranks) == pytest.approx(math.log(2))
        choices = [math.log(n) for n in range(2, k + 1)]
        assert one(plackett_luce, [0.0] * k, ranks) == pytest.approx(sum(choices))
        mean = one(plackett_luce, [0.0] * k, ranks, mean_of_choices=True)
        assert mean == pytest.approx(sum(choices) / (k - 1))


def test_centring_against_plain_python() -> None:
    pairs = [(0.5 - 0.2) ** 2, (0.5 + 1.0) ** 2, (-0.2 + 1.0) ** 2]
    for loss in LOSSES:
        plain = one(loss, [0.5, -0.2, 1.0], [1, 2, 3])
        centred = one(loss, [0.5, -0.2, 1.0], [1, 2, 3], center_rewards_coefficient=0.01)
        assert centred - plain == pytest.approx(0.01 * sum(pairs) / 3, abs=1e-12)
    chosen, rejected = torch.tensor([0.5]), torch.tensor([-2.0])
    rating = torch.tensor([0])
    more = margin_ranking(chosen, rejected, rating, center_rewards_coefficient=0.1) - margin_ranking(
        chosen, rejected, rating
    )
    assert float(more) == pytest.approx(0.1 * 1.5**2, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss: Callable[..., Tensor]) -> None:
    rewards = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ranks = torch.tensor([[1, 2, 3, 4], [2, 1, 1, 3], [1, 2, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda r: loss(r, ranks, mask, center_rewards_coefficient=0.1), (rewards,))


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_scores_stay_finite_and_shapes_are_checked(loss: Callable[..., Tensor]) -> None:
    assert one(loss, [-500.0, 500.0], [1, 2]) == 1000
    assert one(loss, [500.0, -500.0], [1, 2]) == 0
    with pytest.raises(ConfigError, match="shapes differ"):
        loss(torch.zeros(2, 3), torch.ones(2, 2), torch.ones(2, 3, dtype=torch.bool))


def ranked(count: int) -> Groups:
    """Prompts whose responses of 2 to 5 differ in how many letters `a` they hold, which the ranks follow."""
    rows = []
    for n in range(count):
        k = 2 + n % 4
        texts = ["a" * (k - i) + "z" * (i + 1) for i in range(k)]
        order = [(i + n) % k for i in range(k)]
        rows.append({"prompt": f"say {n}", "responses": [texts[i] for i in order], "ranks": [i + 1 for i in order]})
    return Groups.from_rows(rows)


@pytest.mark.parametrize("loss", ["kwise_ranking", "plackett_luce", "best_of_k"])
def test_a_reward_model_learns_from_rankings(loss: str, tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        model = run.train_reward(
            v0, ranked(24), loss=loss, epochs=6, batch_size=8, learning_rate=5e-3, heldout_fraction=0.25
        )
    accuracy = model.result["accuracy"]["overall"]
    assert accuracy["mean"] > 0.9
    assert accuracy["n"] == model.result["eval_pairs"] > 10


def test_comparisons_and_ties_of_rankings_are_counted(tmp_path: Path) -> None:
    rows = Groups.from_rows(
        [
            {"prompt": "a", "responses": ["x", "y", "z", "w"], "ranks": [1, 2, 2, 3]},
            {"prompt": "b", "responses": ["x", "y"], "ranks": [1, 2]},
        ]
    )
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        model = run.train_reward(v0, rows, loss="kwise_ranking", batch_size=2, heldout_fraction=0)
    assert (model.result["pairs"], model.result["tied_pairs"]) == (5 + 1, 1)
    steps = [json.loads(line) for line in (model.handle.path / "metrics.jsonl").read_text().splitlines()]
    assert 0 <= steps[0]["accuracy"] <= 1


def test_ranking_by_kwise_is_ranking_all_pairs_by_prompt(tmp_path: Path) -> None:
    """The engine's mean over the pairs of a prompt, and the loss's: the same model, with and without centring."""
    scores = []
    for name in ("pairwise_ranking", "kwise_ranking"):
        loss = use(name, center_rewards_coefficient=0.01)
        with Run(tmp_path / name, quiet=True) as run:
            v0 = run.policy("tiny", lora=None)
            model = run.train_reward(
                v0, ranked(8), loss=loss, epochs=2, batch_size=4, learning_rate=1e-3, heldout_fraction=0
            )
            scores.append(model.score(ranked(8)).values)
    for mine, theirs in zip(*scores, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
