"""Pairs between prompts: whole in one micro-batch, each response its own."""

from __future__ import annotations

import pytest
import torch

from alignkit import DataError, Groups, Term
from alignkit.engine.assemble import assemble
from alignkit.engine.pairs import pairs_of
from alignkit.models import Policy
from alignkit.testing import PAIRS, one_step, ranking, same_gradients, tiny_policy, training_data


def test_pairs_between_prompts_stay_in_one_micro_batch_and_give_the_same_gradient():
    """Responses 0, 2 and 5 answer different prompts; 8 pairs would be made from the ranks otherwise."""
    pairs = [(0, 2), (5, 7), (2, 4)]
    whole = one_step(tiny_policy(), PAIRS, ranking, {"loss": Term()}, pairs=pairs)
    single = one_step(tiny_policy(), PAIRS, ranking, {"loss": Term()}, pairs=pairs, max_tokens=1)
    same_gradients(single.gradients, whole.gradients, 1e-5)
    data = training_data(Policy.load("tiny"), PAIRS, pairs)
    assert data.units == [[0, 1, 2, 3]]  # 0-2 joins groups 0 and 1, 2-4 joins 1 and 2, 5-7 joins 2 and 3
    for world in (1, 4):  # more processes than units: some are idle, and none gets half a unit
        (step,) = data.steps(0, 1, 10**6, (0,), world)
        assert [len(part) for part in step.micro if part] == [4]
    apart = training_data(Policy.load("tiny"), PAIRS, [(0, 2), (4, 6)])
    assert apart.units == [[0, 1], [2, 3]]
    steps = apart.steps(1, 1, 1, (0,))
    assert sorted(sorted(step.numbers) for step in steps) == [[0, 1], [2, 3]]


def test_pair_sums_of_two_prompts_are_those_of_their_own_responses():
    policy = Policy.load("tiny")
    data = training_data(policy, PAIRS, [(1, 6)])
    tensors, group = assemble(policy, data, data.collate([0, 3]), frozenset({"chosen_logprobs"}))
    alone = training_data(policy, PAIRS)
    first, _ = assemble(policy, alone, alone.collate([0]), frozenset({"chosen_logprobs"}))
    last, _ = assemble(policy, alone, alone.collate([3]), frozenset({"chosen_logprobs"}))
    assert group is not None
    assert group.tolist() == [0]
    torch.testing.assert_close(tensors["chosen_logprobs"], first["rejected_logprobs"], rtol=0, atol=1e-4)
    torch.testing.assert_close(tensors["rejected_logprobs"], last["chosen_logprobs"], rtol=0, atol=1e-4)


def test_pairs_are_those_whose_ranks_differ_with_what_is_said_of_them():
    said = {"rating": "better", "preference_prob": 0.7, "meta": {"margin": 0.5, "safe": [True, None, False]}}
    found = pairs_of(
        Groups.from_rows(
            [
                {"prompt": "p", "responses": ["a", "b", "c", "d"], "ranks": [2, 1, 1, 3], **said},
                {"prompt": "waits"},
                {"prompt": "ties", "responses": ["a", "b"], "ranks": [1, 1]},
                {"prompt": "unranked", "responses": ["a"]},
                {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]},
            ]
        )
    )
    assert found.chosen.tolist() == [0, 1, 1, 2, 2, 7]
    assert found.rejected.tolist() == [3, 0, 3, 0, 3, 8]
    assert found.group.tolist() == [0, 0, 0, 0, 0, 4]
    told = {name: values.tolist() for name, values in found.tensors.items()}
    assert told["rating"] == [1] * 5 + [-1]
    assert told["margin"] == [0.5] * 5 + [0.0]
    assert told["preference_prob"] == pytest.approx([0.7] * 5 + [1.0])
    assert told["chosen_safe"] == [1, -1, -1, 0, 0, -1]
    assert told["rejected_safe"] == [-1, 1, -1, 1, -1, -1]
    kinds = {name: values.dtype for name, values in found.tensors.items()}
    assert kinds == {"rating": torch.long, **dict.fromkeys(set(kinds) - {"rating"}, torch.float32)}
    assert [len(values) for values in vars(pairs_of(Groups.from_rows([]))).values()] == [0, 0, 0, 5]


def test_pairs_of_a_micro_batch_are_those_of_its_groups_in_its_order():
    """Groups of 3, 2 and 2 responses; a batch holds the last and the first of them."""
    rows = [("p", [1, 2, 3]), ("q", [1, 2]), ("r", [2, 1])]
    groups = Groups.from_rows({"prompt": p, "responses": list("abc"[: len(r)]), "ranks": r} for p, r in rows)
    policy = Policy.load("tiny")
    data = training_data(policy, groups)
    assert [data.pairs_among([n]).tolist() for n in range(3)] == [[0, 1, 2], [3], [4]]
    tensors, group = assemble(policy, data, data.collate([2, 0]), frozenset({"chosen_logprobs", "rejected_logprobs"}))
    assert group.tolist() == [0, 1, 1, 1]
    batch = data.collate([2, 0])
    sums = dict(zip(batch.responses.tolist(), (tensors["logprobs"] * batch.response_mask).sum(-1), strict=True))
    assert torch.equal(tensors["chosen_logprobs"], torch.stack([sums[n] for n in (6, 0, 0, 1)]))
    assert torch.equal(tensors["rejected_logprobs"], torch.stack([sums[n] for n in (5, 1, 2, 2)]))
    torn = training_data(policy, groups, [(0, 3)])
    with pytest.raises(AssertionError, match="joins responses of two"):
        assemble(policy, torn, torn.collate([0]), frozenset({"chosen_logprobs"}))


@pytest.mark.parametrize("pair", [(0, 8), (3, 3), (-1, 2)])
def test_a_pair_outside_the_round_is_refused(pair):
    data = training_data(Policy.load("tiny"), PAIRS, [pair])
    with pytest.raises(DataError, match="not a pair"):
        _ = data.pairs
