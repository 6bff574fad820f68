"""What lies between the products of a layer while it learns: a few rows at a time, which stay in a processor's cache.

A norm and a gated unit are a dozen passes over [tokens, H], forward and backward, and each pass reads and writes memory
anew (benchmarks/results/speed.md). Here the same operations, in the same
order and so with the same values, are done block by block, and what the backward pass needs is worked out again and not
kept. Layers whose norms are read by products alone give them in the type of these, which autocast would cast to for
each of the products; the gradients of these are then summed in it.

Policies do not take it yet: with the norms, two runs of one seed were not always the same in the last bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignkit.models import lower
from alignkit.models.lean import is_lean, is_silu

ROWS = 256
"""Rows of a block: of 576 numbers in float32, half a megabyte. A multiple of what a processor takes at once: what is
left at a block's end is rounded otherwise, as are the ends of the parts that torch gives to several threads."""


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(each.split(ROWS) for each in tensors), strict=True)


def _over(x: Tensor, epsilon: float) -> Tensor:
    """[rows, 1]: one over the root of the mean square."""
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


def normed(x: Tensor, weight: Tensor, epsilon: float, kind: torch.dtype) -> Tensor:
    """x over the root of its mean square, times a weight (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4).

    Args:
        x: [rows, H] float32.
        weight: [H] float32.
        epsilon: added to the mean square.
        kind: of what is given.

    Returns:
        [rows, H].
    """
    found = torch.empty(x.shape, dtype=kind, device=x.device)
    for rows, out in _blocks(x, found):
        torch.mul(weight, rows * _over(rows, epsilon), out=out)
    return found


class _Norm(torch.autograd.Function):
    """With y = w x r and r = 1 / rms(x): dx = r (g w - x r mean(g w x r)), dw = sum of g x r over rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, kind: torch.dtype) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return normed(x.view(-1, x.shape[-1]), weight, epsilon, kind).view(x.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        found, of_weight = torch.empty_like(x), torch.zeros_like(weight)
        flat = (each.reshape(-1, x.shape[-1]) for each in (x, grad))
        for rows, slopes, out in _blocks(*flat, found.view(-1, x.shape[-1])):
            over = _over(rows, ctx.epsilon)
            unit, slopes = rows * over, slopes.float()
            if ctx.needs_input_grad[1]:
                of_weight += (slopes * unit).sum(0)
            slopes = slopes * weight
            torch.mul(slopes.sub_(unit.mul_((slopes * unit).mean(-1, keepdim=True))), over, out=out)
        return found, of_weight if ctx.needs_input_grad[1] else None, None, None


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [rows, H] of one type."""
    found = torch.empty_like(gate)
    for gates, ups, out in _blocks(gate, up, found):
        torch.mul(nn.functional.silu(gates), ups, out=out)
    return found


class _Gated(torch.autograd.Function):
    """The same with its gradients, as autograd has them of the two."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return gated(gate.view(-1, gate.shape[-1]), up.view(-1, up.shape[-1])).view(gate.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        flat = (each.reshape(-1, grad.shape[-1]) for each in (gate, up, grad, of_gate, of_up))
        for gates, ups, slopes, for_gate, for_up in _blocks(*flat):
            torch.mul(slopes, nn.functional.silu(gates), out=for_up)
            for_gate.copy_(torch.ops.aten.silu_backward(slopes * ups, gates))
        return of_gate, of_up


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


class _Routed:
    """A module that has its fast way; pickled by its family, since its class stands in no module."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        found: Any = super().__reduce_ex__(protocol)
        return _new, (type(self).__name__, type(self).__bases__[1]), *found[2:]


def _new(name: str, family: Any) -> Any:
    of: Any = {"Norm": _norm_of, "Unit": _unit_of}[name]
    return object.__new__(of(family))


@functools.cache
def _norm_of(family: type[nn.Module]) -> type[nn.Module]:
    """A family's norm, block by block where it is in float32 on a processor."""

    class Norm(_Routed, family):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: Tensor) -> Tensor:
            x, weight = hidden_states, self.weight
            if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or not x.is_contiguous():
                return super().forward(hidden_states)  # type: ignore[no-any-return]
            mixed = torch.is_autocast_enabled("cpu")
            kind = torch.get_autocast_dtype("cpu") if mixed else torch.float32
            if _wants_gradient(x, weight):
                return _Norm.apply(x, weight, self.variance_epsilon, kind)  # type: ignore[no-any-return]
            return normed(x.view(-1, x.shape[-1]), weight, self.variance_epsilon, kind).view(x.shape)

    return Norm


@functools.cache
def _unit_of(family: type[nn.Module]) -> type[nn.Module]:
    """A family's gated unit, block by block on a processor."""

    class Unit(_Routed, family):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.gate_proj(x), self.up_proj(x)
            together = gate.dtype == up.dtype and gate.is_contiguous() and up.is_contiguous()
            if gate.device.type != "cpu" or not together:
                return self.down_proj(self.act_fn(gate) * up)  # type: ignore[no-any-return]
            if _wants_gradient(gate, up):
                return self.down_proj(_Gated.apply(gate, up))  # type: ignore[no-any-return]
            return self.down_proj(gated(gate.view(-1, gate.shape[-1]), up.view(-1, up.shape[-1])).view(gate.shape))  # type: ignore[no-any-return]

    return Unit


def route(model: nn.Module) -> None:
    """Have a model's layers of the plain kind take these norms and gated units; others are left alone.

    Args:
        model: any; what a module is called, its parameters and their names stay as they are.
    """
    if getattr(getattr(model, "config", None), "model_type", None) not in lower.FAMILIES:
        return
    for layer in model.modules():
        if not is_lean(layer):
            continue
        parts: dict[str, Any] = dict(layer.named_children())
        for norm in (parts["input_layernorm"], parts["post_attention_layernorm"]):
            _give(norm, _norm_of)
        if is_silu(parts["mlp"].act_fn, parts["mlp"].gate_proj.weight.device):
            _give(parts["mlp"], _unit_of)


def _give(module: Any, of: Callable[[Any], Any]) -> None:
    if not isinstance(module, _Routed):
        module.__class__ = of(type(module))


__all__ = ["gated", "normed", "route"]
