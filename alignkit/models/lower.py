"""The lower part of a trunk that nothing trains, read once for each text.

Under an adapter on the upper layers alone (`LoRA(layers=…)`) the states that the layers below it give hang on the base
and on the tokens before, and on nothing that is learned. They are the same in every epoch, and for whatever stands on
the same base: the policy, its reference, its value model, each reward model. So they are kept, token by token in a tree
of prefixes, and a text that was read before begins where the adapter does. Values differ by rounding, as between two
batches (tests/test_lower.py).
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from alignkit.models.attention import Piece

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""Families whose trunk goes on from states as it does from embeddings, which the tests show: no more than embeddings,
layers and a norm, and no layer that reads another's number from the configuration."""

ROOM = 2**28
"""Bytes of states that are kept in all."""


class Kept:
    """States of the tokens of texts that were read, by all tokens before them."""

    def __init__(self) -> None:
        self.after: dict[tuple[int, int], int] = {}
        self.rows: Tensor | None = None

    @property
    def bytes(self) -> int:
        """What it holds."""
        return 0 if self.rows is None else self.rows.numel() * self.rows.element_size()

    def find(self, ids: Sequence[int], pieces: Sequence[Piece]) -> Tensor | None:
        """States [1, tokens, H] of a packed row; None where one of its tokens was not read."""
        if self.rows is None:
            return None
        places = self._walk(ids, pieces, add=False)
        return None if places is None else self.rows[torch.tensor(places)].unsqueeze(0)

    def keep(self, ids: Sequence[int], pieces: Sequence[Piece], states: Tensor) -> None:
        """Keep the states [1, tokens, H] of a packed row; those of tokens that were read stay as they are."""
        known = len(self.after)
        places = self._walk(ids, pieces, add=True)
        assert places is not None
        new = {place: at for at, place in enumerate(places) if place >= known}
        if not new:
            return
        rows = states.new_empty(0, states.shape[-1]) if self.rows is None else self.rows
        if len(self.after) > len(rows):
            more = states.new_empty(max(len(self.after), 2 * len(rows)) - len(rows), states.shape[-1])
            rows = torch.cat([rows, more])
        rows[torch.tensor([*new])] = states[0, torch.tensor([*new.values()])]
        self.rows = rows

    def _walk(self, ids: Sequence[int], pieces: Sequence[Piece], add: bool) -> list[int] | None:
        """The row of each token; None where one is not known and none is added."""
        places, ends, start = list[int](), list[int](), 0
        for size, before in pieces:
            node = ends[before] if before >= 0 else -1
            for token in ids[start : start + size]:
                step = (node, token)
                node = self.after.setdefault(step, len(self.after)) if add else self.after.get(step, -2)
                if node < 0:
                    return None
                places.append(node)
            ends.append(node)
            start += size
        return places


_KEPT: dict[Any, Kept] = {}


def forget() -> None:
    """Give back all that is kept."""
    _KEPT.clear()


class _Print(NamedTuple):
    """What tells one lower part from another, and of which weights, as they were, it was worked out."""

    weights: tuple[tuple[int, int], ...]
    value: tuple[str, tuple[float, ...]]


_prints: WeakIdKeyDictionary = WeakIdKeyDictionary()


def untrained_layers(body: Any) -> int:
    """How many layers stand below the first that is adapted or trained; 0 where no layer is adapted.

    Args:
        body: a trunk, out of its PEFT wrapper.
    """
    layers = getattr(body, "layers", None)
    if "peft" not in sys.modules or not isinstance(layers, nn.ModuleList):
        return 0
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [any(isinstance(module, BaseTunerLayer) for module in layer.modules()) for layer in layers]
    first = adapted.index(True) if any(adapted) else 0
    return 0 if any(weight.requires_grad for weight in _weights(body, first)) else first


def _weights(body: Any, count: int) -> list[nn.Parameter]:
    """Those that the states after so many layers hang on."""
    return [*body.get_input_embeddings().parameters(), *body.layers[:count].parameters()]


def _print_of(body: Any, count: int) -> tuple[str, tuple[float, ...]]:
    """Of the layers below: how they compute, and the sums of their weights, which no other model shares by chance."""
    weights = _weights(body, count)
    now = tuple((weight.data_ptr(), weight._version) for weight in weights)
    known = _prints.get(body)
    if known is None or known.weights != now:
        sums = tuple(float(weight.detach().sum(dtype=torch.float64)) for weight in weights)
        known = _prints[body] = _Print(now, (_shape_of(body.config), sums))
    return known.value


def _shape_of(config: Any) -> str:
    """What a configuration says of the trunk: not of its head, nor of tokens."""
    from transformers import PreTrainedConfig

    every, silent = config.to_dict(), {*PreTrainedConfig().to_dict(), "use_cache"}
    told = {name: value for name, value in every.items() if name not in silent and not name.endswith("_token_id")}
    return json.dumps([config.model_type, told], sort_keys=True, default=str)


def states(body: Any, pieces: Sequence[Piece], inputs: dict[str, Any]) -> Tensor | None:
    """Final hidden states [1, tokens, H] of a packed row, of which what is below the adapter is read once.

    Args:
        body: a trunk, out of its PEFT wrapper.
        pieces: of the row.
        inputs: what the trunk takes for it, `input_ids` [1, tokens] among them.

    Returns:
        None where the trunk cannot be parted, or is trained down to its first layer.
    """
    if body.config.model_type not in FAMILIES or len(set(getattr(body.config, "layer_types", None) or ())) > 1:
        return None
    count = untrained_layers(body)
    if not count:
        return None
    kind = body.get_input_embeddings().weight.device.type
    mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    key = (count, mixed, _print_of(body, count))
    kept, ids = _KEPT.setdefault(key, Kept()), inputs["input_ids"][0].tolist()
    low = kept.find(ids, pieces)
    if low is None:
        with torch.no_grad():
            low = _part(body, body.layers[:count], nn.Identity())(**inputs).last_hidden_state
        if sum(each.bytes for each in _KEPT.values()) + low.numel() * low.element_size() > ROOM:
            forget()
            kept = _KEPT.setdefault(key, Kept())
        kept.keep(ids, pieces, low)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    found: Tensor = _part(body, body.layers[count:], body.norm)(inputs_embeds=low, **rest).last_hidden_state
    return found


def _part(body: Any, layers: nn.ModuleList, norm: nn.Module) -> Any:
    """The trunk with these layers alone, and this norm after them; all of it is the trunk's own."""
    part = copy.copy(body)
    part._modules = {**body._modules, "layers": layers, "norm": norm}
    return part


__all__ = ["Kept", "forget", "states", "untrained_layers"]
