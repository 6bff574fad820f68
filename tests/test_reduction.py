"""How values become one number: counts over the whole step, whatever the micro-batch; padding never counts."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from alignkit import ConfigError, Groups, Term
from alignkit.engine.assemble import assemble
from alignkit.engine.losses import nll
from alignkit.engine.pairs import pairs_of
from alignkit.engine.reduction import Layout, reduce_terms
from alignkit.errors import PluginError
from alignkit.models import Policy, RewardModel
from alignkit.testing import DEMOS, one_step, tiny_policy, training_data


@pytest.mark.parametrize("reduction", ["token", "sequence", "group", "constant"])
def test_gradient_is_the_same_whatever_the_micro_batch(reduction):
    """P7. Lengths differ, so a mean of micro-means would differ by far more than rounding."""
    term = Term(reduction=reduction, constant=10.0)
    whole = one_step(tiny_policy(), DEMOS, nll, term, 10**6).gradients
    single = one_step(tiny_policy(), DEMOS, nll, term, 1).gradients
    assert len(whole) == len(single) > 5
    for a, b in zip(whole, single, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * max(1.0, float(a.abs().max())))  # 3e-7 measured


def test_token_reduction_is_the_mean_over_all_tokens():
    """By hand: the sum of all token losses over the number of tokens."""
    policy = tiny_policy()
    rows = []
    one_step(policy, DEMOS, nll, Term(reduction="token"), 60, rows=rows)
    fresh = tiny_policy()
    data = training_data(fresh, DEMOS)
    total, count = 0.0, 0
    for number in range(len(DEMOS)):
        batch = data.collate([number])
        with torch.no_grad():
            total -= float(fresh.tensors(batch)["logprobs"].sum())
        count += int(batch.response_mask.sum())
    assert rows[0]["loss"] == pytest.approx(total / count, abs=1e-5)


def test_reductions_by_hand():
    """Two responses of one group with 4 and 1 tokens, one of another with 1: the three means differ."""
    values = torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 9.0, 9.0, 9.0], [6.0, 9.0, 9.0, float("nan")]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    layout = Layout({"response_mask": mask}, torch.tensor([0, 0, 1]), torch.zeros(0, dtype=torch.long), 2)
    counts = {"token": 6.0, "sequence": 3.0, "token_group": 2.0}

    def reduce(reduction):
        total, _ = reduce_terms(
            {"loss": values},
            {"loss": Term(reduction=reduction)},
            ("logprobs",),
            layout,
            lambda kind, _mask: counts[kind],
        )
        return float(total)

    assert reduce("token") == pytest.approx((8 + 0 + 6) / 6)
    assert reduce("sequence") == pytest.approx((2 + 0 + 6) / 3)
    assert reduce("group") == pytest.approx(((2 + 0) / 2 + 6) / 2)
    assert reduce("constant") == pytest.approx(14.0 / 3)


def test_masked_positions_reach_neither_loss_nor_gradient():
    values = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    layout = Layout({"response_mask": mask}, torch.tensor([0]), torch.zeros(0, dtype=torch.long), 1)
    total, _ = reduce_terms({"loss": values}, {"loss": Term()}, ("logprobs",), layout, lambda *_: 1.0)
    (gradient,) = torch.autograd.grad(total, values)
    assert total.item() == 1.0
    assert gradient.tolist() == [[1.0, 0.0]]


def test_pairs_weigh_by_prompt_under_group_reduction():
    """A ranking of three is three pairs but one prompt: it must not count three times a comparison."""
    groups = Groups.from_rows(
        [
            {"prompt": "a", "responses": ["1", "2", "3"], "ranks": [1, 2, 3]},
            {"prompt": "b", "responses": ["1", "2"], "ranks": [2, 1]},
            {"prompt": "c", "responses": ["1", "2"], "ranks": [1, 1]},
        ]
    )
    pairs = pairs_of(groups)
    assert pairs.group.tolist() == [0, 0, 0, 1]
    assert pairs.chosen.tolist() == [0, 0, 1, 4]
    assert pairs.rejected.tolist() == [1, 2, 2, 3]
    layout = Layout({}, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]), 2)
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    total, _ = reduce_terms(
        {"loss": values},
        {"loss": Term(reduction="group")},
        ("chosen_rewards",),
        layout,
        lambda kind, _m: {"pair_group": 2.0}[kind],
    )
    assert float(total) == pytest.approx((2 + 10) / 2)


def by_rank(rewards, ranks, group_mask):
    """Best minus worst of each prompt, and a constant where nothing differs, which must not count either."""
    return rewards.masked_fill(~group_mask, -9).amax(1) - rewards.masked_fill(~group_mask, 9).amin(1) + 1


@pytest.mark.parametrize("max_tokens", [10**6, 1])
def test_prompts_without_a_comparison_are_not_counted_among_rankings(max_tokens):
    """Mean over prompts that hold one: ties, beside them, in a micro-batch with them or alone, change nothing."""
    ranked = [{"prompt": "a", "responses": ["x y", "z"], "ranks": [1, 2]}]
    tied = [{"prompt": f"t{i}", "responses": ["u v", "w"], "ranks": [1, 1]} for i in range(3)]
    found = []
    for rows in (ranked, [*tied, *ranked], [{**tied[0], "ranks": None}, *ranked]):
        data = training_data(Policy.load("tiny"), Groups.from_rows(rows))
        (step,) = data.steps(0, 1, max_tokens, (0,), together=True)
        total = 0.0
        for numbers in filter(None, step.micro):
            batch = data.collate(numbers)
            tensors, _ = assemble(RewardModel.from_policy("tiny", seed=1), data, batch, frozenset({"rewards", "ranks"}))
            terms = {"loss": by_rank(tensors["rewards"], tensors["ranks"], tensors["group_mask"])}
            names = ("rewards", "ranks", "group_mask")
            declared = {"loss": Term(reduction="group")}
            count = partial(data.count, step)
            share, _ = reduce_terms(terms, declared, names, data.layout(batch, {}, None), count)
            total += float(share)
        found.append(total)
    assert found == pytest.approx([found[0]] * 3, abs=1e-5)
    assert found[0] > 1


def test_groups_of_which_a_mask_shows_nothing_are_not_counted():
    data = training_data(Policy.load("tiny"), DEMOS)
    data.tensors = {"shown": torch.zeros(DEMOS.num_responses, 1, dtype=torch.bool)}
    data.tensors["shown"][0] = True
    (step,) = data.steps(0, 1, 10**6, (0,))
    assert data.count(step, "token_group", "shown") == 1
    assert data.count(step, "token_group", "response_mask") == len(DEMOS)


def test_undeclared_and_weightless_terms_are_refused():
    layout = Layout({"response_mask": torch.ones(1, 1)}, torch.tensor([0]), torch.zeros(0, dtype=torch.long), 1)
    with pytest.raises(ConfigError, match="declared"):
        reduce_terms({"other": torch.ones(1, 1)}, {"loss": Term()}, ("logprobs",), layout, lambda *_: 1.0)
    with pytest.raises(ConfigError, match="weight 0"):
        one_step(tiny_policy(), DEMOS, nll, Term(weight=0), 100)
    with pytest.raises(PluginError, match="unreduced"):
        reduce_terms({"loss": torch.ones(3)}, {"loss": Term()}, ("labels",), layout, lambda *_: 1.0)
