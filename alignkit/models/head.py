"""Log-probs of the tokens wanted, from hidden states, without ever holding [tokens, vocabulary] for more than one
chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from alignkit.models.products import Linear, cast_once, linear

CHUNK = 128
"""Tokens whose logits are held at once: 128 x 49k float32 logits are 25 MB."""

BY_PARTS = 256
"""The same on a processor, where a head is a product alone: its logits are held in the type of the product, and few of
them in float32."""

NEAR = 2**19
"""Logits that a processor works on at once in float32: few enough to stay near it from one pass to the next."""

GROUP = 2**26
"""Bytes of slopes that are held at once for the gradient of the head's weight: each part of it is a matrix of the
weight's size, which costs as much to add as to multiply."""

ROWS = 4096
"""Rows of the weight's gradient that are multiplied and cast at once."""

Head = Callable[[Tensor], Tensor]


class TokenTensors(NamedTuple):
    """What the head says of each token, [tokens] float32 in nats.

    Args:
        logprobs: of the token taken.
        entropy: of the whole distribution; None unless asked for.
        mean_logprobs: mean log-prob over the vocabulary; None unless asked for.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    mean_logprobs: Tensor | None = None


def scaled_head(model: Any) -> Head:
    """The head of a bare transformers model, with the scaling some families apply after it (Granite, Cohere, Gemma).

    It goes by names of the configuration; `alignkit.models.ways` compares it with the model's own logits.
    """
    config, head = model.config, model.get_output_embeddings()
    divide = getattr(config, "logits_scaling", None)
    multiply = getattr(config, "logit_scale", None)
    softcap = getattr(config, "final_logit_softcapping", None)
    if not any((divide, multiply, softcap)):
        return head  # type: ignore[no-any-return]

    def scaled(hidden: Tensor) -> Tensor:
        logits: Tensor = head(hidden)
        if divide:
            logits = logits / divide
        if multiply:
            logits = logits * multiply
        return torch.tanh(logits / softcap) * softcap if softcap else logits

    return scaled


def _chunk(head: Head, hidden: Tensor, targets: Tensor, temperature: float, mean: bool) -> tuple[Tensor, ...]:
    logits = head(hidden).float() / temperature
    logsumexp = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logsumexp
    entropy = logsumexp - (logits.softmax(-1) * logits).sum(-1)
    return (logprobs, entropy, logits.mean(-1) - logsumexp) if mean else (logprobs, entropy)


def one_number(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
    """What a head with one output (a score, a value) says of hidden states […, H]: […] float32.

    Computed as its weights are kept, autocast or not: in bfloat16 a score of 10 has no neighbour nearer than 0.06, and
    many responses would have the same one.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.to(head.weight.dtype)).squeeze(-1).float()


