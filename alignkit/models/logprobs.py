"""How likely a policy finds whole responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from alignkit.data.encode import EncodedGroup
from alignkit.models.batch import collate, parts_of, plan_micro_batches, row_length
from alignkit.models.policy import Policy


@torch.no_grad()
def response_logprobs(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Sequence[int]]],
    max_tokens: int = 4096,
) -> list[list[float]]:
    """Log-probability of each response after its prompt: the sum over its tokens at temperature 1, in nats.

    Args:
        policy: whose; it computes a prompt once for all its responses where it can.
        prompts: [prompts] ids.
        responses: [prompts][K] ids.
        max_tokens: cells of a micro-batch.

    Returns:
        [prompts][K].
    """
    shared, packed = policy.shares_prompts, policy.packs_rows
    whole = [
        EncodedGroup(list(prompt), [list(ids) for ids in after], None, number)
        for number, (prompt, after) in enumerate(zip(prompts, responses, strict=True))
    ]
    encoded = [
        replace(group, responses=group.responses[first:end])
        for group in whole
        for first, end in parts_of(group, shared, max_tokens)
    ]
    cells = [row_length(group, shared) * (1 if shared else len(group.responses)) for group in encoded]
    found: list[list[float]] = [[] for _ in encoded]
    for numbers in plan_micro_batches(cells, max_tokens, packed=packed):
        groups = [encoded[i] for i in numbers]
        firsts = [sum(len(g.responses) for g in groups[:place]) for place in range(len(groups))]
        batch = collate(groups, numbers, firsts, pad_id=policy.chat.pad_id, shared=shared, packed=packed)
        batch = batch.to(policy.device)
        logprobs = policy.tensors(batch)["logprobs"].double() * batch.response_mask
        for value, group in zip(logprobs.sum(-1).tolist(), batch.groups.tolist(), strict=True):
            found[group].append(value)
    out: list[list[float]] = [[] for _ in whole]
    for part, values in zip(encoded, found, strict=True):
        out[part.index] += values
    return out
