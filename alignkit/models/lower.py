"""The lower part of a trunk that nothing trains, read once for each text.

Under an adapter on the upper layers alone (`LoRA(layers=…)`) the states that the layers below it give hang on the base
and on the tokens before, and on nothing that is learned. They are the same in every epoch, and for whatever stands on
the same base: the policy, its reference, its value model, each reward model. So they are kept, token by token in a tree
of prefixes, and a text that was read before begins where the adapter does. Values differ by rounding, as between two
batches (tests/test_lower.py).
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from alignkit.models.attention import Piece

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""Families whose trunk goes on from states as it does from embeddings, which the tests show: no more than embeddings,
layers and a norm, and no layer that reads another's number from the configuration."""

STEADY = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary positions by which a token's states hang on nothing that stands after it."""

ROOM = 2**28
"""Bytes of states that are kept in all, half as much again while it grows; and of prompts' keys and values. While
responses are written, half of it is noted besides."""

ENTRY = 168
"""Bytes of a token's place in the tree, beside its states."""


class Kept:
    """States of the tokens of texts that were read, by all tokens before them."""

    def __init__(self) -> None:
        self.after: dict[tuple[int, int], int] = {}
        self.rows: Tensor | None = None

    @property
    def bytes(self) -> int:
        """What it holds."""
        return 0 if self.rows is None else len(self.after) * cost_of(self.rows)

    def find(self, ids: Sequence[int], pieces: Sequence[Piece]) -> Tensor | None:
        """States [1, tokens, H] of a packed row; None where one of its tokens was not read."""
        places, new = self._walk(ids, pieces)
        if new or self.rows is None:
            return None
        return self.rows[torch.tensor(places)].unsqueeze(0)

    def added(self, ids: Sequence[int], pieces: Sequence[Piece]) -> int:
        """How many of the tokens of a packed row were not read."""
        return len(self._walk(ids, pieces)[1])

    def missing(self, ids: Sequence[int], pieces: Sequence[Piece]) -> list[int]:
        """The numbers of the pieces of a packed row in which some token was not read."""
        places, new = self._walk(ids, pieces)
        if not new:
            return []
        found, start = list[int](), 0
        for number, (size, _) in enumerate(pieces):
            if any(place >= len(self.after) for place in places[start : start + size]):
                found.append(number)
            start += size
        return found

    def keep(self, ids: Sequence[int], pieces: Sequence[Piece], states: Tensor) -> None:
        """Keep the states [1, tokens, H] of a packed row; those of tokens that were read stay as they are."""
        places, new = self._walk(ids, pieces)
        if not new:
            return
        rows = states.new_empty(0, states.shape[-1]) if self.rows is None else self.rows
        needed = len(self.after) + len(new)
        if needed > len(rows):
            room = max(needed, min(2 * len(rows), ROOM // cost_of(states)))
            rows = torch.cat([rows, states.new_empty(room - len(rows), states.shape[-1])])
        at = {place: where for where, place in enumerate(places) if place >= len(self.after)}
        rows[torch.tensor([*at])] = states[0, torch.tensor([*at.values()])]
        self.rows = rows
        self.after.update(new)  # last: whoever is interrupted before leaves no place without its states

    def _walk(self, ids: Sequence[int], pieces: Sequence[Piece]) -> tuple[list[int], dict[tuple[int, int], int]]:
        """The place of each token, and the steps to those that are new."""
        places, ends, start = list[int](), list[int](), 0
        known, new = self.after, dict[tuple[int, int], int]()
        for size, before in pieces:
            node = ends[before] if before >= 0 else -1
            for token in ids[start : start + size]:
                step = (node, token)
                found = known.get(step)
                node = new.setdefault(step, len(known) + len(new)) if found is None else found
                places.append(node)
            ends.append(node)
            start += size
        return places, new


def cost_of(states: Tensor) -> int:
    """Bytes of a token of states [..., H]."""
    return states.shape[-1] * states.element_size() + ENTRY


_KEPT: dict[Any, Kept] = {}


def forget() -> None:
    """Give back all that is kept; also for who changes weights in a way that torch does not count (`weight.data`)."""
    _KEPT.clear()
    _prints.clear()
    _READ.clear()


class Prompts(NamedTuple):
    """Prompts as the layers below read them in one row: keys and values [1, heads, tokens, H] of each layer, and the
    states [1, tokens, H] after the last."""

    rows: list[tuple[Tensor, Tensor]]
    states: Tensor

    @property
    def bytes(self) -> int:
        """What it holds."""
        return sum(each.nbytes for row in self.rows for each in row) + self.states.nbytes


_READ: OrderedDict[Any, Prompts] = OrderedDict()


def prompts_read(key: Any, prompts: Any) -> Prompts | None:
    """Prompts that were read before to be answered, such as by the version before.

    Args:
        key: see `key_of`.
        prompts: what they are known by.
    """
    if (found := _READ.get((key, prompts))) is not None:
        _READ.move_to_end((key, prompts))
    return found


def keep_prompts(key: Any, prompts: Any, read: Prompts) -> None:
    """Keep prompts as they were read, in place of those that were not asked for longest where there is no room."""
    if read.bytes > ROOM:
        return
    _READ[key, prompts] = read
    while sum(each.bytes for each in _READ.values()) > ROOM:
        _READ.popitem(last=False)


class _Print(NamedTuple):
    """What tells one trunk's lower parts from another's, and of which weights, as they were, it was worked out."""

    weights: tuple[tuple[int, int, float], ...]
    shape: str
    digests: tuple[str, ...]


_prints: WeakIdKeyDictionary = WeakIdKeyDictionary()
_stacks: WeakIdKeyDictionary = WeakIdKeyDictionary()


def stack_of(model: Any) -> tuple[str, nn.ModuleList] | None:
    """(name, the list) of the layers that stand one on another; None where a model has none, or several so called."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(name.rsplit(".", 1)[-1], m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    found = [each for each in lists if len(each[1]) == count]
    return found[0] if len(found) == 1 and [name for name, _ in lists].count(found[0][0]) == 1 else None


def untrained_layers(body: Any) -> list[nn.Module]:
    """The layers below the first that is adapted or trained; none where no layer is adapted.

    Args:
        body: a trunk, out of its PEFT wrapper.
    """
    if "peft" not in sys.modules:
        return []
    if body not in _stacks:  # looked for once: it takes as long as a layer does
        _stacks[body] = stack_of(body)
    stack = _stacks[body]
    if stack is None:
        return []
    first = next((place for place, layer in enumerate(stack[1]) if adapted(layer)), 0)
    below = list(stack[1][:first])
    trained = any(weight.requires_grad for weight in _weights(body, below))
    return [] if trained or adapted(body.get_input_embeddings()) else below


def adapted(module: nn.Module) -> bool:
    """Whether some layer of a module has an adapter."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(layer, BaseTunerLayer) for layer in module.modules())


def layers_below(body: Any, upper: int | None) -> list[nn.Module]:
    """`untrained_layers`; of a trunk without adapters those below its last `upper` layers, which others on the same
    base adapt (None: nobody does)."""
    if not parts(body.config):
        return []
    below = untrained_layers(body)
    if not below and upper is not None and (stack := stack_of(body)) is not None:
        below = [] if adapted(body) else list(stack[1])[:-upper]
    weights = _weights(body, below)
    free = all(weight.is_floating_point() and not weight.requires_grad for weight in weights)
    return below if free else []


def key_of(body: Any, below: Sequence[nn.Module]) -> Any:
    """By which states after these layers are known: that of all trunks on the same base, computing in the same type."""
    return _keys(body, below)[-1]


def _keys(body: Any, below: Sequence[nn.Module]) -> list[Any]:
    """Those of the states after the embeddings and after each of these layers."""
    kind = body.get_input_embeddings().weight.device.type
    mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    known = _print_of(body, below)
    return [(depth, mixed, known.shape, digest) for depth, digest in enumerate(known.digests)]


def _weights(body: Any, below: Sequence[nn.Module]) -> list[Tensor]:
    """Those that the states after these layers hang on."""
    return [weight for each in (body.get_input_embeddings(), *below) for weight in each.parameters()]


def _print_of(body: Any, below: Sequence[nn.Module]) -> _Print:
    """Of the layers below: how they compute, and digests of the weights up to each, the first of the embeddings."""
    weights = [weight.detach() for weight in _weights(body, below)]
    # Of what is written past torch's count of changes one number each is looked at: it is rarely a single one.
    now = tuple((w.data_ptr(), w._version, float(w[tuple(size // 2 for size in w.shape)])) for w in weights)
    known = _prints.get(body)
    if known is None or known.weights != now:
        digest, digests = xxhash.xxh3_128(), list[str]()
        for several in ([*body.buffers(), *body.get_input_embeddings().parameters()], *(p.parameters() for p in below)):
            for each in several:
                digest.update(f"{each.dtype} {each.device} {tuple(each.shape)}".encode())
                digest.update(each.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            digests.append(digest.hexdigest())
        known = _prints[body] = _Print(now, _shape_of(body.config), tuple(digests))
    return known


def _shape_of(config: Any) -> str:
    """What a configuration says of the trunk: not of its head, nor of tokens."""
    from transformers import PreTrainedConfig

    every, silent = config.to_dict(), {*PreTrainedConfig().to_dict(), "use_cache"}
    told = {name: value for name, value in every.items() if name not in silent and not name.endswith("_token_id")}
    return json.dumps([config.model_type, told], sort_keys=True, default=str)


def parts(config: Any) -> bool:
    """Whether a trunk of this configuration can go on from states in its midst."""
    rotary = getattr(config, "rope_parameters", None) or {}
    alike = len(set(getattr(config, "layer_types", None) or ())) <= 1
    asked = config.output_hidden_states or config.output_attentions
    return config.model_type in FAMILIES and alike and rotary.get("rope_type", "default") in STEADY and not asked


class Row(NamedTuple):
    """A packed row: ids and positions [1, tokens], and the pieces that they lie in."""

    ids: Tensor
    positions: Tensor
    pieces: Sequence[Piece]

    def of(self, numbers: Sequence[int]) -> Row:
        """These pieces alone, with those that they go on from."""
        chosen = set[int]()
        for number in numbers:
            while number >= 0 and number not in chosen:
                chosen.add(number)
                number = self.pieces[number][1]
        if len(chosen) == len(self.pieces):
            return self
        kept = sorted(chosen)
        now = {number: place for place, number in enumerate(kept)} | {-1: -1}
        starts = [0, *itertools.accumulate(size for size, _ in self.pieces)]
        index = torch.cat([torch.arange(starts[number], starts[number + 1]) for number in kept]).to(self.ids.device)
        pieces = [(self.pieces[number][0], now[self.pieces[number][1]]) for number in kept]
        return Row(self.ids[:, index], self.positions[:, index], pieces)


MasksOf = Callable[[Sequence[Piece]], Any]
"""What a trunk takes for its attention mask, for a row of these pieces."""


def states(body: Any, row: Row, masks: MasksOf) -> Tensor | None:
    """Final hidden states [1, tokens, H] of a packed row, of which what is below the adapter is read once.

    Args:
        body: a trunk, out of its PEFT wrapper.
        row: what is read.
        masks: of the trunk.

    Returns:
        None where the trunk cannot be parted, or is trained down to its first layer.
    """
    below = layers_below(body, None)
    if not below:
        return None
    keys = _keys(body, below)
    # Where others on the same base end before: what they read is gone on from, and what is read here is kept for them.
    depths = [depth for depth in range(1, len(below)) if keys[depth] in _KEPT] + [len(below)]
    steps = [(first, stop, keys[stop]) for first, stop in itertools.pairwise([0, *depths])]
    low = _low(body, row, masks, steps)
    found: Tensor = part(body, body.layers[len(below) :], body.norm)(**_inputs(row, masks, low)).last_hidden_state
    return found


def _low(body: Any, row: Row, masks: MasksOf, steps: Sequence[tuple[int, int, Any]]) -> Tensor:
    """States [1, tokens, H] after the last of these parts of the trunk, each (first layer, one past its last, key):
    only those pieces are read that are not kept."""
    *before, (first, stop, key) = steps
    ids = row.ids[0].tolist()
    missing = _KEPT[key].missing(ids, row.pieces) if key in _KEPT else [*range(len(row.pieces))]
    for asked in (row.of(missing), row) if missing else ():
        given = _low(body, asked, masks, before) if before else None
        with torch.no_grad():
            low: Tensor = part(body, body.layers[first:stop], nn.Identity())(
                **_inputs(asked, masks, given)
            ).last_hidden_state
        keep(key, asked.ids[0].tolist(), asked.pieces, low)
        if asked is row:
            return low
        if key in _KEPT and not _KEPT[key].missing(ids, row.pieces):
            break  # else there was no room for it
    found = _KEPT[key].find(ids, row.pieces)
    assert found is not None
    return found


def _inputs(row: Row, masks: MasksOf, states: Tensor | None) -> dict[str, Any]:
    """What a part of the trunk takes: the row's ids, or the states that the part below gave."""
    given = {"input_ids": row.ids} if states is None else {"inputs_embeds": states}
    return {**given, "position_ids": row.positions, "attention_mask": masks(row.pieces), "use_cache": False}


def keep(key: Any, ids: Sequence[int], pieces: Sequence[Piece], low: Tensor) -> None:
    """Keep the states [1, tokens, H] of a packed row, in place of all else where there is no room."""
    known = _KEPT.get(key)
    new = (low.shape[1] if known is None else known.added(ids, pieces)) * cost_of(low)
    if sum(each.bytes for each in _KEPT.values()) + new > ROOM:
        _KEPT.clear()
    if new <= ROOM:
        _KEPT.setdefault(key, Kept()).keep(ids, pieces, low)


def part(body: Any, layers: nn.ModuleList, norm: nn.Module) -> Any:
    """The trunk with these layers alone, and this norm after them; all of it is the trunk's own."""
    found = copy.copy(body)
    found._modules = {**body._modules, "layers": layers, "norm": norm}
    return found


__all__ = [
    "Kept",
    "Prompts",
    "Row",
    "forget",
    "keep",
    "keep_prompts",
    "key_of",
    "layers_below",
    "part",
    "parts",
    "prompts_read",
    "stack_of",
    "states",
    "untrained_layers",
]
