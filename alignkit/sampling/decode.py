"""The decode loop: each prompt is read once for its samples; sequences that end make room for others at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit.calls import whose
from alignkit.errors import PluginError
from alignkit.models.stepwise import Reader
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

    def cut(self, length: int) -> None:
        """Leave out what comes after so many tokens: the response ended there."""
        for values in (self.ids, self.logprobs, self.sampled_logprobs):
            del values[length:]
        self.finished = True


BLOCK = 256
"""Tokens that are first looked at together, when one is chosen."""

LEAST = -87.0
"""By how many nats a token's logit is at most below the likeliest one's where all are summed: numbers below exp of it
are no normal float32, which takes a processor up to a hundred times as long, and all of them together are under 1e-32
of the likeliest."""


def choose(probs: Tensor, draws: np.ndarray) -> Tensor:
    """Tokens by inversion of the cumulative distribution: one uniform number per row.

    Of blocks of tokens first, then within one: sums over the whole vocabulary, in double precision, would take longer
    than the rest. A block's own sum may be off by float32 rounding, and what is drawn with it by as little.

    Args:
        probs: [N, V] not negative, of each row in proportion to its probabilities.
        draws: [N] in [0, 1).

    Returns:
        [N] ids, never one of probability 0.
    """
    size = probs.shape[-1]
    padded = torch.nn.functional.pad(probs, (0, -size % BLOCK)) if size % BLOCK else probs
    blocks = padded.view(len(probs), -1, BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)
    wanted = torch.from_numpy(draws).to(probs.device).unsqueeze(-1) * ends[:, -1:]
    block = torch.searchsorted(ends, wanted, right=True).clamp_(max=ends.shape[-1] - 1)
    within = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1).double().cumsum(-1)
    wanted = (wanted - (ends.gather(-1, block) - within[:, -1:])).clamp_(min=0.0)
    # By rounding, the rest may be below nothing, or above what all have: the last with a share then.
    last = torch.searchsorted(within, within[:, -1:].contiguous(), right=False)
    index = torch.minimum(torch.searchsorted(within, wanted, right=True), last)
    return (block * BLOCK + index).squeeze(-1)


def pick_tokens(
    logits: Tensor,
    draws: np.ndarray | None,
    temperature: float | Tensor,
    warp: Warp | None,
    vocabulary: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sample one token per row.

    Args:
        logits: [N, V] of the model.
        draws: [N] uniform numbers; None takes the likeliest token.
        temperature: T > 0; [N, 1] one for each row.
        warp: truncation of the tempered logits, or None.
        vocabulary: ids from here on are no tokens: models are padded to round sizes. None: all are.

    Returns:
        (ids [N], logprobs [N] before truncation, logprobs [N] after truncation or None).
    """
    if warp is None and draws is not None:
        return *_drawn(logits, draws, temperature, vocabulary), None
    logprobs = torch.log_softmax(_tempered(logits, temperature), -1)
    warped, end = logprobs, logits.shape[-1] if vocabulary is None else vocabulary
    if warp is not None or draws is None:
        warped = logprobs.clone()
        warped[:, end:] = -torch.inf
    if warp is not None:
        warped = _normalised(warp(warped), logprobs, whose(warp))
    if draws is None:
        ids = warped.argmax(-1)
    else:
        probs = warped.exp()
        probs[:, end:] = 0.0
        ids = choose(probs, draws)
    taken = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    after = warped.gather(-1, ids.unsqueeze(-1)).squeeze(-1) if warp is not None else None
    return ids, taken, after


