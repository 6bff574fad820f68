"""Products by weights that stay as they are for a while: cast and laid out once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alignkit.models import products

SMALL = 2**15
"""Weights fewer than these are multiplied no faster when packed, and the call costs more."""


class Product(nn.Module):
    """A linear layer of weights that do not change any more, cast and laid out once.

    On a processor the weights are packed for oneDNN: in float32 its kernels take a half to a third of the time of the
    default ones for a few rows, and on processors that are not Intel's for many, too (`benchmarks/sampling.py`).

    Args:
        weight: [out, in].
        bias: [out], or None.
        dtype: of the product and of what it gives.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_dtype, self.out_features = dtype, weight.shape[0]
        cast = weight.detach().to(dtype).contiguous()
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.packs = packs(cast)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(cast, None) if self.packs else cast

    def forward(self, states: Tensor) -> Tensor:
        """[…, in] -> […, out]."""
        states = states.to(self.in_dtype)
        if not self.packs:
            return nn.functional.linear(states, self.packed, self.bias)
        return products.onednn(states, self.packed, self.bias)


def packs(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by such weights here."""
    if weight.device.type != "cpu" or weight.numel() < SMALL or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


__all__ = ["Product", "packs"]
