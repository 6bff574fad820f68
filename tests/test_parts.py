"""A group too large for one micro-batch is learned in parts, and nothing but its memory is another."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest

from alignkit import Batch, Groups, PolicyOptimizer, Run, Term
from alignkit.engine.objectives import Objective, StreamData
from alignkit.engine.reduction import reduce_terms
from alignkit.engine.step_cost import StepCosts
from alignkit.models.batch import parts_of, row_length
from alignkit.models.logprobs import response_logprobs
from alignkit.testing import bound, one_step, same_gradients, tiny_policy, training_data

TEXTS = ["one", "two words", "a third, longer answer", "4", "the fifth"]
GROUPS = Groups.from_rows(
    [
        {"prompt": "a", "responses": TEXTS, "ranks": [1, 2, 3, 4, 5]},
        {"prompt": "another prompt", "responses": TEXTS[1:4], "ranks": [2, 1, 3]},
        {"prompt": "b", "responses": ["alone"], "ranks": [1]},
    ]
)


@functools.cache
def small() -> int:
    """Padded cells in which the longest response fits with its prompt, and no group of several."""
    encoded = training_data(tiny_policy(), GROUPS).encoded
    return max(len(g.prompt_ids) + max(map(len, g.responses)) for g in encoded)


def squared(logprobs):
    return (logprobs - 0.5) ** 2


def of_responses(logprobs, response_mask, labels):
    return ((logprobs * response_mask).sum(-1) - labels) ** 2 * 1e-2


def better(chosen_logprobs, rejected_logprobs):
    return (rejected_logprobs - chosen_logprobs + 1) ** 2 * 1e-2


@pytest.mark.parametrize("shared", [True, False])
def test_parts_hold_each_response_once_and_no_more_than_a_micro_batch_may(shared):
    data = training_data(tiny_policy(), GROUPS)
    data.shared = shared
    for number, group in enumerate(data.encoded):
        parts = parts_of(group, shared, small())
        assert [k for first, end in parts for k in range(first, end)] == list(range(len(group.responses)))
        assert (len(parts) == 1) == (number == 2)
    batches = [data.collate(numbers) for numbers in data.all_micro_batches(small())]
    assert all(batch.input_ids.numel() <= small() for batch in batches)
    seen = sorted((int(r), int(g)) for batch in batches for r, g in zip(batch.responses, batch.groups, strict=True))
    assert seen == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 1), (7, 1), (8, 2)]


@pytest.mark.parametrize("layout", [(True, True), (True, False), (False, False)])
def test_the_share_of_useful_tokens_is_that_of_the_batches(layout):
    data = training_data(tiny_policy(), GROUPS)
    data.shared, data.packed = layout
    for max_tokens in (10**6, small()):
        (step,) = data.steps(0, 1, max_tokens, (0,))
        batches = [data.collate(numbers) for numbers in step.micro]
        cells = sum(batch.cells for batch in batches)
        assert data.useful_tokens(step) == pytest.approx(sum(batch.tokens for batch in batches) / cells)
        assert (data.useful_tokens(step) == 1) == data.packed


def test_a_response_that_is_too_long_alone_is_a_part_alone():
    data = training_data(tiny_policy(), GROUPS)
    assert parts_of(data.encoded[0], True, 1) == [(k, k + 1) for k in range(5)]


@pytest.mark.parametrize("reduction", ["token", "sequence", "group", "constant"])
def test_the_gradient_of_parts_is_that_of_the_whole(reduction):
    """Counts are those of whole groups: a mean over a prompt's responses is not a mean of means of parts."""
    whole, parts = (one_step(tiny_policy(), GROUPS, squared, Term(reduction=reduction), m) for m in (10**6, small()))
    assert len(parts.steps[0].micro) > len(whole.steps[0].micro)
    same_gradients(parts.gradients, whole.gradients)


