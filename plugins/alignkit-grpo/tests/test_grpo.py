"""GRPO and its variants, RLOO, REINFORCE++: advantages, reductions, gradients, and that they are short."""

from __future__ import annotations

import ast
import inspect
import io
import json
import math
import sys
import tokenize
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_grpo import DAPO, GRPO, RLOO, ReinforcePP, clipped_policy, group_advantages, leave_one_out, reinforce
from alignkit_grpo.dapo import overlong_penalty
from alignkit_grpo.reinforce_pp import reward_to_go
from alignkit_grpo.surrogate import group_metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import Batch, ConfigError, DataError, FunctionReward, Groups, Run, Term
from alignkit.plugin import k3
from alignkit.testing import reduced

DTYPES = [torch.float64, torch.float32]
quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10_000)


def close(actual: torch.Tensor, expected: Any, dtype: torch.dtype = torch.float64, tolerance: float = 1e-9) -> None:
    tolerance = tolerance if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=dtype), rtol=tolerance, atol=tolerance)


def round_of(
    *groups: list[float | None], lengths: list[int] | None = None, seed: int = 0
) -> tuple[Groups, dict[str, Any]]:
    """A round with these rewards (None: missing) and random log-probs; what the mask hides is NaN."""
    rows = [{"prompt": f"p{i}", "responses": [f"{i}-{k}" for k in range(len(g))]} for i, g in enumerate(groups)]
    flat = [r for group in groups for r in group]
    lengths = lengths or [1 + k % 3 for k in range(len(flat))]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    logprobs, ref = torch.randn(
        2, *mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).masked_fill(~mask, math.nan)
    given = Groups.from_rows(rows).with_rewards("r", groups)
    return given, {
        "rewards": torch.tensor([0.0 if r is None else r for r in flat], dtype=torch.float64),
        "present": torch.tensor([r is not None for r in flat]),
        "logprobs": logprobs,
        "ref_logprobs": ref,
        "response_mask": mask,
        "max_new_tokens": 8,
    }


def prepare(optimizer: Any, groups: Groups, tensors: dict[str, Any]) -> Batch:
    return optimizer.prepare(groups, {}, **{n: tensors[n] for n in optimizer.prepare_arguments()})


# -- advantages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_advantages_golden(dtype: torch.dtype) -> None:
    """Means 0.5 and 3; unbiased deviations 1/sqrt(3) and 2; the third group is alone, the fourth flat."""
    scores = torch.tensor([1, 0, 0, 1, 1, 3, 5, 7, 0.1, 0.1, 0.1], dtype=dtype)
    sizes = [4, 3, 1, 3]
    half = 0.5 / (1 / math.sqrt(3) + 1e-4)
    expected = [half, -half, -half, half, -2 / 2.0001, 0, 2 / 2.0001, 0, 0, 0, 0]
    close(group_advantages(scores, sizes), expected, dtype)
    close(group_advantages(scores, sizes, scale=False), [0.5, -0.5, -0.5, 0.5, -2, 0, 2, 0, 0, 0, 0], dtype)


