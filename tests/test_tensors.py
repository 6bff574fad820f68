"""What a loss is given by name, and what it is told when there is no such thing."""

from __future__ import annotations

import pytest
import torch

from alignkit import ConfigError, Groups
from alignkit.engine.assemble import assemble
from alignkit.engine.losses import call_loss
from alignkit.models import Policy
from alignkit.testing import PAIRS, TEXTS, bound, tiny_policy, training_data


def test_a_loss_that_asks_for_what_is_not_there_is_told():
    def odd(advantages):
        return advantages

    with pytest.raises(ConfigError, match="advantages"):
        call_loss(bound(odd), {"logprobs": torch.zeros(1, 1)})


def test_pair_tensors_of_a_policy_are_sums_over_the_response():
    policy = tiny_policy(trainable=False)
    data = training_data(policy, PAIRS)
    data.tensors["ref_logprobs"] = torch.full((8, 40), -0.5)
    batch = data.collate([2, 0])
    wanted = frozenset({"chosen_logprobs", "ref_rejected_logprobs", "chosen_lengths", "rating"})
    tensors, pair_group = assemble(policy, data, batch, wanted)
    assert pair_group.tolist() == [0, 1]
    alone, _ = assemble(policy, data, data.collate([2]), wanted)
    torch.testing.assert_close(tensors["chosen_logprobs"][0], alone["chosen_logprobs"][0], rtol=0, atol=1e-4)
    assert tensors["chosen_lengths"].tolist() == [len("yes" * 3) + 1, len("yes") + 1]
    assert tensors["ref_rejected_logprobs"].tolist() == [-0.5 * (len("no" * 2) + 1), -0.5 * (len("no" * 4) + 1)]
    assert tensors["rating"].tolist() == [1, 1]


def test_labels_reach_the_loss_with_unknown_told_apart():
    rows = [
        {"prompt": "a", "responses": ["x", "y"], "labels": [True, False]},
        {"prompt": "b", "responses": ["z"]},
    ]
    policy = Policy.load("tiny")
    data = training_data(policy, Groups.from_rows(rows))
    tensors, _ = assemble(policy, data, data.collate([1, 0]), frozenset({"labels", "logprobs"}))
    assert tensors["labels"].tolist() == [-1.0, 1.0, 0.0]


def test_mean_logprobs_are_the_mean_over_the_vocabulary():
    policy = Policy.load("tiny", trainable=True)
    data = training_data(policy, TEXTS)
    batch = data.collate([0])
    tensors = policy.tensors(batch, ("logprobs", "mean_logprobs"), temperature=0.7)
    ids = torch.tensor([data.encoded[0].prompt_ids + data.encoded[0].responses[0]])
    logits = policy.model(ids).logits[0].float() / 0.7
    start = len(data.encoded[0].prompt_ids) - 1
    expected = logits.log_softmax(-1).mean(-1)[start : start + len(data.encoded[0].responses[0])]
    torch.testing.assert_close(tensors["mean_logprobs"][0], expected, rtol=0, atol=1e-5)
    tensors["mean_logprobs"].sum().backward()
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in policy.parameters())
