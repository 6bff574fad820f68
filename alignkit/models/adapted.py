"""A linear layer and its low-rank adapter in one pass: y = x W^T + s (x A^T) B^T (Hu et al. 2021, equation 3).

peft computes the adapter's part on its own, scales it and adds it: three passes over [tokens, out] forward and as many
backward, which for a small model cost more than the products do. Here the scale is put on [tokens, r], and both parts
are summed by the product itself. Values differ by rounding (tests/test_adapted.py); a training step of SmolLM2 with
adapters on all layers takes a fifth less (benchmarks/results/speed.md). Whatever else an adapter may be, such as one
with dropout, several at once, or weights of another type than the activations, is left to peft.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignkit.models import layer, products


class _Adapted(torch.autograd.Function):
    """The sum with its gradients; what is kept for them is the input and [tokens, r]."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = (flat @ a.t()).mul_(scale)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scale, ctx.shape = scale, x.shape
        return torch.addmm(products.plain(flat, weight, bias), low, b.t()).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        flat, weight, a, b, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        wants_x, wants_weight, wants_bias, wants_a, wants_b, _ = ctx.needs_input_grad
        to_low = (grad @ b).mul_(ctx.scale)
        return (
            torch.addmm(products.plain(grad, weight.t()), to_low, a).view(ctx.shape) if wants_x else None,
            grad.t() @ flat if wants_weight else None,
            grad.sum(0) if wants_bias else None,
            to_low.t() @ flat if wants_a else None,
            grad.t() @ low if wants_b else None,
            None,
        )


def adapted(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x W^T + bias + scale (x A^T) B^T; under autocast in its type, as torch's own products.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out], or None.
        a: [r, in].
        b: [out, r].
        scale: alpha / r.

    Returns:
        [..., out].
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return _Adapted.apply(x, weight, bias, a, b, scale)  # type: ignore[no-any-return]
    kind = torch.get_autocast_dtype(device)
    low = products.cast_once(weight).to(kind)
    with torch.autocast(device, enabled=False):
        return _Adapted.apply(  # type: ignore[no-any-return]
            x.to(kind), low, None if bias is None else bias.to(kind), a.to(kind), b.to(kind), scale
        )


@functools.cache
def _layers() -> tuple[type[nn.Module], type[nn.Module]]:
    """(peft's adapted linear layer, the same by `adapted`)."""
    from peft.tuners.lora.layer import Linear

    class Adapted(Linear):
        def forward(self, x: Tensor, *given: Any, **named: Any) -> Tensor:
            name = None if given or named else _the_one(self, x)
            if name is None:
                found: Tensor = super().forward(x, *given, **named)
                return found
            base: Any = self.base_layer
            a, b = (each[name].weight for each in cast(Any, (self.lora_A, self.lora_B)))
            return adapted(x, base.weight, base.bias, a, b, self.scaling[name])

    return Linear, Adapted


def _the_one(layer: Any, x: Tensor) -> str | None:
    """The name of the adapter, where there is one alone, with nothing to it but the two matrices."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(names) != 1 or type(layer.base_layer) not in products.LINEAR:
        return None
    (name,) = names
    first, second = layer.lora_A[name], layer.lora_B[name]
    dropout = layer.lora_dropout[name]
    plain = name not in layer.lora_variant and first.bias is None and second.bias is None
    if not plain or not (type(dropout) is nn.Identity or not dropout.training):
        return None
    kinds = {each.dtype for each in (layer.base_layer.weight, first.weight, second.weight)}
    same = len(kinds) == 1 and (x.dtype in kinds or torch.is_autocast_enabled(x.device.type))
    return name if same and x.numel() else None


def route(model: nn.Module) -> None:
    """Have the adapted linear layers of a model take `adapted`, as `products.route` does with plain ones.

    Args:
        model: any; one without adapters is left alone, and peft is not imported for it.
    """
    if not any(type(module).__module__ == "peft.tuners.lora.layer" for module in model.modules()):
        return
    plain, fused = _layers()
    for module in model.modules():
        if type(module) is plain:
            module.__class__ = fused


def route_all(model: nn.Module) -> None:
    """Have every linear layer of a model take its fast way, plain or adapted, and its decoder layers theirs.

    Args:
        model: any.
    """
    products.route(model)
    route(model)
    layer.route(model)