def test_rewards_that_differ_by_rounding_teach_nothing() -> None:
    """100.1 and the next float32: a deviation of 4e-6 stands beside an eps of 1e-4, and is no reason to prefer one."""
    one = torch.full((4,), 100.1)
    near = torch.nextafter(one, one + 1).where(torch.arange(4) % 2 == 0, one)
    assert group_advantages(near, [4]).tolist() == [0.0] * 4
    assert leave_one_out(near, [4]).tolist() == [0.0] * 4
    assert group_metrics(near, [4])["degenerate_groups"] == 1.0
    groups = Groups.from_rows([{"prompt": "p", "responses": ["a", "b"]}]).with_rewards("r", [[0.1 + 0.2, 0.3]])
    assert DAPO().keep(groups, "r") == [False]
    assert DAPO().keep(groups.with_rewards("r", [[1e8, 1e8 + 1]]), "r") == [True]
    assert DAPO().keep(groups.with_rewards("r", [near[:2].tolist()]), "r") == [False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_leave_one_out_golden(dtype: torch.dtype) -> None:
    scores = torch.tensor([1, 2, 6, 4, 1], dtype=dtype)
    close(leave_one_out(scores, [3, 1, 1]), [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0], dtype)


@quick
@given(seeds, st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_rloo_is_the_mean_of_the_others_and_grpo_without_scale_times_k_over_k_minus_one(
    seed: int, sizes: list[int]
) -> None:
    scores = torch.randn(sum(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    plain: list[float] = []
    for part in scores.split(sizes):
        values = part.tolist()
        others = [values[:k] + values[k + 1 :] for k in range(len(values))]
        plain += [v - sum(o) / len(o) if o else 0.0 for v, o in zip(values, others, strict=True)]
    close(leave_one_out(scores, sizes), plain)
    factor = torch.cat([torch.full((k,), k / max(k - 1, 1), dtype=torch.float64) for k in sizes])
    close(leave_one_out(scores, sizes), group_advantages(scores, sizes, scale=False) * factor)


@quick
@given(seeds, st.integers(2, 6))
def test_grpo_and_rloo_point_the_same_way(seed: int, size: int) -> None:
    """Within a group they differ by one positive factor: k / (k - 1) times the standard deviation."""
    scores = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ratio = leave_one_out(scores, [size]) / group_advantages(scores, [size], eps=0.0)
    close(ratio, torch.full_like(ratio, float(scores.std()) * size / (size - 1)), tolerance=1e-6)


@quick
@given(seeds, st.floats(-5, 5), st.floats(0.1, 9))
def test_group_advantages_ignore_where_a_prompts_rewards_lie_and_how_wide(seed: int, shift: float, by: float) -> None:
    scores = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    moved = group_advantages(scores * by + shift, [3, 2], eps=0.0)
    close(moved, group_advantages(scores, [3, 2], eps=0.0), tolerance=1e-6)
    order = torch.tensor([2, 0, 1, 4, 3])
    close(group_advantages(scores[order], [3, 2]), group_advantages(scores, [3, 2])[order])


def test_groups_are_found_where_they_are_though_of_unequal_size() -> None:
    groups, tensors = round_of([1.0, 0.0], [5.0, 6.0, 10.0], [2.0])
    advantages = prepare(GRPO(scale=False), groups, tensors).tensors["advantages"]
    close(advantages[:, 0], [0.5, -0.5, -2, -1, 3, 0])


def test_reward_to_go_takes_off_the_kl_still_to_come() -> None:
    kl = torch.tensor([[1.0, 2.0, 4.0], [3.0, math.nan, math.nan]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    scores = torch.tensor([10.0, 1.0], dtype=torch.float64)
    close(reward_to_go(scores, kl, mask, 0.1), [[10 - 0.7, 10 - 0.6, 10 - 0.4], [0.7, 0, 0]])


def test_reinforce_pp_normalises_over_the_tokens_of_the_round() -> None:
    groups, tensors = round_of([1.0, 0.0], [0.0, 3.0], lengths=[3, 2, 1, 2])
    advantages = prepare(ReinforcePP(), groups, tensors).tensors["advantages"]
    shown = advantages[tensors["response_mask"]]
    close(shown.mean(), 0.0)
    close(shown.var(correction=0), 1.0, tolerance=1e-6)
    raw = reward_to_go(
        tensors["rewards"], tensors["logprobs"] - tensors["ref_logprobs"], tensors["response_mask"], 0.01
    )[tensors["response_mask"]]
    close(shown, (raw - raw.mean()) / raw.std(correction=0), tolerance=1e-6)


def test_rloo_takes_the_kl_of_the_whole_response_off_its_reward() -> None:
    groups, tensors = round_of([1.0, 0.0], lengths=[2, 3])
    kl = (tensors["logprobs"] - tensors["ref_logprobs"]).nansum(1)
    close(prepare(RLOO(kl_coef=0.5), groups, tensors).tensors["advantages"][:, 0].sum(), 0.0)
    expected = (1 - 0.5 * kl[0]) - (0 - 0.5 * kl[1])
    close(prepare(RLOO(kl_coef=0.5), groups, tensors).tensors["advantages"][0, 1], expected)
    same = {**tensors, "ref_logprobs": tensors["logprobs"]}
    close(prepare(RLOO(kl_coef=9.0), groups, same).tensors["advantages"][:, 0], [1.0, -1.0])


@pytest.mark.parametrize("optimizer", [GRPO(), RLOO(), GRPO(scale=False, kl_coef=0.0)])
def test_a_group_of_equal_rewards_teaches_nothing_and_makes_no_nan(optimizer: Any) -> None:
    groups, tensors = round_of([0.1, 0.1, 0.1], [1.0, 0.0])
    tensors["ref_logprobs"] = tensors["logprobs"].clone()
    batch = prepare(optimizer, groups, tensors)
    assert torch.equal(batch.tensors["advantages"][:3], torch.zeros_like(batch.tensors["advantages"][:3]))
    assert not batch.tensors["advantages"].isnan().any()
    assert batch.metrics["degenerate_groups"] == 0.5


def test_what_is_said_of_a_round() -> None:
    metrics = group_metrics(torch.tensor([1.0, 3.0, 5.0, 5.0, 5.0]), [2, 3])
    assert metrics == {"group_reward_std": 0.5, "degenerate_groups": 0.5, "responses": 5.0}


# -- missing rewards ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [GRPO(), RLOO(), ReinforcePP()])
def test_a_missing_reward_never_counts_as_a_number(optimizer: Any) -> None:
    """The batch is what it would be if the response had never been drawn; a prompt without rewards is gone."""
    groups, tensors = round_of([1.0, None, 3.0, 7.0], [None, None], [2.0, 0.0])
    batch = prepare(optimizer, groups, tensors)
    assert [row["responses"] for row in batch.groups] == [["0-0", "0-2", "0-3"], ["2-0", "2-1"]]
    kept = tensors["present"]
    without = {n: v[kept] if isinstance(v, torch.Tensor) else v for n, v in tensors.items()}
    again = prepare(optimizer, batch.groups, without)
    assert torch.equal(batch.tensors["advantages"], again.tensors["advantages"])
    assert batch.metrics == again.metrics


@pytest.mark.parametrize("optimizer", [GRPO(), RLOO(), ReinforcePP()])
def test_it_never_learns_from_nothing(optimizer: Any) -> None:
    with pytest.raises(DataError, match="Learning from nothing"):
        prepare(optimizer, *round_of([None, None]))


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("advantage", "expected"), [(1.0, [-0.5, -0.8, -1, -1.2, -1.28]), (-1.0, [0.8, 0.8, 1, 1.2, 1.5])]
)
def test_clip_higher_golden(dtype: torch.dtype, advantage: float, expected: list[float]) -> None:
    """DAPO's range 1 - 0.2 to 1 + 0.28 at the ratios 0.5, 0.8, 1, 1.2, 1.5."""
    ratio = torch.tensor([[0.5, 0.8, 1, 1.2, 1.5]], dtype=dtype)
    old = torch.full_like(ratio, -1.0)
    terms = clipped_policy(ratio.log() + old, old, torch.full_like(ratio, advantage), clip_high=0.28)
    close(terms["policy_loss"], [expected], dtype)
    close(terms["ratio"], ratio, dtype)
    assert terms["clip_fraction"][0, [0, 2, 4]].tolist() == ([0, 0, 1] if advantage > 0 else [1, 0, 0])


@pytest.mark.parametrize("loss", [clipped_policy, reinforce])
def test_before_the_first_step_ratio_is_one_and_the_gradient_is_that_of_reinforce(loss: Any) -> None:
    logprobs, advantages = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logprobs.requires_grad_()
    terms = loss(logprobs, logprobs.detach().clone(), advantages)
    assert torch.equal(terms["ratio"], torch.ones(3, 4, dtype=torch.float64))
    terms["policy_loss"].sum().backward()
    assert torch.equal(logprobs.grad, -advantages)
    assert not terms.get("clip_fraction", torch.zeros(1)).any()
    assert {name for name, term in terms.items() if term.requires_grad} == {"policy_loss"}


def test_the_kl_in_the_loss_pulls_back_to_the_reference() -> None:
    """d k3 / d log pi = 1 - ref / pi: down where pi is above the reference, up where below, nothing where equal."""
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[-2.0, -2.0, -2.0]], dtype=torch.float64)
    GRPO().extra_losses()["kl"](logprobs, ref).sum().backward()
    close(logprobs.grad, [[1 - math.exp(-1), 0.0, 1 - math.exp(1)]])
    assert GRPO().extra_losses()["kl"] is k3
    assert GRPO().terms()["kl"] == replace(GRPO().terms()["policy_loss"], weight=0.04)
    assert not GRPO(kl_coef=0.0).extra_losses()
    assert "kl" not in GRPO(kl_coef=0.0).terms()


# -- against closed forms, by enumeration ------------------------------------------------------------------------------

BANDIT = {"reward": [1.0, 0.0, 3.0], "theta": [0.3, -0.4, 0.1], "ref": [0.0, 0.5, -0.5]}


def expected_gradient(optimizer: Any, loss: Any) -> torch.Tensor:
    """The gradient of the loss on two one-token responses, averaged over all that could be drawn, negated."""
    reward, theta, ref = (torch.tensor(BANDIT[n], dtype=torch.float64) for n in ("reward", "theta", "ref"))
    theta.requires_grad_()
    pi, ref = theta.log_softmax(0), ref.log_softmax(0)
    rows = Groups.from_rows([{"prompt": "p", "responses": ["a", "b"]}])
    mask, total = torch.ones(2, 1, dtype=torch.bool), torch.zeros((), dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            drawn = torch.tensor([a, b])
            tensors = {"rewards": reward[drawn], "present": mask[:, 0], "response_mask": mask, "max_new_tokens": 1}
            tensors |= {"logprobs": pi[drawn].detach().unsqueeze(1), "ref_logprobs": ref[drawn].unsqueeze(1)}
            advantages = prepare(optimizer, rows, tensors).tensors["advantages"]
            value = loss(pi[drawn].unsqueeze(1), ref[drawn].unsqueeze(1), advantages).mean()
            total = total - (pi[a] + pi[b]).exp().detach() * value
    return torch.autograd.grad(total, theta)[0]


def gradient_of(objective: Any) -> torch.Tensor:
    reward, theta, ref = (torch.tensor(BANDIT[n], dtype=torch.float64) for n in ("reward", "theta", "ref"))
    theta.requires_grad_()
    return torch.autograd.grad(objective(reward, theta.log_softmax(0), ref.log_softmax(0)), theta)[0]


def test_rloo_climbs_reward_minus_kl_without_bias() -> None:
    """Its expected gradient is that of E[r] - beta KL(pi || ref), whose optimum is ref exp(r / beta) / Z."""
    found = expected_gradient(RLOO(kl_coef=0.7), lambda pi, _ref, a: reinforce(pi, pi.detach(), a)["policy_loss"])
    close(found, gradient_of(lambda r, pi, ref: (pi.exp() * (r - 0.7 * (pi - ref))).sum()))


def test_grpo_without_scale_climbs_the_reward_by_the_factor_of_its_baseline() -> None:
    """A mean that includes the response itself shrinks the gradient by (k - 1) / k: 1/2 for two responses."""
    found = expected_gradient(GRPO(scale=False), lambda pi, _ref, a: clipped_policy(pi, pi.detach(), a)["policy_loss"])
    close(found, 0.5 * gradient_of(lambda r, pi, _ref: (pi.exp() * r).sum()))


def test_k3_as_a_loss_pulls_like_the_kl_from_the_reference() -> None:
    """Its value is an estimate of KL(pi || ref), its gradient one of KL(ref || pi)'s."""
    found = expected_gradient(GRPO(), lambda pi, ref, _a: k3(pi, ref))
    close(found, -gradient_of(lambda _r, pi, ref: (ref.exp() * (ref - pi)).sum()))


# -- reductions --------------------------------------------------------------------------------------------------------

VALUES = torch.tensor([[1.0, 2.0, 3.0, 4.0], [8.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
LENGTHS = [4, 1]
REDUCED = [  # mean of means 2.5 and 8; 18 over 5 tokens; sums 10 and 8 over 8, mean of two
    (GRPO(), 5.25),
    (DAPO(), 3.6),
    (GRPO(reduction="constant", constant=8.0), (10 / 8 + 8 / 8) / 2),
    (RLOO(), (10 + 8) / 2),
    (ReinforcePP(), 3.6),
]


@pytest.mark.parametrize(("optimizer", "expected"), REDUCED)
@pytest.mark.parametrize("split", [False, True])
def test_variants_weigh_tokens_as_their_papers_do(optimizer: Any, expected: float, split: bool) -> None:
    """GRPO: per response; DAPO and REINFORCE++: per token; Dr. GRPO: a constant; RLOO: whole responses. By hand."""
    mask = torch.arange(4) < torch.tensor(LENGTHS).unsqueeze(1)
    term: Term = optimizer.terms()["policy_loss"]
    count = {"token": 5.0, "sequence": 2.0, "response": 2.0}
    total = 0.0
    for rows in [[0], [1]] if split else [[0, 1]]:
        values = VALUES.masked_fill(~mask, math.nan)[rows]
        total += reduced(values, term, mask[rows], count)
    assert total == pytest.approx(expected)


# -- DAPO's other parts ------------------------------------------------------------------------------------------------


def test_dynamic_sampling_keeps_what_can_be_told_apart() -> None:
    groups, _ = round_of([1.0, 1.0], [1.0, 0.0], [None, 1.0, 1.0], [None, None, 1.0], [0.0, None, 1.0])
    assert DAPO().keep(groups, "r") == [False, True, False, False, True]
    assert DAPO(dynamic_sampling=False).keep(groups, "r") is None


def test_the_overlong_penalty_falls_over_the_buffer() -> None:
    close(overlong_penalty(torch.tensor([3, 6, 7, 8, 9]), 8, 2).double(), [0, 0, -0.5, -1, -1])
    groups, tensors = round_of([1.0, 1.0], lengths=[6, 8])
    batch = prepare(DAPO(scale=False, overlong_buffer=2), groups, tensors)
    close(batch.tensors["advantages"][:, 0], [0.5, -0.5])
    close(prepare(DAPO(), groups, tensors).tensors["advantages"][:, 0], [0.0, 0.0])


def test_a_buffer_beyond_the_limit_is_refused_before_any_model_is_loaded() -> None:
    DAPO(overlong_buffer=16).check_use(max_new_tokens=16, losses=())
    with pytest.raises(ConfigError, match="overlong_buffer=17 with max_new_tokens=16"):
        DAPO(overlong_buffer=17).check_use(max_new_tokens=16, losses=())
    with Run(Path("nowhere"), quiet=True, plan=True) as run, pytest.raises(ConfigError, match="overlong_buffer"):
        run.improve(
            run.policy("tiny", lora=None),
            Groups.from_prompts(["a"]),
            optimizer="dapo(overlong_buffer=4096)",
            reward=FunctionReward(letters),
            max_new_tokens=16,
        )


# -- what it declares, and how long it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [GRPO(), RLOO(), ReinforcePP()])
def test_what_the_engine_is_told(optimizer: Any) -> None:
    assert optimizer.on_policy
    assert optimizer.logprob_temperature == optimizer.temperature == 1.0
    loss = {"clipped_policy": clipped_policy, "reinforce": reinforce}[optimizer.loss]
    one = torch.zeros(1, 1)
    assert set(loss(one, one, one)) == set(optimizer.terms()) - {"kl"}
    assert [n for n, t in optimizer.terms().items() if t.weight and n != "kl"] == ["policy_loss"]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (GRPO, {"samples_per_prompt": 0}),
        (GRPO, {"samples_per_prompt": 1}),
        (GRPO, {"kl_coef": -1.0}),
        (DAPO, {"overlong_buffer": -1}),
        (RLOO, {"samples_per_prompt": 1}),
        (RLOO, {"kl_coef": -1.0}),
        (ReinforcePP, {"kl_coef": -1.0}),
    ],
)
def test_what_no_paper_means_is_refused(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        kind(**wrong)


@pytest.mark.parametrize("kind", [RLOO, ReinforcePP])
def test_without_a_kl_no_reference_is_asked_for(kind: Any) -> None:
    given, tensors = round_of([1.0, 0.0, 3.0])
    free = kind(kl_coef=0.0)
    assert "ref_logprobs" in kind().prepare_arguments()
    assert "ref_logprobs" not in free.prepare_arguments()
    del tensors["ref_logprobs"]
    assert prepare(free, given, tensors).tensors["advantages"].isfinite().all()


def test_rloo_without_a_kl_runs_without_a_reference(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as run:
        improved = run.improve(
            run.policy("tiny", lora=None),
            Groups.from_prompts(["say ab"]),
            optimizer="rloo(samples_per_prompt=2, prompts_per_round=1, rounds=1, kl_coef=0.0)",
            reward=FunctionReward(letters),
            max_new_tokens=4,
        )
    assert (improved.policy.path / "metrics.jsonl").exists()


def code_lines(source: str) -> int:
    """Lines that hold code: no docstring, comment or blank line; imports and hyper-parameters count."""
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def test_grpo_is_under_sixty_lines_of_code_with_its_loss() -> None:
    module = inspect.getsource(sys.modules[GRPO.__module__])
    assert code_lines(module) + code_lines(inspect.getsource(clipped_policy)) < 60


def test_docstrings_comments_and_blank_lines_are_no_code() -> None:
    assert code_lines('"""Doc\nstring."""\n\n# comment\nx = [\n    1,\n]\n') == 3


# -- it learns ---------------------------------------------------------------------------------------------------------


def letters(response: str) -> float:
    return sum("a" <= c <= "z" for c in response) / max(len(response), 1)


SMALL = "samples_per_prompt=4, rounds=4, prompts_per_round=8, batch_size=4, learning_rate=3e-3"
METHODS = [
    f"grpo({SMALL})",
    f'grpo({SMALL}, kl_coef=0.0, scale=False, reduction="constant", constant=12)',
    f"dapo({SMALL}, overlong_buffer=4)",
    f"rloo({SMALL})",
    f"reinforce_pp({SMALL})",
]


@pytest.mark.parametrize("method", METHODS)
def test_reward_rises_on_the_tiny_model_and_the_first_ratio_is_one(method: str, tmp_path: Path) -> None:
    prompts = Groups.from_prompts([f"say {w}" for w in ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")])
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        improved = run.improve(
            v0,
            prompts,
            optimizer=method,
            reward=FunctionReward(letters),
            reference=v0,
            max_new_tokens=12,
        )
        values, _ = improved.rollouts.groups.rewards("letters")
    rewards = torch.tensor(values).view(4, -1).mean(1)
    assert rewards[-1] > rewards[0] + 0.03
    with (improved.policy.path / "metrics.jsonl").open() as lines:
        steps = [json.loads(line) for line in lines]
    assert steps[0]["ratio"] == 1.0
    assert steps[1]["ratio"] != 1.0
    assert ("kl" in steps[0]) == (method == METHODS[0])
    if "kl" in steps[0]:
        assert steps[0]["kl"] == 0.0 < steps[-1]["kl"]


@pytest.mark.parametrize("method", [GRPO, DAPO, RLOO, ReinforcePP])
def test_every_method_samples_for_itself(method):
    with pytest.raises(ConfigError, match="sample"):
        method(samples_per_prompt=0)
