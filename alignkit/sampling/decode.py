"""The decode loop: each prompt prefilled once for its samples, finished sequences leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit.calls import whose
from alignkit.errors import PluginError
from alignkit.models.stepwise import Cached, Reader
from alignkit.randomness import uniforms

Warp = Callable[[Tensor], Tensor]


@dataclass
class Sampled:
    """One response as it was sampled.

    Args:
        ids: its tokens, the end token included.
        logprobs: log_softmax(logits / T) of each, before truncation.
        sampled_logprobs: the same after truncation; empty where nothing was truncated.
        finished: whether it ended by itself.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    finished: bool = False

    def add(self, token: int, logprob: float, sampled: float | None, finished: bool) -> None:
        """Write one token more."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if sampled is not None:
            self.sampled_logprobs.append(sampled)
        self.finished = finished

    def cut(self, length: int) -> None:
        """Leave out what comes after so many tokens: the response ended there."""
        for values in (self.ids, self.logprobs, self.sampled_logprobs):
            del values[length:]
        self.finished = True


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
    logits: Tensor,
    draws: np.ndarray | None,
    temperature: float,
    warp: Warp | None,
    vocabulary: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sample one token per row.

    Args:
        logits: [N, V] of the model.
        draws: [N] uniform numbers; None takes the likeliest token.
        temperature: T > 0.
        warp: truncation of the tempered logits, or None.
        vocabulary: ids from here on are no tokens: models are padded to round sizes. None: all are.

    Returns:
        (ids [N], logprobs [N] before truncation, logprobs [N] after truncation or None).
    """
    logprobs = torch.log_softmax(logits.float() / temperature, -1)
    warped = logprobs
    if vocabulary is not None and vocabulary < logits.shape[-1]:
        warped = logprobs.clone()
        warped[:, vocabulary:] = -torch.inf
    if warp is not None:
        warped = warp(warped)
    if warp is not None:
        warped = _normalised(warped, logprobs, whose(warp))
    ids = warped.argmax(-1) if draws is None else choose(warped.exp(), draws)
    taken = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    after = warped.gather(-1, ids.unsqueeze(-1)).squeeze(-1) if warp is not None else None
    return ids, taken, after


def _normalised(warped: Any, logprobs: Tensor, where: str) -> Tensor:
    """What a truncation left, as log-probs again.

    Raises:
        PluginError: another shape, or a row in which nothing is left or something is no number.
    """
    if not isinstance(warped, Tensor) or warped.shape != logprobs.shape:
        shape = list(warped.shape) if isinstance(warped, Tensor) else f"a {type(warped).__name__}"
        what = f"returned {shape} for log-probs {list(logprobs.shape)}"
        raise PluginError(what, where=where, remedy="return the same log-probs, with the excluded tokens at -inf")
    found = torch.log_softmax(warped, -1)
    if bool(torch.isnan(found).any()):  # one NaN, or -inf throughout, is NaN in every place of its row
        what = f"left no token, or a NaN, in {int(torch.isnan(found).any(-1).sum())} of {len(found)} rows"
        raise PluginError(what, where=where, remedy="keep at least the likeliest token of each row")
    return found


@torch.no_grad()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Sequence[int]],
    *,
    end_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    temperature: float,
    greedy: bool = False,
    warp: Warp | None = None,
    reader: type[Reader] = Cached,
    vocabulary: int | None = None,
) -> list[list[Sampled]]:
    """Write every sequence to its end.

    Args:
        model: the bare transformers model.
        prompts: token ids of the chunk's prompts.
        keys: of the streams of random numbers, one for each sequence: as many for each prompt.
        end_ids: tokens that end a response; the one drawn is kept.
        pad_id: for the left padding of shorter prompts, which nothing attends to.
        max_new_tokens: length at which a response is cut.
        temperature: T > 0.
        greedy: take the likeliest token.
        warp: truncation of the tempered log-probs.
        reader: how the sequences are read while they are written.
        vocabulary: ids from here on are no tokens, and are never drawn; None: all are.

    Returns:
        the sequences of each prompt.
    """
    n = len(keys[0])
    written = [Sampled() for _ in range(len(prompts) * n)]
    streams = np.array(keys, dtype=np.uint64).reshape(-1)
    batch, logits = reader.prefilled(model, prompts, n, pad_id)
    live = list(range(len(written)))
    ends = torch.tensor(sorted(end_ids), device=logits.device)
    for step in range(max_new_tokens):
        draws = None if greedy else uniforms(streams[live], step)
        chosen, logprobs, after = pick_tokens(logits, draws, temperature, warp, vocabulary)
        over = torch.isin(chosen, ends).tolist()
        sampled = after.tolist() if after is not None else [None] * len(live)
        for number, *token in zip(live, chosen.tolist(), logprobs.tolist(), sampled, over, strict=True):
            written[number].add(*token)
        keep = [i for i, done in enumerate(over) if not done]
        if not keep or step == max_new_tokens - 1:
            break
        if len(keep) < len(live):
            index = torch.tensor(keep, device=logits.device)
            batch.keep(index)
            chosen, live = chosen[index], [live[i] for i in keep]  # a finished one leaves the batch
        logits = batch.read(chosen)
    return [written[first : first + n] for first in range(0, len(written), n)]
