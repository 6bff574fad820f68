"""Products of activations with weight matrices: in float32 by whichever of torch's two libraries is the fast one here,
under autocast with frozen weights that are cast once.

torch gives float32 products to MKL, which leaves AVX-512 unused on processors that are not Intel's; oneDNN, which torch
has too, looks at what the processor can do. On an AMD processor with AVX-512 it was measured at two to three times the
rate, and on one without at 0.75 to 0.9 of it, but for a head over a vocabulary (benchmarks/results/speed.md). Values
differ by float32 rounding. Other types, devices and processors are left to torch, and so are small products, whose cost
is the call.

In a fit autocast casts weights for every product. Frozen ones (the base under an adapter, a reference) are cast once
here while `casts_kept`, for half their memory more; those that are trained once a step, where `casts_of_a_step`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary

LEAST = 1 << 21
"""Multiplications and additions from which the other library wins, in a model's forward and backward passes."""

WIDE = 1 << 14
"""Numbers that a product gives for a row, as a head over a vocabulary does, from which it wins without AVX-512 too: at
105 against 62 GFLOP/s for 352 rows and 49,152 of them (benchmarks/results/speed.md)."""

_forced: list[bool] = []


@functools.cache
def mkl_is_slow(wide: bool = False, cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether torch has both libraries, and the processor has AVX-512 and a maker that is known and not Intel.

    Args:
        wide: of products of `WIDE` numbers a row or more, for which AVX-512 is not asked.
        cpuinfo: the file in which Linux says so; elsewhere nothing is known.
    """
    file = Path(cpuinfo)
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and file.is_file()):
        return False
    known = [line.partition(":") for line in file.read_text().splitlines()]
    makers = {value.strip() for name, _, value in known if name.strip() == "vendor_id"}
    avx512 = any("avx512f" in value.split() for name, _, value in known if name.strip() == "flags")
    return (wide or avx512) and bool(makers) and "GenuineIntel" not in makers


@contextlib.contextmanager
def by_onednn(wanted: bool) -> Iterator[None]:
    """Take oneDNN for all float32 products of routed layers, however small, or for none, whatever the processor."""
    _forced.append(wanted)
    try:
        yield
    finally:
        _forced.pop()


def _goes(x: Tensor, weight: Tensor) -> bool:
    """Whether x [..., in] times weight [out, in] goes through oneDNN."""
    if x.dtype is not torch.float32 or weight.dtype is not torch.float32 or x.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    if _forced:
        return _forced[-1] and x.numel() > 0
    return x.numel() * weight.shape[0] >= LEAST and mkl_is_slow(weight.shape[0] >= WIDE)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: x [..., in] times weight [out, in] transposed, [..., out]."""
    if not _goes(x, weight):
        return nn.functional.linear(x, cast_once(weight), bias)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, weight, bias)):
        return _Product.apply(x, weight, bias)  # type: ignore[no-any-return]
    return onednn(x, weight, bias)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` of what needs no gradient and is of one type, into memory of its own."""
    return onednn(x, weight, bias) if _goes(x, weight) else nn.functional.linear(x, weight, bias)


class _Cast(NamedTuple):
    """Weights in a lower type, and what they were made from: the memory of each (held weakly), and how often that was
    written."""

    storages: list[StorageWeakRef]
    versions: list[int]
    low: Tensor


_casts: list[WeakIdKeyDictionary] = []
_step_casts: list[WeakIdKeyDictionary] = []


@contextlib.contextmanager
def casts_kept() -> Iterator[None]:
    """Keep what frozen weights are cast to, until the end of the block."""
    _casts.append(WeakIdKeyDictionary())
    try:
        yield
    finally:
        _casts.pop()


def cast_once(weight: Tensor) -> Tensor:
    """A float32 weight in the type that autocast would cast it to for a product, where it is frozen, autocast is on and
    `casts_kept`; else the weight itself."""
    device = weight.device.type
    if not _casts or weight.requires_grad or type(weight) is not nn.Parameter or weight.dtype is not torch.float32:
        return weight
    if not torch.is_autocast_enabled(device):
        return weight
    return cast_together([weight], torch.get_autocast_dtype(device))


@contextlib.contextmanager
def casts_of_a_step() -> Iterator[None]:
    """Keep what `cast_together` made of weights that are trained, until the end of the block: 2 bytes a weight for a
    step of several micro-batches."""
    _step_casts.append(WeakIdKeyDictionary())
    try:
        yield
    finally:
        _step_casts.pop()


def cast_together(weights: Sequence[Tensor], kind: torch.dtype) -> Tensor:
    """Weights [out, in] that read the same states in another type, one below the other: [sum of out, in].

    It is kept while `casts_kept` where they are frozen, else while `casts_of_a_step`.

    Args:
        weights: parameters of one width.
        kind: of the product.
    """
    first = weights[0]
    place = _step_casts if any(each.requires_grad for each in weights) else _casts
    known: Any = place[-1].get(first) if place else None
    storages, versions = [each.untyped_storage() for each in weights], [each._version for each in weights]
    same = known is not None and known.low.dtype is kind and known.versions == versions
    # An adapter is folded in by giving a weight other memory for a while.
    if same and [each.cdata for each in known.storages] == [each._cdata for each in storages]:
        return known.low  # type: ignore[no-any-return]
    low = torch.empty(sum(map(len, weights)), first.shape[1], dtype=kind, device=first.device)
    for part, weight in zip(low.split([len(each) for each in weights]), weights, strict=True):
        part.copy_(weight.detach())
    if place:
        place[-1][first] = _Cast([StorageWeakRef(each) for each in storages], versions, low)
    return low


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None, after: str = "none") -> Tensor:
    """The product by oneDNN; the weight [out, in], or as `torch.ops.mkldnn._reorder_linear_weight` packs it.

    Args:
        x: [..., in].
        weight: of the same type.
        bias: [out].
        after: what is done to it within, by oneDNN's name ("swish": x times its sigmoid).
    """
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "")
    return found


def onednn_times(x: Tensor, times: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, times another tensor [..., out]."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, times, weight, bias, "mul")
    return found


class _Product(torch.autograd.Function):
    """The product with both of its gradients by oneDNN, which reads matrices as they lie or transposed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return onednn(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            onednn(flat, weight.t()).view(x.shape) if wants_x else None,
            onednn(flat.t(), x.reshape(-1, x.shape[-1]).t()) if wants_weight else None,
            flat.sum(0) if wants_bias else None,
        )


class Linear(nn.Linear):
    """A linear layer whose product is `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


LINEAR = (nn.Linear, Linear)
"""Torch's linear layer, routed or not."""


@functools.cache
def _conv1d() -> tuple[type[nn.Module], type[nn.Module]]:
    """(GPT-2's linear layer, whose weight lies transposed; the same by `linear`)."""
    from transformers.pytorch_utils import Conv1D

    class Transposed(Conv1D):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return linear(x, self.weight.t(), self.bias)

    return Conv1D, Transposed


def route(model: nn.Module) -> None:
    """Have the linear layers of a model take `linear`, those of its adapters too.

    A layer gets another class and stays what it is: its parameters, their names, and what may be done with it.

    Args:
        model: any; layers that are something else than torch's own linear layer or GPT-2's are left alone.
    """
    plain, transposed = _conv1d()
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif type(module) is plain:
            module.__class__ = transposed