def _tempered(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits over T, in float32 and memory of their own."""
    found = logits.to(torch.float32, copy=True)
    return found if isinstance(temperature, float) and temperature == 1 else found.div_(temperature)


def _drawn(
    logits: Tensor, draws: np.ndarray, temperature: float | Tensor, vocabulary: int | None
) -> tuple[Tensor, Tensor]:
    """`pick_tokens` where nothing is truncated, in half as many passes over [N, V]."""
    below = _tempered(logits, temperature)
    below.sub_(below.amax(-1, keepdim=True))
    shares = below.clamp(min=LEAST).exp_()
    total = shares.sum(-1)
    shares[:, logits.shape[-1] if vocabulary is None else vocabulary :] = 0.0
    ids = choose(shares, draws)
    return ids, below.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - total.log()


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


@dataclass(frozen=True)
class Rule:
    """How a token is chosen, and where a response ends.

    Args:
        end_ids: tokens that end a response; the one drawn is kept.
        max_new_tokens: length at which a response is cut.
        temperature: T > 0; several: one for each of a prompt's sequences.
        greedy: take the likeliest token.
        warp: truncation of the tempered log-probs.
        vocabulary: ids from here on are no tokens, and are never drawn; None: all are.
    """

    end_ids: Sequence[int]
    max_new_tokens: int
    temperature: float | Sequence[float] = 1.0
    greedy: bool = False
    warp: Warp | None = None
    vocabulary: int | None = None

    def temperatures(self, numbers: np.ndarray) -> float | Tensor:
        """Those of the sequences with these numbers [N] among those of their prompts: T, or [N, 1]."""
        if isinstance(self.temperature, float | int):
            return float(self.temperature)
        return torch.from_numpy(np.asarray(self.temperature, dtype=np.float32)[numbers]).unsqueeze(1)


CACHED = 2**20
"""Logits that a processor chooses from at once: few enough to stay near it."""

PREFILL = 8192
"""Tokens of prompts, with padding, that are read at once."""


def decode(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Sequence[int]],
    rule: Rule,
    batch_size: int = 96,
) -> Iterator[tuple[int, list[Sampled]]]:
    """Write every sequence to its end.

    Args:
        reader: of the policy, without a sequence yet.
        prompts: token ids of each. They are admitted in this order, those of like length best side by side.
        keys: for each prompt those of the streams of random numbers, one for each of its sequences: as many for each.
        rule: by which tokens are chosen.
        batch_size: sequences written side by side; more, where one prompt has more.

    Yields:
        (place in `prompts`, its sequences), as they are done.
    """
    n = len(keys[0]) if keys else 0
    batch = _Batch(reader, rule, max(batch_size, n))
    if prompts:
        reader.reserve(min(batch.size, len(prompts) * n), prompts, rule.max_new_tokens)
    answers: dict[int, dict[int, Sampled]] = {}
    waiting = 0
    while waiting < len(prompts) or len(batch.rows):
        room = batch.room()
        if waiting < len(prompts) and room >= n:
            stop = _admitted(prompts, waiting, room // n)
            batch.admit(prompts[waiting:stop], keys[waiting:stop], waiting)
            waiting = stop
        else:
            batch.step()
        for place, number, sampled in batch.ended():
            answers.setdefault(place, {})[number] = sampled
            if len(answers[place]) == n:
                done = answers.pop(place)
                yield place, [done[each] for each in range(n)]


def tokens_of(reader: Reader, prompt: Sequence[int], key: int, rule: Rule) -> Iterator[int]:
    """The tokens of one sequence, each as it is written, the end token included.

    Args:
        reader: of the policy, without a sequence; it has none afterwards, however far this was read.
        prompt: token ids.
        key: of the stream of random numbers.
        rule: by which tokens are chosen.
    """
    batch = _Batch(reader, rule, 1)
    batch.admit([prompt], [[key]], 0)
    try:
        while True:
            yield int(batch.last[0])
            if batch.ended():
                return
            batch.step()
    finally:
        if len(batch.rows):
            reader.keep(torch.zeros(0, dtype=torch.long, device=batch.last.device))


def _admitted(prompts: Sequence[Sequence[int]], first: int, most: int) -> int:
    """Where the prompts end that are read next, at most so many."""
    stop, longest = first + 1, len(prompts[first])
    while stop < min(first + most, len(prompts)):
        longest = max(longest, len(prompts[stop]))
        if longest * (stop + 1 - first) > PREFILL:
            break
        stop += 1
    return stop


SEQUENCE = np.dtype(
    [("prompt", "i8"), ("number", "i8"), ("key", "u8"), ("desk", "i8"), ("written", "i8"), ("finished", "?")]
)
"""A sequence that is being written: whose it is, its random numbers, where its tokens lie, and how far it is."""


class _Batch:
    """The sequences that are being written, in the order in which the reader has them.

    Args:
        reader: without a sequence yet.
        rule: by which tokens are chosen.
        size: most sequences.
    """

    def __init__(self, reader: Reader, rule: Rule, size: int) -> None:
        self.reader, self.rule, self.size = reader, rule, size
        self.rows = np.zeros(0, SEQUENCE)
        self.desks = list(range(size))
        self.ids = np.zeros((size, rule.max_new_tokens), dtype=np.int64)
        self.logprobs = np.zeros((size, rule.max_new_tokens), dtype=np.float32)
        self.after = np.zeros_like(self.logprobs) if rule.warp is not None else None
        self.last = torch.zeros(0, dtype=torch.long)

    def room(self) -> int:
        """How many sequences may be admitted now: few at a time would cost a pass each."""
        free = self.size - len(self.rows)
        return free if not len(self.rows) or (self.reader.joins and 4 * free >= self.size) else 0

    def admit(self, prompts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], first: int) -> None:
        """Begin the sequences of these prompts, the first of which has that place."""
        n = len(keys[0])
        logits = self.reader.admit(prompts, n)
        new = np.zeros(len(prompts) * n, SEQUENCE)
        new["prompt"], new["number"] = first + np.arange(len(new)) // n, np.arange(len(new)) % n
        new["key"] = np.array(keys, dtype=np.uint64).reshape(-1)
        new["desk"] = [self.desks.pop() for _ in new]
        self.rows = np.concatenate([self.rows, new])
        self._choose(logits)

    def step(self) -> None:
        """Write a token more in each."""
        self._choose(self.reader.read(self.last))

    def _choose(self, logits: Tensor) -> None:
        """Choose a token for each of the last sequences, as many as there are logits."""
        rule, first = self.rule, len(self.rows) - len(logits)
        rows = self.rows[first:]
        draws = None if rule.greedy else uniforms(rows["key"], rows["written"])
        ids, logprobs, after = self._picked(logits, draws, rule.temperatures(rows["number"]))
        place = rows["desk"], rows["written"]
        self.last = torch.cat([self.last[:first].to(ids.device), ids])
        self.ids[place], self.logprobs[place] = ids.cpu().numpy(), logprobs.cpu().numpy()
        if after is not None and self.after is not None:
            self.after[place] = after.cpu().numpy()
        rows["finished"] = np.isin(self.ids[place], rule.end_ids)
        rows["written"] += 1

    def _picked(
        self, logits: Tensor, draws: np.ndarray | None, temperatures: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `pick_tokens`; on a processor a few rows at a time, which stay in its cache."""
        rule, size = self.rule, len(logits)
        if logits.device.type == "cpu" and rule.warp is None:
            size = max(1, min(size, CACHED // logits.shape[-1]))
        parts = [
            pick_tokens(
                logits[at : at + size],
                None if draws is None else draws[at : at + size],
                temperatures[at : at + size].to(logits.device) if isinstance(temperatures, Tensor) else temperatures,
                rule.warp,
                rule.vocabulary,
            )
            for at in range(0, len(logits), size)
        ]
        ids, logprobs, after = zip(*parts, strict=True)
        return torch.cat(ids), torch.cat(logprobs), None if after[0] is None else torch.cat(after)

    def ended(self) -> list[tuple[int, int, Sampled]]:
        """(prompt, number, response) of the sequences that are over. They leave; the last ones take their places."""
        over = self.rows["finished"] | (self.rows["written"] >= self.rule.max_new_tokens)
        if not over.any():
            return []
        found = [(int(row["prompt"]), int(row["number"]), self._response(row)) for row in self.rows[over]]
        self.desks += self.rows["desk"][over].tolist()
        left = np.nonzero(~over)[0]
        index = np.arange(len(left))
        index[over[: len(left)]] = left[left >= len(left)]
        self.rows = self.rows[index]
        kept = torch.from_numpy(index).to(self.last.device)
        self.reader.keep(kept, self.last)
        self.last = self.last[kept]
        return found

    def _response(self, row: Any) -> Sampled:
        place = row["desk"], slice(0, row["written"])
        after = self.after[place].tolist() if self.after is not None else []
        return Sampled(self.ids[place].tolist(), self.logprobs[place].tolist(), after, bool(row["finished"]))


__all__ = ["Rule", "Sampled", "choose", "decode", "pick_tokens", "tokens_of"]
