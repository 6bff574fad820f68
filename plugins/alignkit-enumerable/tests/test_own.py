"""Each method's own optimum: by hand, by enumeration of the samples, or as the point where the expected step is 0."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from alignkit_enumerable.exact import Landscape, kl, responses_of, table
from alignkit_enumerable.given import Given
from alignkit_enumerable.own import Case, best_of_n, expected_step, fixed_point, own
from alignkit_enumerable.parts import labels, pairs
from alignkit_enumerable.problem import END, Problem, model, tokenizer
from torch import Tensor

from alignkit.plugin import Policy, build, use

PROBLEM = Problem(length=1)
"""Eight responses a prompt: one token each."""
TREE = PROBLEM.tree
START = table(Policy(model(PROBLEM.seed).double(), tokenizer()), PROBLEM)
SCAPE = Landscape(PROBLEM.rewards(), responses_of(START, TREE), 0.5)


def tabled(logprobs: Tensor) -> Tensor:
    """The table [prompts, 1, tokens] of a distribution over the responses of one token."""
    out = torch.empty(2, 1, 8, dtype=torch.float64)
    out[:, 0, [r[0] for r in TREE.responses]] = logprobs
    return out


def case(name: str, policy: Tensor = START, loss: tuple[str, Mapping[str, Any]] = ("", {}), **method: Any) -> Case:
    fields = {"temperature": 1.0, "require_finished": False, **method, "name": name}
    return Case(SCAPE, TREE, fields, loss, policy, START, START, None, lambda n, p: build("loss", use(n, **p)))


@pytest.mark.parametrize("name", ["ppo", "rloo", "reinforce_pp", "something new"])
def test_a_gap_of_the_objective_is_1_at_the_start_and_0_at_the_optimum(name: str) -> None:
    assert own(case(name, kl_coef=0.5)).gap == pytest.approx(1.0)
    assert own(case(name, tabled(SCAPE.optimum()), kl_coef=0.5)).gap == pytest.approx(0.0, abs=1e-9)


def test_the_optimum_is_that_of_the_methods_own_coefficient() -> None:
    cold = own(case("rloo", tabled(SCAPE.optimum(0.1)), kl_coef=0.1))
    assert cold.gap == pytest.approx(0.0, abs=1e-9)
    assert own(case("rloo", tabled(SCAPE.optimum(0.5)), kl_coef=0.1)).gap > 0.05
    assert own(case("dapo", tabled(SCAPE.optimum().log_softmax(-1)), kl_coef=0.0)).gap > 0.1
    assert own(case("unknown", tabled(SCAPE.optimum(0.5)), kl_coef=0.1)).gap == pytest.approx(0.0, abs=1e-9)


def test_online_comparisons_make_for_the_optimum_by_the_loss_of_dpo_alone() -> None:
    assert own(case("online_dpo", loss=("dpo", {"beta": 0.5}))).kind == "regularised"
    assert own(case("online_dpo", loss=("hinge", {"beta": 0.5}))).kind == "objective"


# -- groups ------------------------------------------------------------------------------------------------------------

GROUPED = {"scale": True, "reduction": "sequence", "kl_coef": 0.5, "samples_per_prompt": 64}


def test_at_the_fixed_point_the_expected_step_is_0() -> None:
    found = fixed_point(SCAPE, TREE, START, GROUPED)
    logits = tabled(found).requires_grad_(True)
    expected_step(SCAPE, TREE, START, torch.log_softmax(logits, -1), GROUPED).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7
    assert own(case("grpo", tabled(found), **GROUPED)).gap == pytest.approx(0.0, abs=1e-9)
    assert own(case("grpo", **GROUPED)).gap == pytest.approx(1.0)


def test_a_small_kl_whose_steps_overflow_still_has_a_point() -> None:
    """At a beta of 0.04 Newton's steps leave the numbers; they are not taken, and what Adam found stays."""
    few = {**GROUPED, "kl_coef": 0.04}
    wide = Problem()
    start = table(Policy(model(wide.seed).double(), tokenizer()), wide)
    scape = Landscape(wide.rewards(), responses_of(start, wide.tree), 0.5)
    found = fixed_point(scape, wide.tree, start, few)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2).double())
    assert float(scape.reward(found).mean()) > float(scape.reward(scape.ref).mean()) + 1


def test_the_fixed_point_solves_its_equation() -> None:
    """With one token the sum's derivative by log pi is pi (beta - A) - beta ref, and its softmax gradient is 0 where
    that is c pi for one c. Summed over the responses, with E A = 0, c is 0: so pi (1 - A / beta) = ref."""
    found = fixed_point(SCAPE, TREE, START, GROUPED)
    p, ref = found.exp(), SCAPE.ref.exp()
    centred = SCAPE.rewards - (p * SCAPE.rewards).sum(-1, keepdim=True)
    advantages = centred / (p * centred**2).sum(-1, keepdim=True).sqrt() * 63 / 64
    torch.testing.assert_close(p * (1 - advantages / 0.5), ref, rtol=0, atol=1e-6)


