"""The decode loop: each prompt prefilled once for its samples, finished sequences leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit.randomness import uniforms

Warp = Callable[[Tensor], Tensor]


@dataclass
class Sequence_:
    """One response being written.

    Args:
        prompt: index of its prompt in the chunk.
        key: of its stream of random numbers.
        ids: tokens so far.
        logprobs: log_softmax(logits / T) of each, before truncation.
        sampled_logprobs: the same after truncation.
        finished: whether it ended by itself.
    """

    prompt: int
    key: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    finished: bool = False


def _padded_prompts(prompts: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[Tensor, Tensor]:
    """Left-padded ids and their mask, both [prompts, longest]."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def choose(probs: Tensor, draws: np.ndarray) -> Tensor:
    """Tokens by inversion of the cumulative distribution: one uniform number per row.

    Args:
        probs: [N, V], each row summing to about 1.
        draws: [N] in [0, 1).

    Returns:
        [N] ids, never one of probability 0.
    """
    cumulative = probs.double().cumsum(-1)
    wanted = torch.from_numpy(draws).to(probs.device).unsqueeze(-1) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, wanted, right=True).squeeze(-1)
    return index.clamp_(max=probs.shape[-1] - 1)


def pick_tokens(
    logits: Tensor, draws: np.ndarray | None, temperature: float, warp: Warp | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sample one token per row.

    Args:
        logits: [N, V] of the model.
        draws: [N] uniform numbers; None takes the likeliest token.
        temperature: T > 0.
        warp: truncation of the tempered logits, or None.

    Returns:
        (ids [N], logprobs [N] before truncation, logprobs [N] after truncation or None).
    """
    logprobs = torch.log_softmax(logits.float() / temperature, -1)
    warped = warp(logprobs) if warp is not None else logprobs
    if warp is not None:
        warped = torch.log_softmax(warped, -1)
    ids = warped.argmax(-1) if draws is None else choose(warped.exp(), draws)
    taken = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    after = warped.gather(-1, ids.unsqueeze(-1)).squeeze(-1) if warp is not None else None
    return ids, taken, after


@torch.no_grad()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sequences: Sequence[Sequence_],
    *,
    end_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    temperature: float,
    greedy: bool = False,
    warp: Warp | None = None,
) -> None:
    """Write every sequence to its end, in place.

    Args:
        model: the bare transformers model.
        prompts: token ids of the chunk's prompts.
        sequences: sorted by `prompt`, the same number for each prompt.
        end_ids: tokens that end a response; the one drawn is kept.
        pad_id: for the left padding of shorter prompts, which nothing attends to.
        max_new_tokens: length at which a response is cut.
        temperature: T > 0.
        greedy: take the likeliest token.
        warp: truncation of the tempered log-probs.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    ids, mask = _padded_prompts(prompts, pad_id, device)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    repeats = len(sequences) // len(prompts)
    logits = out.logits[:, -1].repeat_interleave(repeats, 0)
    cache.batch_repeat_interleave(repeats)
    mask = mask.repeat_interleave(repeats, 0)
    position = positions[:, -1].repeat_interleave(repeats, 0)
    live = list(range(len(sequences)))
    keys = np.array([s.key for s in sequences], dtype=np.uint64)
    ends = torch.tensor(sorted(end_ids), device=device)
    for step in range(max_new_tokens):
        draws = None if greedy else uniforms(keys[live], step)
        chosen, logprobs, after = pick_tokens(logits, draws, temperature, warp)
        over = torch.isin(chosen, ends)
        _record(sequences, live, chosen, logprobs, after, over)
        keep = [i for i, done in enumerate(over.tolist()) if not done]
        if not keep or step == max_new_tokens - 1:
            return
        if len(keep) < len(live):
            index = torch.tensor(keep, device=device)
            cache.batch_select_indices(index)
            chosen, mask, position = chosen[index], mask[index], position[index]
            live = [live[i] for i in keep]
        position = position + 1
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        out = model(
            input_ids=chosen.unsqueeze(1),
            attention_mask=mask,
            position_ids=position.unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        )
        logits = out.logits[:, -1]


def _record(
    sequences: Sequence[Sequence_],
    live: list[int],
    chosen: Tensor,
    logprobs: Tensor,
    after: Tensor | None,
    over: Tensor,
) -> None:
    after_list = after.tolist() if after is not None else [None] * len(live)
    rows = zip(live, chosen.tolist(), logprobs.tolist(), after_list, over.tolist(), strict=True)
    for index, token, logprob, sampled, done in rows:
        sequence = sequences[index]
        sequence.ids.append(token)
        sequence.logprobs.append(logprob)
        if sampled is not None:
            sequence.sampled_logprobs.append(sampled)
        sequence.finished = done
