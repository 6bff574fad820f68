"""A GPU that is pretended: a forgotten `.to(device)` fails on any machine, with the numbers of a processor.

What lies on the pretended device is an ordinary tensor, marked by its storage. Two of PyTorch's modes stand between:
one at Python's calls (`.device`, `.to`, `device=…` say and do what they would on a GPU), one at the operations beneath,
also those of a backward pass. It refuses what a GPU refuses: tensors of two devices in one operation, except for
numbers of the CPU (tensors without dimensions), indices from the CPU, and copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd import graph
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from alignkit.models import attention

CPU, GPU, META = torch.device("cpu"), torch.device("cuda", 0), torch.device("meta")

COPIES = frozenset({"copy_", "_copy_from", "_foreach_copy_", "set_"})
"""Operations whose tensors may lie anywhere; what comes out lies where the first does."""
INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"})
"""Operations that take indices from the CPU too."""
STRICT = frozenset({"cat", "stack", "embedding", "gather", "scatter", "scatter_", "scatter_add_", "index_select"})
"""Operations that refuse even a number of the CPU."""
ASKED = {
    Tensor.device.__get__: lambda device: device,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda device: device.type == "cuda",  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda device: device.type == "cpu",  # type: ignore[attr-defined]
    Tensor.get_device: lambda device: -1 if device.type == "cpu" else 0,
}
"""Questions to a tensor that its device answers."""


class _Moved(torch.autograd.Function):
    """A copy on another device; its gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mode: PretendedGPU, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        ctx.back = mode, mode.where(x), x.dtype
        return mode.mark(x.detach().to(dtype or x.dtype, copy=True), device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        mode, device, dtype = ctx.back
        return mode.mark(grads[0].to(dtype, copy=True), device), None, None, None


class _Operations(TorchDispatchMode):
    """Marks what every operation makes, and refuses tensors of two devices."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.split("::")[-1]
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor) and not each.is_meta]
        device = self._common(name, args, given)
        out = func(*args, **kwargs)
        for each in tree_flatten(out)[0]:
            if isinstance(each, Tensor) and not each.is_meta:
                self.gpu.mark(each, device)
        self.gpu.operations += device == GPU
        return out

    def _common(self, name: str, args: Sequence[Any], given: Sequence[Tensor]) -> torch.device:
        """The device of an operation, and so of what it makes.

        Raises:
            RuntimeError: tensors of two.
        """
        if not given:
            return self.gpu.ambient
        if name in COPIES:
            return self.gpu.where(given[0])
        found = [self.gpu.where(each) for each in given]
        first = found[0]
        if name in INDEXED and first == GPU:
            indices = tree_flatten(args[1])[0]
            found = [
                GPU if any(each is index for index in indices) else at for each, at in zip(given, found, strict=True)
            ]
        if GPU not in found or CPU not in found:
            return first
        if name in STRICT or any(at == CPU and each.ndim for each, at in zip(given, found, strict=True)):
            where = ", ".join(f"{at} {list(each.shape)}" for each, at in zip(given, found, strict=True))
            self.gpu.refused.append(f"{name}: {where}")
            raise RuntimeError(f"Expected all tensors to be on the same device, found in {name}: {where}")
        return GPU


class PretendedGPU(TorchFunctionMode):
    """Within it "cuda" is a device; see `pretended_gpu`.

    Attributes:
        operations: how many were done on it.
        refused: what was not done, also where the error was caught.
        ambient: where what is made without a tensor to go by is made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.ambient = 0, CPU
        self.refused: list[str] = []
        self._marked: dict[int, StorageWeakRef] = {}  # an address is not used again while a weak reference is held

    def where(self, x: Tensor) -> torch.device:
        """The device of a tensor."""
        if x.is_meta:
            return META
        return GPU if x.untyped_storage()._cdata in self._marked else CPU

    def mark(self, x: Tensor, device: torch.device) -> Tensor:
        """The same tensor, on that device."""
        storage = x.untyped_storage()
        if device == CPU:
            self._marked.pop(storage._cdata, None)
        elif storage._cdata not in self._marked:
            self._marked[storage._cdata] = StorageWeakRef(storage)
            if len(self._marked) % 4096 == 0:
                self._marked = {place: ref for place, ref in self._marked.items() if not ref.expired()}
        return x

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in ASKED:
            return ASKED[func](self.where(args[0]))
        if func in HANDLED:
            return HANDLED[func](self, *args, **kwargs)
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor) and not each.is_meta]
        device = GPU if any(self.where(each) == GPU and each.ndim for each in given) else CPU
        if device == CPU and given and all(self.where(each) == GPU or not each.ndim for each in given):
            device = self.where(given[0])
        explicit = kwargs.get("device")
        if explicit is not None and torch.device(explicit).type != "meta":
            device = _named(explicit)
            kwargs["device"] = CPU
        before, self.ambient = self.ambient, device
        try:
            out = func(*args, **kwargs)
        finally:
            self.ambient = before
        if explicit is not None and isinstance(out, Tensor) and not out.is_meta:
            self.mark(out, device)
        return out

    def backward(self, roots: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        """A backward pass, in which the mode is on for what Python does: a call that is handled has switched it off."""
        before, self.ambient = self.ambient, self.where(roots[0])
        try:
            with self:
                return graph._engine_run_backward(roots, *args, **kwargs)
        finally:
            self.ambient = before

    def moved(self, x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of a tensor there, or the tensor itself where it is there."""
        if self.where(x) == device:
            return x if dtype is None else x.to(dtype)
        out: Tensor = _Moved.apply(x, self, device, dtype)
        return out


def _named(device: Any) -> torch.device:
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return GPU if found.type == "cuda" else found


def _to(mode: PretendedGPU, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    copy = kwargs.pop("copy", False)
    if isinstance(other := kwargs.pop("other", args[0] if args else None), Tensor):
        return mode.moved(x, mode.where(other), other.dtype)
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    if x.is_meta or (device is not None and device.type == "meta"):
        return x.to(device, dtype)
    target = mode.where(x) if device is None else _named(device)
    if target != mode.where(x):
        return mode.moved(x, target, dtype)
    more: dict[str, Any] = {} if layout is None else {"memory_format": layout}
    return x.to(x.dtype if dtype is None else dtype, copy=copy, **more)


def _new(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of a tensor, another beside it."""

    def made(mode: PretendedGPU, x: Tensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        return mode.mark(make(x, *args, **kwargs), mode.where(x) if device is None else _named(device))

    return made


def _numpy(mode: PretendedGPU, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if mode.where(x) == GPU:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
    return x.numpy(*args, **kwargs)


def _array(mode: PretendedGPU, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    _numpy(mode, x)
    return x.__array__(*args, **kwargs)


def _copied(mode: PretendedGPU, x: Tensor, memo: dict[int, Any]) -> Tensor:
    return mode.mark(x.__deepcopy__(memo), mode.where(x))


def _form(x: Tensor) -> dict[str, Any]:
    """What a tensor that is computed again has in common with itself: its device is asked for with the mode off."""
    return {"shape": x.shape, "dtype": x.dtype}


HANDLED: Mapping[Any, Callable[..., Any]] = {
    Tensor.to: _to,
    Tensor.cpu: lambda mode, x, *_, **__: mode.moved(x, CPU),
    Tensor.cuda: lambda mode, x, *_, **__: mode.moved(x, GPU),
    Tensor.type_as: lambda mode, x, other: mode.moved(x, mode.where(other), other.dtype),
    Tensor.new_tensor: _new(Tensor.new_tensor),
    Tensor.numpy: _numpy,
    Tensor.__array__: _array,
    Tensor.__deepcopy__: _copied,
}
"""Calls that a GPU answers otherwise."""


@contextlib.contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """Pretend a GPU: PyTorch and Lightning find one of the name "cuda", and take it where they are not told otherwise.

    Yields:
        The device, which counts the operations done on it.

    Raises:
        RuntimeError: within it, by an operation on tensors of two devices, as a GPU would.
        TypeError: within it, by an array made of a tensor on the device, as a GPU would.
    """
    there: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_name": "a pretended GPU",
        "is_bf16_supported": True,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "reset_peak_memory_stats": None,
        "manual_seed_all": None,
    }
    attention._seen.cache_clear()
    gpu = PretendedGPU()
    with contextlib.ExitStack() as stack:
        for name, value in there.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, value=value, **__: value))
        stack.enter_context(mock.patch.dict(checkpoint._allowed_determinism_checks_to_fns, {"default": _form}))
        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", gpu.backward))
        stack.enter_context(_Operations(gpu))
        stack.enter_context(gpu)
        stack.callback(attention._seen.cache_clear)
        yield gpu
