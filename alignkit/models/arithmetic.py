"""How many floating-point operations a pass through a model takes, from its weights and from lengths alone.

A multiplication and the addition after it are two operations. Each token that a matrix of N weights reads costs 2 N
forward, 2 N backward for the gradient of what came in, and 2 N more for the gradient of the weights where they are
trained (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1): 4 N backward in full training, and 2 N
through the frozen weights under an adapter, and nothing below the first layer that is adapted. Attention costs 4 w
operations in each layer for each (query, key) pair that it looks at, w being heads x size of a head: 2 w for the scores
and 2 w for the weighted sum, and twice that backward (the same, table 1; Chowdhery et al. 2022,
https://arxiv.org/abs/2204.02311, appendix B, count all keys, where here a token sees what stands before it, and no
further back than a sliding window reaches).

These are the model's operations, not the machine's: padding, what gradient checkpointing computes again, norms,
activation functions and look-ups of embeddings are left out. So is folding an adapter into the weights; and what was
read before and is kept (`alignkit.models.lower`), or stands once in a packed batch for several groups, counts as read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from alignkit.data.encode import EncodedGroup
from alignkit.models.forward import bare, body_of, window_of
from alignkit.models.four_bit import numbers_in
from alignkit.models.lower import untrained_layers


class Flops(NamedTuple):
    """Operations of a pass; backward is 0 where there is no gradient."""

    forward: int
    backward: int


class Head(NamedTuple):
    """A matrix on top of the trunk: language head, value head, score head.

    Args:
        weights: of it.
        times: how many states it meets.
        trained: whether it is trained.
    """

    weights: int
    times: int
    trained: bool


def head_of(module: Any, times: int) -> Head:
    """The head that is a linear layer."""
    return Head(module.weight.numel(), times, module.weight.requires_grad)


@dataclass(frozen=True)
class Reading:
    """What goes through a model.

    Args:
        spans: of positions read one after another, each (first, one past the last) in its text: what stands before
            the first was read already.
        learned: tokens that something is read off for: log-probs, values.
        responses: how many there are.
    """

    spans: tuple[tuple[int, int], ...]
    learned: int
    responses: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return sum(stop - start for start, stop in self.spans)

    def pairs(self, window: int | None = None, causal: bool = True) -> int:
        """(query, key) pairs that attention looks at.

        Args:
            window: keys that a query sees at most, itself included.
            causal: a query sees nothing after itself; else its whole text.
        """
        if not causal:
            return sum((stop - start) * stop for start, stop in self.spans)
        return sum(_seen(stop, window) - _seen(start, window) for start, stop in self.spans)

    @classmethod
    def of_groups(cls, groups: Iterable[EncodedGroup], shared: bool) -> Reading:
        """Groups as they are learned from.

        Args:
            groups: with their responses.
            shared: a prompt is read once for its responses.
        """
        spans: list[tuple[int, int]] = []
        learned = responses = 0
        for group in groups:
            start, ends = len(group.prompt_ids), [len(group.prompt_ids) + len(r) for r in group.responses]
            spans += [(0, start), *((start, end) for end in ends)] if shared else [(0, end) for end in ends]
            trained = sum((group.prompt_trained or [])[1:])
            learned += sum(ends) + len(ends) * (trained - start)
            responses += len(ends)
        return cls(tuple(spans), learned, responses)

    @classmethod
    def of_samples(cls, prompts: Sequence[int], written: Sequence[Sequence[int]]) -> Reading:
        """Samples as they were written, with a cache: each prompt is read once, and of each response all tokens but the
        last, which nothing comes after. `learned` are the states that a token was drawn from.

        Args:
            prompts: lengths.
            written: of each prompt, the lengths of its responses.
        """
        spans, learned = [], 0
        for start, lengths in zip(prompts, written, strict=True):
            spans += [(0, start), *((start, start + length - 1) for length in lengths if length > 1)]
            learned += 1 + sum(max(length - 1, 0) for length in lengths)
        return cls(tuple(spans), learned, sum(map(len, written)))


def _seen(length: int, window: int | None) -> int:
    """Pairs of a text of so many tokens: 1 + 2 + … with no summand above the window."""
    short = length if window is None else min(length, window)
    return short * (short + 1) // 2 + (length - short) * (window or 0)


@dataclass(frozen=True)
class Arithmetic:
    """The weights that count.

    Args:
        body: of the trunk's matrices that a token meets, adapters left out; of experts those that are chosen for it.
        trained: those of `body` that are trained.
        adapters: of each adapter's matrices, by its name.
        layers: how many layers attend with (width, window); the width is heads x size of a head.
        causal: no token sees what stands after it.
        below: those of `body` that lie below the first adapted layer, where no gradient goes.
        behind: of `layers`, those that a gradient goes through; None: all.
    """

    body: int
    trained: int
    adapters: Mapping[str, int] = field(default_factory=dict)
    layers: Mapping[tuple[int, int | None], int] = field(default_factory=dict)
    causal: bool = True
    below: int = 0
    behind: Mapping[tuple[int, int | None], int] | None = None

    @classmethod
    def of(cls, model: nn.Module, causal: bool = True) -> Arithmetic:
        """Of a live model, or one in its PEFT wrapper.

        Args:
            model: a transformers model.
            causal: see `Arithmetic`.
        """
        trunk, config = body_of(model), bare(model).config
        share, untrained = _share_of_experts(config), untrained_layers(bare(trunk))
        lower = {id(p) for layer in untrained for p in layer.parameters()}
        lookups = {id(p) for m in trunk.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        body, trained, below, adapters = 0.0, 0.0, 0.0, Counter[str]()
        for name, weights in trunk.named_parameters():
            if weights.ndim < 2 or id(weights) in lookups or "lora_embedding" in name:
                continue
            met = numbers_in(weights) * (share if ".experts." in name else 1.0)
            if "lora_" in name:
                adapters[name.split(".")[-2]] += round(met)
            else:
                body, trained = body + met, trained + met * weights.requires_grad
                below += met * (id(weights) in lower)
        attending = _attending_layers(config), _attending_layers(config, len(untrained))
        return cls(round(body), round(trained), dict(adapters), attending[0], causal, round(below), attending[1])

    def flops(self, reading: Reading, adapter: str | None, heads: Sequence[Head], gradient: bool) -> Flops:
        """Operations of one pass.

        Args:
            reading: what goes through.
            adapter: that is at work; its weights are trained where there is a gradient.
            heads: on the trunk.
            gradient: whether a backward pass follows.
        """
        extra = self.adapters.get(adapter, 0) if adapter is not None else 0
        attention = self._attention(reading, self.layers)
        read = sum(head.weights * head.times for head in heads)
        forward = 2 * (self.body + extra) * reading.tokens + 2 * read + attention
        if not gradient:
            return Flops(forward, 0)
        backward = 2 * sum(head.weights * head.times for head in heads if head.trained)
        if weights := self.trained + extra:
            attention = self._attention(reading, self.layers if self.behind is None else self.behind)
            backward += 2 * (self.body - self.below + extra + weights) * reading.tokens + 2 * read + 2 * attention
        return Flops(forward, backward)

    def _attention(self, reading: Reading, layers: Mapping[tuple[int, int | None], int]) -> int:
        return sum(4 * w * n * reading.pairs(window, self.causal) for (w, window), n in layers.items())


def _share_of_experts(config: Any) -> float:
    """Which part of a layer's experts a token meets."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    many = next((count for count in (getattr(config, name, None) for name in names) if count), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen / many if many and chosen else 1.0


def _attending_layers(config: Any, first: int = 0) -> dict[tuple[int, int | None], int]:
    """How many layers, from this one on, attend with (width, window)."""
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return {}
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return {(width, window_of(config)): config.num_hidden_layers - first}
    chunk = getattr(config, "attention_chunk_size", None)
    windows = {"full_attention": None, "sliding_attention": window_of(config), "chunked_attention": chunk}
    return dict(Counter((width, windows[kind]) for kind in kinds[first:] if kind in windows))