def test_a_mask_of_the_methods_own_counts_whole_groups_too():
    policy = tiny_policy()
    data = training_data(policy, GROUPS)
    mask = data.response_mask.clone()
    mask[1] = mask[2] = False  # two of the first group's five have nothing to learn from
    mask[3, 1:] = False
    data.tensors = {"value_mask": mask.float()}
    totals = []
    for max_tokens in (10**6, small()):
        total = 0.0
        (step,) = data.steps(0, 1, max_tokens, (0,))
        for numbers in step.micro:
            batch = data.collate(numbers)
            tensors = {"response_mask": batch.response_mask, **data.slice_tensors(batch)}
            values = (batch.responses.float().unsqueeze(-1) + 1).expand(batch.targets.shape)
            layout = data.layout(batch, tensors, None)
            declared = {"loss": Term(weight=0.0, reduction="group", mask="value_mask")}
            _, shares = reduce_terms(
                {"loss": values}, declared, ("logprobs",), layout, functools.partial(data.count, step)
            )
            total += shares["loss"]
        totals.append(total)
    # By hand: (1 + 4 + 5) / 3, (6 + 7 + 8) / 3 and 9, of three prompts.
    assert totals == pytest.approx([(10 / 3 + 7 + 9) / 3] * 2)


def test_a_loss_of_responses_is_learned_in_parts():
    labelled = GROUPS.with_columns({"labels": [[True, False, True, False, True], [True, False, True], [False]]})
    for reduction in ("sequence", "group"):
        whole, parts = (
            one_step(tiny_policy(), labelled, of_responses, Term(reduction=reduction), m) for m in (10**6, small())
        )
        same_gradients(parts.gradients, whole.gradients)


def test_a_loss_of_pairs_keeps_a_group_together_and_the_run_says_what_it_takes(tmp_path, capsys):
    @dataclass(frozen=True)
    class Compared(PolicyOptimizer):
        loss: Any = better
        samples_per_prompt: int = 0
        batch_size: int = 0

        def prepare(self, groups, state):
            return Batch(groups)

    with Run(tmp_path / "r", max_tokens=small(), trainer={"accelerator": "cpu"}) as run:
        v0 = run.policy("tiny", lora=None)
        run.improve(v0, GROUPS, optimizer=Compared(), name="v1")
    most = row_length(training_data(tiny_policy(), GROUPS).encoded[0], True)
    assert f"the largest group has {most} tokens" in " ".join(capsys.readouterr().out.split())


def test_a_second_stream_is_learned_in_parts():
    def streams(max_tokens):
        def made(policy):
            data = training_data(policy, GROUPS)
            objective = Objective(bound(squared), {"ptx": Term(reduction="group")}, "ptx")
            return [StreamData("ptx", data, objective, 3, max_tokens, (0, "s"))]

        return made

    whole, parts = (
        one_step(tiny_policy(), GROUPS, squared, Term(), 10**6, streams=streams(m)) for m in (10**6, small())
    )
    same_gradients(parts.gradients, whole.gradients)


def test_what_parts_cost_is_counted_with_the_prompts_read_again():
    policy = tiny_policy()
    data = training_data(policy, GROUPS)
    (step,) = data.steps(0, 1, small(), (0,))
    whole, parts = data.reading(step.numbers), data.reading(step.laid_out)
    again = sum(len(data.encoded[i].prompt_ids) * (len(parts_of(data.encoded[i], True, small())) - 1) for i in range(3))
    assert parts.tokens == whole.tokens + again > whole.tokens
    assert parts.learned == whole.learned
    cost = StepCosts(policy, frozenset({"logprobs"})).of(data, step, 0)
    assert cost.flops.forward == policy.flops(parts).forward


def test_log_probs_of_many_responses_are_worked_out_in_parts():
    policy = tiny_policy()
    data = training_data(policy, GROUPS)
    prompts, responses = [g.prompt_ids for g in data.encoded], [g.responses for g in data.encoded]
    whole, parts = (response_logprobs(policy, prompts, responses, max_tokens=m) for m in (10**6, small()))
    for mine, other in zip(parts, whole, strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