def test_the_expected_step_is_the_mean_of_sampled_ones() -> None:
    """Groups of two, all 64 of a prompt enumerated: the factor 1 - 1/n is that of a baseline with the sample in it."""
    method = {**GROUPED, "scale": False, "kl_coef": 0.0, "samples_per_prompt": 2}
    logits = START.clone().requires_grad_(True)
    logprobs = torch.log_softmax(logits, -1)
    said = responses_of(logprobs, TREE)
    total = torch.zeros((), dtype=torch.float64)
    for prompt in range(2):
        for a, b in itertools.product(range(8), repeat=2):
            chance = (said[prompt, a] + said[prompt, b]).detach().exp()
            mean = (SCAPE.rewards[prompt, a] + SCAPE.rewards[prompt, b]) / 2
            step = sum(-(SCAPE.rewards[prompt, i] - mean) * said[prompt, i] for i in (a, b)) / 2
            total = total + chance * step / 2
    (sampled,) = torch.autograd.grad(total, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(expected_step(SCAPE, TREE, START, logprobs, method), logits)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-12)


# -- given data --------------------------------------------------------------------------------------------------------


def test_dpo_with_soft_labels_makes_for_the_optimum() -> None:
    data = pairs(PROBLEM)
    problem = Given.of(data, TREE, build("loss", "dpo(beta=0.5)"), START)
    best = responses_of(problem.least(), TREE)
    assert float(kl(SCAPE.optimum(), best).mean()) < 1e-5
    done = own(replace(case("dpo", tabled(SCAPE.optimum()), ("dpo", {"beta": 0.5})), data=data))
    assert done.kind == "given"
    assert done.gap == pytest.approx(0.0, abs=1e-6)


def test_the_loss_of_given_pairs_is_their_mean() -> None:
    data = pairs(PROBLEM)
    problem = Given.of(data, TREE, build("loss", "dpo(beta=0.5)"), START)
    assert problem.loss(START) == pytest.approx(math.log(2))
    assert problem.loss(tabled(SCAPE.optimum())) == pytest.approx(_entropy(data), rel=1e-6)


def _entropy(data: Any) -> float:
    """At pi* the implied preference is the label, so the loss is the labels' own entropy."""
    probs = [row["preference_prob"] for row in data]
    return sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in probs) / len(probs)


def test_labels_are_measured_against_the_other_prompts_responses() -> None:
    data = labels(PROBLEM)
    problem = Given.of(data, TREE, build("loss", "kto(beta=0.5)"), START)
    other = tabled(torch.log_softmax(SCAPE.ref + 2 * SCAPE.rewards, -1))
    moved = responses_of(other, TREE) - SCAPE.ref
    z0 = max(0.0, float(moved.mean()))
    total, count = 0.0, 0
    for row in data:
        prompt = ["a b", "c"].index(row["prompt"][0]["content"])
        for ids, good in zip(row["response_ids"], row["labels"], strict=True):
            value = 0.5 * (float(moved[prompt, TREE.number(ids)]) - z0)
            total, count = total + 1 / (1 + math.exp(value if good else -value)), count + 1
    assert problem.loss(other) == pytest.approx(total / count)
    assert problem.loss(START) == pytest.approx(0.5)


# -- imitation ---------------------------------------------------------------------------------------------------------


def test_best_of_three_by_all_draws_of_three() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    rewards = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
    for may in ([True, True, True], [True, False, True]):
        won = [0.0, 0.0, 0.0]
        for draw in itertools.product(range(3), repeat=3):
            able = [i for i in draw if may[i]]
            if able:
                won[max(able, key=lambda i: float(rewards[0, i]))] += math.prod(float(probs[0, i]) for i in draw)
        found = best_of_n(probs, rewards, 3, torch.tensor(may))[0].tolist()
        assert found == pytest.approx([w / sum(won) for w in won])


def test_the_best_of_n_costs_about_log_n_less_a_share() -> None:
    fine = torch.full((1, 4000), 1 / 4000, dtype=torch.float64)
    rewards = torch.arange(4000, dtype=torch.float64).unsqueeze(0)
    best = best_of_n(fine, rewards, 4, torch.ones(4000, dtype=torch.bool))
    assert float(kl(best.log(), fine.log())) == pytest.approx(math.log(4) - 3 / 4, abs=1e-3)


def test_imitation_of_the_best_is_measured_from_what_was_sampled() -> None:
    fields = {"samples_per_prompt": 4}
    best = best_of_n(SCAPE.ref.exp(), SCAPE.rewards, 4, torch.ones(8, dtype=torch.bool))
    assert own(case("rejection_sampling", **fields)).gap == pytest.approx(1.0)
    assert own(case("rejection_sampling", tabled(best.log()), **fields)).gap == pytest.approx(0.0, abs=1e-9)
    ended = own(case("rejection_sampling", **{**fields, "require_finished": True}))
    assert ended.logprobs is not None
    assert ended.logprobs.exp()[0].tolist() == pytest.approx([float(r == (END,)) for r in TREE.responses])


def test_what_lies_above_the_last_threshold_weighs_by_how_surely_it_is_drawn() -> None:
    fields = {"samples_per_prompt": 2, "quantiles": [0.1, 0.5], "thresholds": []}
    there = 1 - (1 - SCAPE.ref.exp()) ** 2
    found = own(case("rest", **fields)).logprobs
    assert found is not None
    order = sorted((float(SCAPE.rewards[p, r]), float(there[p, r])) for p in range(2) for r in range(8))
    total, reached = sum(w for _, w in order), 0.0
    least = math.inf
    for value, weight in order:
        reached += weight
        if reached > total / 2:
            least = min(least, value)
    kept = there * (SCAPE.rewards >= least)
    torch.testing.assert_close(found.exp(), kept / kept.sum(-1, keepdim=True))
    given = own(case("rest", **{**fields, "thresholds": [0.0, 0.4]})).logprobs
    assert given is not None
    assert torch.equal(given.exp() > 0, SCAPE.rewards > 0.4)
