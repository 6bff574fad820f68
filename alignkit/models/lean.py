"""A copy of a model to sample from: weights cast and laid out once, and decoder layers of few calls.

Of a few tokens the products take less than half of a step; the rest is calls, of which a family's own code makes some
seventy-five a layer with the attention of the house. A layer of the kind that most families have (two norms, rotary
attention, a gated unit) does here the same in some forty-five: queries, keys and values of one product, both turned at
once, the gate's activation in its product. Which families have it stands in `lower.FAMILIES`; others keep their own
code, in which linear layers alone are laid out anew. What comes of it is compared with the model's own logits
(`alignkit.models.ways`).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.models import lower, products
from alignkit.models.packed import Product
from alignkit.models.slot_attention import attend


def decoding_copy(model: Any, dtype: torch.dtype | None) -> Any:
    """A model to sample from in slots: its linear layers are `Product`s and its layers `Lean`, where they are of that
    kind; all other weights are shared with the original.

    Args:
        model: a transformers model, as it is now: adapters that are folded in stay so in the copy.
        dtype: of the products, as under autocast: what lies between them is as the weights are. None: theirs.
    """
    from transformers.pytorch_utils import Conv1D

    turns = Turns()
    layers = [layer for layer in model.modules() if is_lean(layer)] if lower.parts(model.config) else []
    found = detached(model, {id(layer): Lean(layer, dtype, turns) for layer in layers})
    for parent in list(found.modules()):
        for name, child in list(parent.named_children()):
            layer = _base(child)
            if type(layer) in products.LINEAR:
                setattr(parent, name, Product(layer.weight, layer.bias, dtype or layer.weight.dtype))
            elif isinstance(layer, Conv1D):
                setattr(parent, name, Product(layer.weight.t(), layer.bias, dtype or layer.weight.dtype))
    return found


def detached(model: Any, instead: Mapping[int, nn.Module] = MappingProxyType({})) -> Any:
    """A model of its own modules on the same weights, as they are now and without gradients.

    Args:
        model: any.
        instead: modules that stand in it for others of the model, by the `id` of these.
    """
    weights = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    buffers = {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, {**weights, **buffers, **instead}).eval()


def _base(layer: Any) -> Any:
    """A layer out of its adapter."""
    from peft.tuners.lora import LoraLayer

    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
QUERIES = {"q_norm", "k_norm"}
GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def is_lean(layer: nn.Module) -> bool:
    """Whether a module is a layer of that kind, with nothing else in it and no hook on a part of it."""
    if set(dict(layer.named_children())) != LAYER:
        return False
    if any(each._forward_hooks or each._forward_pre_hooks for each in layer.modules()):
        return False
    if not all(_is_known(type(each)) for each in (layer, *layer.children())):
        return False
    inner, gated = dict(layer.self_attn.named_children()), dict(layer.mlp.named_children())  # type: ignore[operator, union-attr]
    linear = [_base(inner.get(name)) for name in ATTENTION] + [_base(gated.get(name)) for name in GATED - {"act_fn"}]
    norms = [layer.input_layernorm, layer.post_attention_layernorm, *(inner[name] for name in QUERIES & set(inner))]
    return (
        set(inner) - QUERIES == ATTENTION
        and len(QUERIES & set(inner)) != 1
        and set(gated) == GATED
        and all(type(each) in products.LINEAR for each in linear)
        and all(hasattr(each, "variance_epsilon") and hasattr(each, "weight") for each in norms)
    )


def _is_known(kind: type) -> bool:
    """Whether a class is transformers' own, or made of one by this package: others may compute something else under the
    same names."""
    family = next(each for each in kind.__mro__ if not each.__module__.startswith("alignkit."))
    return family.__module__.startswith("transformers.models.")


def is_silu(activation: nn.Module, device: torch.device) -> bool:
    """Whether that is what it computes: families have classes of their own for it."""
    some = torch.linspace(-4.0, 4.0, 64, device=device)
    return torch.equal(activation(some), nn.functional.silu(some))


class Turns:
    """Rotary positions as layers take them, worked out once for all of them."""

    def __init__(self) -> None:
        self.of: Tensor | None = None
        self.found: tuple[Tensor, Tensor] | None = None

    def __call__(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) [rows, tokens, 1, H] for states whose halves are exchanged by a roll: the first half of the sines
        has the other sign."""
        if self.found is None or self.of is not cos:
            first, second = sin.chunk(2, -1)
            self.of, self.found = cos, (cos.unsqueeze(2), torch.cat([-first, second], -1).unsqueeze(2))
        return self.found


