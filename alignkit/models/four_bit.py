"""Bases in four bits under an adapter that trains (QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314), by
bitsandbytes."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from alignkit.errors import ConfigError

PACKAGE = "bitsandbytes"
KINDS = ("nf4", "fp4")
"""Four-bit types: NormalFloat, which the paper recommends, and a float of four bits."""


def refuse_absent(kind: str) -> None:
    """Refuse a type that is none, or for which nothing is installed.

    Raises:
        ConfigError: with the remedy.
    """
    if kind not in KINDS:
        raise ConfigError(f"quantize={kind!r}", where="LoRA", remedy=f"use {' or '.join(KINDS)}, or None")
    if find_spec(PACKAGE) is None:
        raise ConfigError(
            f"a base in four bits needs the package {PACKAGE}, which is not installed",
            where="LoRA",
            remedy=f'pip install {PACKAGE}, or leave quantize out: precision="bf16-true" halves the weights',
        )


def quantize(model: nn.Module, kind: str) -> None:
    """Put the linear layers of a model into four bits, in place; its head, its embeddings and its norms stay.

    Args:
        model: a bare transformers model, frozen, before an adapter is put on it.
        kind: of `KINDS`; the scales are quantised too (the paper's double quantisation).
    """
    bnb: Any = import_module(PACKAGE)
    head = model.get_output_embeddings()  # type: ignore[operator]
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer is not head:
                weight = layer.weight
                made = bnb.nn.Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    bias=layer.bias is not None,
                    compute_dtype=weight.dtype,
                    quant_type=kind,
                    device="meta",
                )
                packed = bnb.nn.Params4bit(weight.data, requires_grad=False, quant_type=kind)
                made.weight, made.bias = packed.to(weight.device), layer.bias
                setattr(parent, name, made)


def is_quantized(model: nn.Module) -> bool:
    """Whether some of a model's weights are in four bits."""
    return any(getattr(weight, "quant_state", None) is not None for weight in model.parameters())


def numbers_in(weight: Any) -> int:
    """How many numbers a tensor of weights stands for; two of four bits share a byte."""
    state = getattr(weight, "quant_state", None)
    return int(weight.numel() if state is None else state.shape.numel())
