"""KL of a policy to its reference on its own samples."""

from __future__ import annotations

from typing import Any

import torch

from alignkit.data.encode import encode_groups
from alignkit.engine.training_data import TrainingData
from alignkit.groups import Groups
from alignkit.models import Policy


@torch.no_grad()
def kl_per_response(
    policy: Policy,
    groups: Groups,
    reference: Policy | None,
    state: str | None,
    temperature: float,
    max_tokens: int,
    max_prompt_tokens: int,
) -> list[list[float]]:
    """Sum over the response of log pi - log ref (estimator k1), in nats; its mean over samples estimates the KL.

    Args:
        policy: the sampler.
        groups: its samples, with the log-probs that they were drawn with.
        reference: a second model, or None when `state` names a state of `policy`.
        state: the named state, or None; without either the policy is its own reference, and the KL is 0.
        temperature: of sampling; both distributions are tempered alike.
        max_tokens: padded cells of a micro-batch.
        max_prompt_tokens: at which the sampler cut prompts.

    Returns:
        [groups][K].
    """
    if reference is None and state is None:
        return [[0.0] * len(row["responses"]) for row in groups]
    most = max(len(ids) for row in groups for ids in row["response_ids"])
    encoded, _ = encode_groups(groups, policy.chat, max_prompt_tokens=max_prompt_tokens, max_response_tokens=most)
    data = TrainingData(groups, list(encoded), shared=policy.shares_prompts, pad_id=policy.chat.pad_id)
    out = [[0.0] * len(row["responses"]) for row in groups]
    for numbers in data.micro_batches(list(range(len(encoded))), max_tokens):
        batch = data.collate(numbers).to(policy.device)
        theirs = (_reference(policy, reference, state, batch, temperature) * batch.response_mask).sum(-1)
        for value, number, group in zip(theirs.tolist(), batch.responses.tolist(), batch.groups.tolist(), strict=True):
            row, k = encoded[group].index, number - data.first_response[group]
            out[row][k] = sum(groups[row]["logprobs"][k]) - value
    return out


def _reference(policy: Policy, reference: Policy | None, state: str | None, batch: Any, temperature: float) -> Any:
    if reference is not None:
        return reference.tensors(batch, temperature=temperature)["logprobs"]
    assert state is not None
    with policy.state(state):
        return policy.tensors(batch, temperature=temperature)["logprobs"]