def normed(states: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(states over the root of their mean square, times a weight, in that type; one over that root [..., 1]).

    Args:
        states: [..., H].
        weight: [H].
        epsilon: added to the mean square.
        dtype: of what is given.
    """
    size = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    over = torch.addcmul(_number(epsilon, size.dtype, size.device), size, size, value=1 / states.shape[-1]).rsqrt_()
    found = torch.empty(states.shape, dtype=dtype, device=states.device)
    return torch.mul(states * over, weight, out=found), over


@functools.lru_cache(16)
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


class Norm:
    """x over the root of its mean square, times a weight (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4).

    Args:
        norm: a family's own.
        dtype: of what it gives; None: of what it takes.
    """

    def __init__(self, norm: Any, dtype: torch.dtype | None) -> None:
        self.weight, self.dtype, self.epsilon = norm.weight.detach(), dtype, norm.variance_epsilon

    def __call__(self, states: Tensor) -> Tensor:
        """[…, H], in float32 within."""
        return normed(states.float(), self.weight, self.epsilon, self.dtype or states.dtype)[0]


class Gated:
    """A gate's activation times another product of the same states, within the second product where oneDNN has it."""

    def __init__(self, gate: Any, up: Any, activation: nn.Module, dtype: torch.dtype) -> None:
        self.gate, self.up = (Product(each.weight, each.bias, dtype) for each in (gate, up))
        self.activation = activation
        silu = is_silu(activation, gate.weight.device)
        self.within = silu and self.gate.packs and self.up.packs

    def __call__(self, states: Tensor) -> Tensor:
        """[…, in] -> […, out]."""
        if not self.within:
            return self.activation(self.gate(states)) * self.up(states)  # type: ignore[no-any-return]
        gate = products.onednn(states, self.gate.packed, self.gate.bias, "swish")
        return products.onednn_times(states, gate, self.up.packed, self.up.bias)


class Lean(nn.Module):
    """A layer of the kind described above, to sample from.

    Args:
        layer: a family's own.
        dtype: of the products; None: as the weights are.
        turns: shared by all layers of a model.
    """

    def __init__(self, layer: Any, dtype: torch.dtype | None, turns: Turns) -> None:
        super().__init__()
        inner, gated = layer.self_attn, layer.mlp
        query, key, value, out = (_base(getattr(inner, f"{name}_proj")) for name in "qkvo")
        kind = dtype or query.weight.dtype
        self.size, self.place, self.turns = inner.head_dim, inner.layer_idx, turns
        self.scaling = inner.scaling
        self.queries, self.keys = (each.weight.shape[0] // self.size for each in (query, key))
        self.turned = bool(getattr(inner, "use_rope", True))
        self.norms = [Norm(getattr(inner, name), None) for name in ("q_norm", "k_norm") if hasattr(inner, name)]
        self.before, self.between = Norm(layer.input_layernorm, kind), Norm(layer.post_attention_layernorm, kind)
        self.read, self.out = _together((query, key, value), kind), Product(out.weight, out.bias, kind)
        self.gated = Gated(_base(gated.gate_proj), _base(gated.up_proj), gated.act_fn, kind)
        down = _base(gated.down_proj)
        self.down = Product(down.weight, down.bias, kind)
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        past_key_values: Any = None,
        position_embeddings: Any = None,
        **other: Any,
    ) -> Tensor:
        """States [rows, tokens, H], as a family's layer takes and gives them.

        Args:
            hidden_states: before it.
            attention_mask: see `attend`.
            past_key_values: a `SlotCache`.
            position_embeddings: (cos, sin) [rows, tokens, size of a head] of rotary positions.
            other: what a family's layer takes besides, which masks and cache stand for.
        """
        rows, tokens, _ = hidden_states.shape
        heads = self.read(self.before(hidden_states)).view(rows, tokens, -1, self.size)
        both, values = heads.split((self.queries + self.keys, self.keys), 2)
        if self.norms:
            parts = both.split((self.queries, self.keys), 2)
            both = torch.cat([norm(each) for norm, each in zip(self.norms, parts, strict=True)], 2)
        if self.turned:
            cos, sin = self.turns(*position_embeddings)
            both = torch.addcmul(both * cos, both.roll(self.size // 2, -1), sin)
        query, key = both.transpose(1, 2).split((self.queries, self.keys), 1)
        key, value = past_key_values.update(key, values.transpose(1, 2), self.place)
        found, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling)
        states = hidden_states + self.out(found.reshape(rows, tokens, -1))
        return states + self.down(self.gated(self.between(states)))


def _together(layers: Sequence[Any], dtype: torch.dtype) -> Product:
    """Several linear layers of the same states as one product."""
    weight = torch.cat([each.weight.detach().to(dtype) for each in layers])
    biases = [each.bias for each in layers]
    bias = None if biases[0] is None else torch.cat([each.detach() for each in biases])
    return Product(weight, bias, dtype)


__all__ = ["Lean", "Turns", "decoding_copy", "detached", "is_lean", "is_silu", "normed"]