class _Logits:
    """Logits of a linear head in float32, chunk by chunk, each in the memory of the one before.

    A fresh matrix of [tokens, vocabulary] costs more than what is worked out in it: its pages must be found and
    cleared.

    Args:
        hidden: [tokens, H], in the type of the product.
        weight: [vocabulary, H], in the same.
        bias: [vocabulary], or None.
        temperature: T.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> None:
        self.hidden, self.weight, self.bias, self.temperature = hidden, weight, bias, temperature
        self.kept: dict[str, Tensor] = {}

    def of(self, chunk: slice) -> Tensor:
        """[chunk, vocabulary] of the product, in its type."""
        return linear(self.hidden[chunk], self.weight, self.bias)

    def parts(self, product: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Which rows of a product, and the logits of these in float32, to be written into: in the product itself where
        that is its type."""
        most = max(1, NEAR // product.shape[-1]) if product.device.type == "cpu" else len(product)
        for rows in _chunks(len(product), most):
            logits = product[rows]
            if logits.dtype is not torch.float32:
                logits = self.room("logits", logits).copy_(logits)
            yield rows, logits if self.temperature == 1 else logits.div_(self.temperature)

    def room(self, name: str, like: Tensor) -> Tensor:
        """Memory of the same shape, float32, that holds anything; the same for the same name."""
        if name not in self.kept or len(self.kept[name]) < len(like):
            self.kept[name] = torch.empty(like.shape, dtype=torch.float32, device=like.device)
        return self.kept[name][: len(like)]


def _other_than(exps: Tensor, targets: Tensor) -> Tensor:
    """exp(z) with minus the sum of the others at the target's place: -(sum of exp(z)) d logp / dz; in place.

    1 - p of a likely token is the sum of the others: as a difference, of numbers or of W[y] and softmax(z) W, it would
    be lost in their rounding.
    """
    place = targets.unsqueeze(-1)
    return exps.scatter_(-1, place, 0.0).scatter_(-1, place, -exps.sum(-1, keepdim=True))


def _low(weight: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """What enters a product, as autocast would have it."""
    kind, device = weight.dtype, weight.device.type
    if torch.is_autocast_enabled(device) and kind is not torch.float64:
        kind = torch.get_autocast_dtype(device)
    return tuple(None if each is None else each.to(kind) for each in (cast_once(weight), *others))


def _most(hidden: Tensor) -> int:
    """Tokens whose logits are held at once."""
    return BY_PARTS if hidden.device.type == "cpu" else CHUNK


def _chunks(tokens: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _read(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    *,
    entropy: bool,
    slopes: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(log-probs, log of the sum of exp(z), entropy, d logp / d hidden), the last two where they are wanted."""
    logits, count = _Logits(hidden, weight, bias, temperature), hidden.shape[0]
    logprobs, sums, totals = (hidden.new_empty(count, dtype=torch.float32) for _ in range(3))
    spread = torch.empty_like(sums) if entropy else None
    slope = torch.empty_like(hidden, dtype=torch.promote_types(hidden.dtype, torch.float32)) if slopes else None
    for chunk in _chunks(count, _most(hidden)):
        product = logits.of(chunk)
        for rows, z in logits.parts(product):
            place = slice(chunk.start + rows.start, chunk.start + rows.stop)
            wanted, top = targets[place], z.amax(-1, keepdim=True)
            z.sub_(top)
            taken = z.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
            exps = torch.exp(z, out=logits.room("exps", z)) if entropy else z.exp_()
            total = totals[place] = exps.sum(-1)
            logsum = total.log()
            logprobs[place], sums[place] = taken - logsum, logsum + top.squeeze(-1)
            if spread is not None:
                spread[place] = logsum - z.mul_(exps).sum(-1) / total
            if slope is not None:
                product[rows] = _other_than(exps, wanted)
        if slope is not None:
            slope[chunk] = linear(product, weight.t()) / (-temperature * totals[chunk]).unsqueeze(-1)
    return logprobs, sums, spread, slope


class _LinearHead(torch.autograd.Function):
    """Log-probs through a linear head, in fewer passes over [tokens, vocabulary] than autograd takes.

    d logp_t / d h_t = (onehot(y_t) - softmax(z_t)) W / T is a vector of the hidden size. Where the weight gets no
    gradient it is worked out while the logits are there and kept in place of them; where it gets one, the logits are
    computed again, once for both gradients, and the weight's is summed over the chunks in float32.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.trained = any(ctx.needs_input_grad[1:3])
        ctx.temperature = temperature
        ctx.kinds = tuple(None if each is None else each.dtype for each in (hidden, weight, bias))
        w, h, b = _low(weight, hidden, bias)
        assert w is not None
        assert h is not None
        with torch.autocast(hidden.device.type, enabled=False):
            found = _read(h, w, b, targets, temperature, entropy=entropy, slopes=not ctx.trained)
        logprobs, sums, spread, slopes = found
        ctx.save_for_backward(*((h, w, b, targets, sums) if ctx.trained else (slopes,)))
        if spread is not None:
            ctx.mark_non_differentiable(spread)
        return logprobs, spread

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.trained:
                found = _gradients(ctx.saved_tensors, grad, ctx.temperature, ctx.needs_input_grad)
            else:
                (slopes,) = ctx.saved_tensors
                found = grad.unsqueeze(-1) * slopes, None, None
        cast = (None if each is None else each.to(kind) for each, kind in zip(found, ctx.kinds, strict=True))
        return *cast, None, None, None


def _gradients(
    saved: Sequence[Any], grad: Tensor, temperature: float, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Of hidden states, weight and bias, as far as they are wanted, from logits that are computed once more."""
    hidden, weight, bias, targets, sums = saved
    logits = _Logits(hidden, weight, bias, temperature)
    states = torch.empty_like(hidden) if wanted[0] else None
    summed = torch.promote_types(weight.dtype, torch.float32)
    matrix: Tensor | None = None
    offset = torch.zeros_like(bias, dtype=summed) if bias is not None and wanted[2] else None
    size = _most(hidden)
    most = max(1, GROUP // (size * len(weight) * weight.element_size())) * size
    kept = weight.new_empty(min(most, len(hidden)), len(weight)) if wanted[1] else None
    for group in _chunks(len(hidden), most):
        for chunk in _chunks(group.stop - group.start, size):
            place = slice(group.start + chunk.start, group.start + chunk.stop)
            product = logits.of(place)
            low = product if kept is None else kept[chunk]
            for rows, z in logits.parts(product):
                own = slice(place.start + rows.start, place.start + rows.stop)
                z.sub_(sums[own].unsqueeze(-1)).exp_()
                slopes = _other_than(z, targets[own]).mul_(grad[own].unsqueeze(-1) / -temperature)
                offset = None if offset is None else offset + slopes.sum(0)
                low[rows] = slopes
            if states is not None:
                states[place] = linear(low, weight.t())
        if kept is not None:
            matrix = _summed(matrix, kept[: group.stop - group.start], hidden[group], summed)
    return states, matrix, offset


def _summed(total: Tensor | None, slopes: Tensor, hidden: Tensor, kind: torch.dtype) -> Tensor:
    """The sum so far and slopes [tokens, vocabulary] transposed times states [tokens, H], in that type: of a lower type
    part by part, each of which is still near the processor when it is cast and added.

    Args:
        total: [vocabulary, H], which is written into; None: nothing yet.
        slopes: in the type of the product.
        hidden: in the same.
        kind: of the sum.
    """
    if kind is slopes.dtype:
        found = linear(slopes.t(), hidden.t())
        return found if total is None else total.add_(found)
    first = total is None
    total = slopes.new_empty(slopes.shape[1], hidden.shape[1], dtype=kind) if total is None else total
    for rows in _chunks(len(total), ROWS):
        part = linear(slopes[:, rows].t(), hidden.t())
        if first:
            total[rows] = part
        else:
            total[rows] += part.to(kind)  # torch is slow where types are mixed
    return total


def _plain(head: nn.Linear) -> bool:
    """Whether a head is a product with its weight and no more: no class of its own, no hooks, no sharded weight."""
    hooked = head._forward_hooks or head._forward_pre_hooks
    return type(head) in (nn.Linear, Linear) and type(head.weight) is nn.Parameter and not hooked


def _through_linear(
    head: nn.Linear, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    weight, bias = head.weight, head.bias
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (hidden, weight, bias)):
        found: tuple[Tensor, Tensor | None] = _LinearHead.apply(hidden, weight, bias, targets, temperature, entropy)
        return found
    w, h, b = _low(weight, hidden, bias)
    assert w is not None
    assert h is not None
    with torch.autocast(hidden.device.type, enabled=False):
        logprobs, _, spread, _ = _read(h, w, b, targets, temperature, entropy=entropy, slopes=False)
    return logprobs, spread


def token_logprobs(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = True,
    entropy_gradient: bool = False,
    mean: bool = False,
) -> TokenTensors:
    """log_softmax(head(hidden) / T)[target] and the entropy of each of these distributions.

    Args:
        head: the language head (with whatever scaling the model applies after it).
        hidden: [tokens, hidden] final hidden states at the positions that predict the targets.
        targets: [tokens] ids.
        temperature: T of the sampler, > 0.
        entropy: whether the entropy is wanted.
        entropy_gradient: whether it is differentiated (an entropy bonus); otherwise it comes detached.
        mean: work out `mean_logprobs` too, with gradient.
    """
    if hidden.shape[0] == 0:
        nothing = hidden.new_zeros(0, dtype=torch.float32)
        return TokenTensors(nothing, nothing if entropy else None, nothing if mean else None)
    if isinstance(head, nn.Linear) and _plain(head) and not entropy_gradient and not mean:
        return TokenTensors(*_through_linear(head, hidden, targets, temperature, entropy))
    logprobs, spread, means = [], [], []
    for start in range(0, hidden.shape[0], CHUNK):
        part, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK]
        if torch.is_grad_enabled():
            values = checkpoint(_chunk, head, part, wanted, temperature, mean, use_reentrant=False)
        else:
            values = _chunk(head, part, wanted, temperature, mean)
        logprobs.append(values[0])
        spread.append(values[1] if entropy_gradient else values[1].detach())
        means += values[2:]
    return TokenTensors(torch.cat(logprobs), torch.cat(spread) if entropy else None, torch.cat(means) if mean else None)
