"""A decoder layer that learns, in few passes over its states: what stands before its attention, and what follows it.

Under autocast a family's own code reads and writes [tokens, H] some sixty times a layer and back: norms in a dozen
passes, their states cast anew for each product that reads them, queries, keys and values of one product each. Here
these are two functions with gradients of their own, and less is kept for them (benchmarks/results/speed.md). Values are
the family's but for how a norm is rounded in float32; gradients of states that several products read are summed within
the product (tests/test_layer.py). Layers of the kind that `lean.is_lean` knows take it where all of their matrices are
plain and in float32, nothing is hooked to a part of them, and attention goes by pieces (`alignkit.models.attention`);
with an adapter, without autocast, on another device and for all others it is the family's own code. (So is a model
that was once asked for its `output_attentions` or `output_hidden_states`: transformers leaves hooks on its parts.)
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignkit.models import attention, lower, products
from alignkit.models.lean import Turns, is_lean, is_silu, normed

log = logging.getLogger("alignkit")

TOLERANCE = 1e-4
"""By which what a layer adds to states may differ from what its family's own code adds, by the largest of it."""


def _norm_gradient(grad: Tensor, x: Tensor, over: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of y = w x r with r = 1 / rms(x): (dx = r (g w - x r mean(g w x r)), dw = the sum of g x r over rows).

    Args:
        grad: [rows, H] of y, in a type of the products.
        x: [rows, H].
        over: [rows, 1], r.
        weight: [H].
    """
    unit = x * over
    grad = grad.to(x.dtype, copy=True)
    of_weight = (grad * unit).sum(0)
    grad *= weight
    mean = torch.linalg.vecdot(grad, unit).div_(x.shape[-1]).unsqueeze(-1)
    return grad.sub_(unit.mul_(mean)).mul_(over), of_weight


def _turned(states: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """States [rows, heads, size] at their rotary positions, see `lean.Turns`."""
    cos, sin = turns
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), sin)


def _turned_back(grad: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient of what was turned."""
    cos, sin = turns
    return torch.addcmul((grad * sin).roll(grad.shape[-1] // 2, -1), grad, cos)


def _in_its_types(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass without autocast, within which Lightning calls it: it would cast what is summed in float32."""

    @functools.wraps(backward)
    def found(ctx: Any, *grads: Tensor) -> Any:
        with torch.autocast(grads[0].device.type, enabled=False):
            return backward(ctx, *grads)

    return found


class _Before(torch.autograd.Function):
    """Norm, one product for queries, keys and values, and their rotary positions."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        norm: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_bias: Tensor | None,
        key_bias: Tensor | None,
        value_bias: Tensor | None,
        low: Tensor,
        low_bias: Tensor | None,
        turns: tuple[Tensor, Tensor] | None,
        epsilon: float,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        states, over = normed(x, norm, epsilon, low.dtype)
        heads = products.plain(states, low, low_bias).to(x.dtype).view(len(x), -1, size)
        values = value.shape[0] // size
        both, own = heads.split((heads.shape[1] - values, values), 1)
        both = both.clone() if turns is None else _turned(both, turns)
        ctx.save_for_backward(x, norm, states, over, low, *(turns or ()))
        ctx.rows = [len(query), len(key), len(value)]
        return both, own.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @_in_its_types
    def backward(ctx: Any, of_both: Tensor, of_values: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, norm, states, over, low, *turns = ctx.saved_tensors
        if turns:
            of_both = _turned_back(of_both, (turns[0], turns[1]))
        grad = torch.empty(len(x), len(low), dtype=low.dtype, device=x.device)
        both, values = grad.view(len(x), -1, of_both.shape[-1]).split((of_both.shape[1], of_values.shape[1]), 1)
        both.copy_(of_both)
        values.copy_(of_values)
        wants = ctx.needs_input_grad
        weights: Sequence[Tensor | None] = (None, None, None)
        if any(wants[2:5]):
            weights = _weight_gradient(grad, states, x.dtype).split(ctx.rows)
        biases: Sequence[Tensor | None] = (None, None, None)
        if any(wants[5:8]):
            biases = grad.sum(0, dtype=x.dtype).split(ctx.rows)
        found = of_norm = None
        if any(wants[:2]):
            found, of_norm = _norm_gradient(products.plain(grad, low.t()), x, over, norm)
        return found, of_norm, *weights, *biases, None, None, None, None, None


class _After(torch.autograd.Function):
    """The product of what was attended to, added to the states; norm, gated unit with silu, and that added too."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        attended: Tensor,
        out: Tensor,
        norm: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        low: Lows,
        epsilon: float,
    ) -> Tensor:
        middle = x + products.plain(attended, low.out).to(x.dtype)
        states, over = normed(middle, norm, epsilon, low.out.dtype)
        gated = products.plain(states, low.gated)
        gates, ups = gated.chunk(2, -1)
        inner = nn.functional.silu(gates).mul_(ups)
        ctx.save_for_backward(attended, middle, norm, states, over, gated, low.out, low.gated, low.down)
        return products.plain(inner, low.down).to(x.dtype).add_(middle)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @_in_its_types
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        attended, middle, norm, states, over, gated, low_out, low_gated, low_down = ctx.saved_tensors
        wants = ctx.needs_input_grad
        gates, ups = gated.chunk(2, -1)
        of_out = grad.to(low_out.dtype)
        activated = nn.functional.silu(gates)
        of_inner = products.plain(of_out, low_down.t())
        of_gated = torch.empty_like(gated)
        of_gates, of_ups = of_gated.chunk(2, -1)
        torch.mul(of_inner, activated, out=of_ups)
        down = _weight_gradient(of_out, activated.mul_(ups), grad.dtype) if wants[6] else None
        of_gates.copy_(torch.ops.aten.silu_backward(of_inner.mul_(ups), gates))
        both: Sequence[Tensor | None] = (None, None)
        if any(wants[4:6]):
            both = _weight_gradient(of_gated, states, grad.dtype).chunk(2)
        of_middle, of_norm = _norm_gradient(products.plain(of_gated, low_gated.t()), middle, over, norm)
        of_middle += grad
        of_product = of_middle.to(low_out.dtype)
        out = _weight_gradient(of_product, attended, grad.dtype) if wants[2] else None
        of_attended = products.plain(of_product, low_out.t()) if wants[1] else None
        return of_middle, of_attended, out, of_norm, *both, down, None, None


def _weight_gradient(grad: Tensor, states: Tensor, kind: torch.dtype) -> Tensor:
    """[out, in] of a product's weight, in the type of the weights."""
    return torch.mm(grad.t(), states).to(kind)


class Lows(NamedTuple):
    """A layer's weights in the type of the products: those of the same states one below the other.

    Args:
        read: [heads + 2 key heads x size, H] of queries, keys and values.
        bias: of these; None: there is none.
        out: [H, heads x size].
        gated: [2 inner, H] of the gate, and of what it is multiplied with.
        down: [H, inner].
    """

    read: Tensor
    bias: Tensor | None
    out: Tensor
    gated: Tensor
    down: Tensor


def lows_of(layer: Any, kind: torch.dtype) -> Lows:
    """A layer's weights in that type; see `products.cast_together`.

    Args:
        layer: of the kind that `is_lean` knows.
        kind: of the products.
    """
    inner, gated = layer.self_attn, layer.mlp
    reads = [getattr(inner, f"{name}_proj") for name in "qkv"]
    biases = [each.bias for each in reads]
    return Lows(
        products.cast_together([each.weight for each in reads], kind),
        None if biases[0] is None else torch.cat([each.detach().to(kind) for each in biases]),
        products.cast_together([inner.o_proj.weight], kind),
        products.cast_together([gated.gate_proj.weight, gated.up_proj.weight], kind),
        products.cast_together([gated.down_proj.weight], kind),
    )


TRIED = 5
"""Tokens by which a layer is compared with its family's own code."""

_turns = Turns()


def through(
    layer: Any, states: Tensor, pieces: Tensor, positions: tuple[Tensor, Tensor] | None, kind: torch.dtype
) -> Tensor:
    """States [1, tokens, H] after a layer.

    Args:
        layer: of the kind that `is_lean` knows, without norms of queries and keys.
        states: [1, tokens, H] float32.
        pieces: see `attention.mask_of_pieces`.
        positions: (cos, sin) [1, tokens, size of a head]; None: it has no rotary positions.
        kind: of the products.
    """
    inner, gated, low, x = layer.self_attn, layer.mlp, lows_of(layer, kind), states[0]
    turns = None
    if positions is not None:
        cos, sin = _turns(*positions)
        turns = cos[0], sin[0]
    reads = [getattr(inner, f"{name}_proj") for name in "qkv"]
    before, between = layer.input_layernorm, layer.post_attention_layernorm
    with torch.autocast(x.device.type, enabled=False):
        both, value = _Before.apply(
            x,
            before.weight,
            *(each.weight for each in reads),
            *(each.bias for each in reads),
            low.read,
            low.bias,
            turns,
            before.variance_epsilon,
            inner.head_dim,
        )
    heads = reads[0].weight.shape[0] // inner.head_dim
    query, key = both.transpose(0, 1).unsqueeze(0).split((heads, both.shape[1] - heads), 1)
    value = value.transpose(0, 1).unsqueeze(0)
    attended, _ = attention.attend(inner, query, key, value, pieces, scaling=inner.scaling)
    with torch.autocast(x.device.type, enabled=False):
        found: Tensor = _After.apply(
            x,
            attended.reshape(len(x), -1).to(kind),
            inner.o_proj.weight,
            between.weight,
            gated.gate_proj.weight,
            gated.up_proj.weight,
            gated.down_proj.weight,
            low,
            between.variance_epsilon,
        )
    return found.unsqueeze(0)


class _Routed:
    """A layer that has its fast way; pickled by its family, since its class stands in no module."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        found: Any = super().__reduce_ex__(protocol)
        return _new, (type(self).__bases__[1],), *found[2:]


def _new(family: Any) -> Any:
    return object.__new__(_routed(family))


@functools.cache
def _routed(family: type[nn.Module]) -> type[nn.Module]:
    """A family's layer that goes `through`, where that gives what the family's own code does."""

    class Layer(_Routed, family):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
            kind = None if given or named.get("past_key_values") is not None else _kind(self, hidden_states)
            pieces, positions = named.get("attention_mask"), named.get("position_embeddings")
            if kind is None or pieces is None or positions is None:
                return super().forward(hidden_states, *given, **named)
            positions = positions if getattr(self.self_attn, "use_rope", True) else None
            if not _agrees(self, super().forward, hidden_states, named):
                return super().forward(hidden_states, **named)
            return through(self, hidden_states, pieces, positions, kind)

    Layer.__name__, Layer.__qualname__ = family.__name__, family.__qualname__  # libraries know layers by their names
    return Layer


def _kind(layer: Any, states: Tensor) -> torch.dtype | None:
    """The type of the products where a layer may go `through`; None where it may not."""
    if states.device.type != "cpu" or states.dtype is not torch.float32 or states.ndim != 3 or len(states) != 1:
        return None
    if not torch.is_autocast_enabled("cpu") or not states.shape[1]:
        return None
    inner, gated = layer.self_attn, layer.mlp
    if inner.config._attn_implementation != attention.ATTENTION or hasattr(inner, "q_norm"):
        return None
    plain = (inner.o_proj, gated.gate_proj, gated.up_proj, gated.down_proj)
    reads = (inner.q_proj, inner.k_proj, inner.v_proj)
    if not all(type(each) in products.LINEAR and _is_plain(each.weight) for each in (*plain, *reads)):
        return None
    if any(each.bias is not None for each in plain) or len({each.bias is None for each in reads}) > 1:
        return None
    if any(_is_watched(each) for each in layer.modules() if each is not layer):
        return None
    return torch.get_autocast_dtype("cpu")


def _is_watched(part: nn.Module) -> bool:
    """Whether somebody hangs on what a part does, or put something in its place."""
    hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks
    return any(hooks) or "forward" in vars(part)


def _is_plain(weight: Any) -> bool:
    """Whether a weight is a whole matrix in float32, and nothing else."""
    return type(weight) is nn.Parameter and type(weight.data) is Tensor and weight.dtype is torch.float32


def _agrees(layer: Any, own: Any, states: Tensor, named: dict[str, Any]) -> bool:
    """Whether a layer's states are its family's own, tried once for its parts by some that look like nothing; not by a
    row that is too short to show it."""
    parts = [f"{type(each).__module__}.{type(each).__qualname__}" for each in layer.modules()]
    known, of = layer.__dict__.get("_goes_through", (None, None))
    if known is None or of != parts:
        cos, sin = (each[:1, :TRIED] for each in named["position_embeddings"])
        if states.shape[1] < TRIED or bool((cos == cos[:, :1]).all()):
            return False
        some = torch.randn(1, TRIED, states.shape[-1], generator=torch.Generator().manual_seed(0))
        pieces = attention.mask_of_pieces([(TRIED, -1)], None)
        turned = (cos, sin) if getattr(layer.self_attn, "use_rope", True) else None
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            wanted = own(some, **{**named, "attention_mask": pieces, "position_embeddings": (cos, sin)})
            found = through(layer, some, pieces, turned, some.dtype)
        known = bool((found - wanted).abs().max() <= TOLERANCE * (wanted - some).abs().max())
        if not known:
            log.debug("%s keeps its family's own code", type(layer).__name__)
        layer.__dict__["_goes_through"] = known, parts
    return bool(known)


def route(model: nn.Module) -> None:
    """Have a model's layers of the plain kind go `through` where they may; others are left alone.

    Args:
        model: any; what a module is called, its parameters and their names stay as they are.
    """
    if getattr(getattr(model, "config", None), "model_type", None) not in lower.FAMILIES:
        return
    for layer in model.modules():
        if isinstance(layer, _Routed) or not is_lean(layer):
            continue
        gated: Any = layer.mlp
        if is_silu(gated.act_fn, gated.gate_proj.weight.device):
            family: Any = type(layer)
            layer.__class__ = _routed(family)


__all__ = ["Lows", "lows_of", "route", "through"]
