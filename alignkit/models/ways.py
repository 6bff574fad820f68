"""How a model can be read so that it gives its own log-probs: tried once for each configuration, when it is loaded.

The model's own numbers are those of its forward pass on one row alone, without padding, cache, positions or mask. The
ways of the house are compared with these, the fastest first; a model for which none is right is refused.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignkit.data.encode import EncodedGroup
from alignkit.errors import ConfigError
from alignkit.models import forward, lower
from alignkit.models.batch import LEAST_SHARED, collate
from alignkit.models.head import scaled_head
from alignkit.models.lean import is_lean
from alignkit.models.slots import APART, Slots
from alignkit.models.stepwise import Anew, Cached, Reader

log = logging.getLogger("alignkit")

TOLERANCE = 1e-3
"""Nats by which a log-prob may be off; in 16 bits, which round logits, 0.02 of the largest logit."""

SIXTEEN = (torch.float16, torch.bfloat16)

_KNOWN: dict[tuple[str, torch.dtype, float], Ways] = {}
_SLOTS: dict[tuple[str, torch.dtype, torch.dtype | None, str, int], bool] = {}


@dataclass(frozen=True)
class Ways:
    """How a model is read.

    Args:
        by_head: log-probs come from the trunk's states through the head; else from the model's whole logits.
        reader: how sequences are read while they are written.
        positions: tokens of the longest row that the model has positions for; None: no such end.
    """

    by_head: bool = True
    reader: type[Reader] = Cached
    positions: int | None = None


def ways_of(model: Any, where: str) -> Ways:
    """The ways that are right for a model.

    Args:
        model: a transformers causal language model, without adapters.
        where: it comes from, for messages.

    Raises:
        ConfigError: none is.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise _refusal(f"{type(model).__name__} has no head over a vocabulary", where)
    # Some of its weights too: the softer logits are, the less a scaling shows.
    key = (forward.config_digest(model), head.weight.dtype, float(head.weight[:64].detach().float().abs().sum()))
    if key not in _KNOWN:
        with torch.no_grad(), torch.autocast(head.weight.device.type, enabled=False):  # rounding is no difference
            _KNOWN[key] = _found(model, where)
    return _KNOWN[key]


def slots_of(model: Any, pad_id: int, upper: int | None = None, hand_on: bool = True) -> Slots | None:
    """The fast reader of sequences that are being written, where what it gives are the model's own logits.

    Args:
        model: a bare transformers model, adapters folded in, whose sequences may be read with a cache.
        pad_id: see `Slots`.
        upper: see `Slots`.
        hand_on: see `Slots`.
    """
    kind = next(model.parameters()).device.type
    mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    lean = sum(map(is_lean, model.modules()))  # a hook on a layer leaves it its own code
    key = (forward.config_digest(model), next(model.parameters()).dtype, mixed, kind, lean)
    if any(type(weight.data) is not Tensor for weight in model.parameters()) or not forward.masks_are_known(model):
        return None  # weights in parts, over several processes, cannot be packed
    if key in _SLOTS:
        return Slots(model, pad_id, upper=upper, hand_on=hand_on) if _SLOTS[key] else None
    try:
        slots = Slots(model, pad_id, upper=upper, hand_on=hand_on)
        rounds, few = mixed is not None or key[1] in SIXTEEN, None if slots.below else _of_few_layers(model)
        if few is None:
            _SLOTS[key] = _slots_agree(model, slots, rounds)
        else:
            _SLOTS[key] = _slots_agree(few, Slots(few, pad_id, hand_on=False), rounds)
    except forward.UNFIT as error:
        log.debug("%s is not read in slots: %s", type(model).__name__, _said(error))
        _SLOTS[key] = False
    return slots if _SLOTS[key] else None


def _of_few_layers(model: Any) -> Any | None:
    """A model with its first layers alone, in which each kind of its layers stands: what is right for these is for the
    others, where no layer reads another's number. None where that is not known, or as many as there are."""
    body = forward.body_of(model)
    name = next((name for name, child in model.named_children() if child is body), None)
    if name is None or not lower.parts(body.config):
        return None
    kinds = [_kind_of(each) for each in body.layers]
    count = max(2, 1 + max(kinds.index(each) for each in set(kinds)))
    if count >= len(kinds):
        return None
    few = copy.copy(model)
    few._modules = {**model._modules, name: lower.part(body, body.layers[:count], body.norm)}
    return few


def _kind_of(layer: Any) -> tuple[Any, ...]:
    """What layers that are read alike have in common."""
    weights = tuple((each.dtype, each.shape) for each in layer.parameters())
    return type(layer), is_lean(layer), getattr(layer.self_attn, "use_rope", True), weights


def _slots_agree(model: Any, slots: Slots, rounds: bool) -> bool:
    """Whether what slots give are the model's own logits; they are empty afterwards. Where packed products round to
    sixteen bits, they are compared by their mean, and by the numbers the same copy in the type of the weights; where
    these are of sixteen bits themselves, attention and cache, with the layers as they are.
    """
    with torch.no_grad(), torch.autocast(slots.device.type, enabled=False):
        ids = _ids_for(model)
        texts = [
            (each, [_own(model, [*prompt, *answer]) for prompt, answer in zip(*each, strict=True)])
            for each in (ids, _alike_at_first(ids))
        ]
        packed = next(model.parameters()).dtype not in SIXTEEN
        if rounds and not _reads(Slots(model, 0, packed, hand_on=False), texts, _near):
            return False
        return _reads(slots, texts, _alike if rounds else _near)


def _reads(slots: Slots, texts: Sequence[tuple[Ids, Sequence[Tensor]]], near: Near) -> bool:
    """Whether slots read these texts with the logits that the model has for them."""
    slots.apart_from = 0  # short as these are: a family that keeps its own attention sees nothing of what is kept apart
    for ids, own in texts:
        if not _agrees(partial(_written, slots, ids), own, near):
            return False
        slots.empty()
    slots.apart_from = APART
    return True


def _found(model: Any, where: str) -> Ways:
    family = getattr(model.config, "model_type", type(model).__name__)
    try:
        ids = _ids_for(model)
        rows = [[*prompt, *answer] for prompt, answer in zip(*ids, strict=True)]
        own = [_own(model, row) for row in rows]
        looks_ahead = not _near(own[0][:, :4], _own(model, rows[0][:4]), own)
    except forward.UNFIT as error:
        what = f"{family} in {next(model.parameters()).dtype} cannot be read from token ids alone: {_said(error)}"
        raise _refusal(what, where) from error
    if looks_ahead:
        raise _refusal(f"{family} predicts tokens from what comes after them", where)
    by_head = next((way for way in (True, False) if _agrees(partial(_trained, model, ids, way), own)), None)
    if by_head is None:
        raise _refusal(f"other log-probs than {family}'s own come of reading it in batches", where)
    reader: type[Reader] | None = next(
        (way for way in (Cached, Anew) if _agrees(partial(_by_reader, way, model, ids), own)), None
    )
    if reader is None:
        raise _refusal(f"other log-probs than {family}'s own come of sampling from it", where)
    if not by_head:
        log.warning("%s: its logits are not its head's; whole logits are computed, which takes memory", family)
    if reader is Anew:
        log.warning("%s: it cannot be sampled from with a cache; each token reads all before it, slowly", family)
    return Ways(by_head, reader, positions_of(model))


def _refusal(what: str, where: str) -> ConfigError:
    return ConfigError(
        what,
        where=where,
        effect="What is trained would not be what is sampled from or exported.",
        remedy="use another family, or report it with its config.json",
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


PROMPTS = ((7, 3, 11, 19, 5), (4, 13, 2))
ANSWERS = ((6, 17, 9, 23), (8, 5, 21, 14))
"""Ids of two rows of unlike length; each log-prob of an answer is compared."""

Ids = tuple[list[list[int]], list[list[int]]]

Near = Callable[[Tensor, Tensor, Sequence[Tensor]], bool]


def _ids_for(model: Any) -> Ids:
    """(prompts, answers), within a model's vocabulary."""
    size = model.get_input_embeddings().weight.shape[0]
    prompts, answers = ([[i % size for i in ids] for ids in rows] for rows in (PROMPTS, ANSWERS))
    return prompts, answers


def _alike_at_first(ids: Ids) -> Ids:
    """The same prompts after a beginning that both have."""
    (first, second), answers = ids
    beginning = (first * LEAST_SHARED)[:LEAST_SHARED]
    return [[*beginning, *first], [*beginning, *second]], answers


def _own(model: Any, row: Sequence[int]) -> Tensor:
    """[1, tokens, V]: the model's own logits of one row, and nothing beside it."""
    ids = torch.tensor([list(row)], device=next(model.parameters()).device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _near(ours: Tensor, theirs: Tensor, own: Sequence[Tensor]) -> bool:
    """Whether log-probs over the vocabulary are those of the model's own logits."""
    sixteen = own[0].dtype in SIXTEEN
    allowed = TOLERANCE if not sixteen else 0.02 * max(float(each.abs().max()) for each in own)
    gap = (torch.log_softmax(ours.float(), -1) - torch.log_softmax(theirs.float(), -1)).abs().max()
    return bool(gap <= allowed)


def _alike(ours: Tensor, theirs: Tensor, own: Sequence[Tensor]) -> bool:
    """Whether log-probs over the vocabulary are those of the model's own logits but for the rounding of bfloat16."""
    gap = (torch.log_softmax(ours.float(), -1) - torch.log_softmax(theirs.float(), -1)).abs().mean()
    return bool(gap <= max(TOLERANCE, 0.02 * max(float(each.abs().max()) for each in own)))


def _agrees(
    way: Callable[[], Iterator[tuple[Tensor, int, slice]]],
    own: Sequence[Tensor],
    near: Near = _near,
) -> bool:
    """Whether each (logits [tokens, V], row, where in it) is the model's own; a way that fails does not."""
    try:
        return all(near(logits, own[row][0, place], own) for logits, row, place in way())
    except forward.UNFIT as error:
        log.debug("a way to read the model fails: %s", _said(error))
        return False


def _trained(model: Any, ids: Ids, by_head: bool) -> Iterator[tuple[Tensor, int, slice]]:
    """As log-probs are worked out for training, one padded row for each response."""
    groups = [EncodedGroup(prompt, [answer], None, n) for n, (prompt, answer) in enumerate(zip(*ids, strict=True))]
    batch = collate(groups, [0, 1], [0, 1], pad_id=0, shared=False).to(next(model.parameters()).device)
    head = scaled_head(model) if by_head else torch.nn.Identity()
    states = forward.hidden_states(model, batch) if by_head else forward.states_and_logits(model, batch)[1]
    taken = forward.gather_hidden(states, batch)
    for number, group in enumerate(groups):
        start = len(group.prompt_ids) - 1
        yield head(taken[number]), number, slice(start, start + len(group.responses[0]))


def _by_reader(way: type[Reader], model: Any, ids: Ids) -> Iterator[tuple[Tensor, int, slice]]:
    return _written(way(model, 0), ids)


def _written(reader: Reader, ids: Ids) -> Iterator[tuple[Tensor, int, slice]]:
    """As sequences are written: prompts side by side, two sequences each, of which some leave the batch, and where it
    can be, another one joins them."""
    prompts, answers = ids
    logits, rows, steps = reader.admit(prompts, 2), [0, 0, 1, 1], [0] * 4
    for turn in range(3):
        for place, (row, step) in enumerate(zip(rows, steps, strict=True)):
            at = len(prompts[row]) - 1 + step
            yield logits[place : place + 1], row, slice(at, at + 1)
        tokens = [answers[row][step] for row, step in zip(rows, steps, strict=True)]
        if turn == 1:
            reader.keep(torch.tensor([3, 1], device=logits.device))
            rows, steps, tokens = [1, 0], steps[:2], [tokens[3], tokens[1]]
            if reader.joins:
                more = reader.admit(prompts[:1], 1)
                yield more, 0, slice(len(prompts[0]) - 1, len(prompts[0]))
                rows, steps, tokens = [*rows, 0], [*steps, 0], [*tokens, answers[0][0]]
        logits = reader.read(torch.tensor(tokens, device=logits.device))
        steps = [step + 1 for step in steps]


LIMITS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len")


@torch.no_grad()
def positions_of(model: Any) -> int | None:
    """Where the model's table of positions ends, found by asking for the place after it; rotary positions go on.

    On the CPU alone: elsewhere a place outside a table ends the process.
    """
    config, device = model.config, next(model.parameters()).device
    limit = next((value for name in LIMITS if isinstance(value := getattr(config, name, None), int)), None)
    if limit is None or device.type != "cpu":
        return None
    if config.model_type == "mpt":  # its biases are laid out for so many tokens, and it asks for no positions
        return limit

    def read(position: int) -> bool:
        try:
            model(input_ids=torch.tensor([[1]]), position_ids=torch.tensor([[position]]), use_cache=False)
        except (IndexError, RuntimeError):
            return False
        return True

    return limit if read(limit - 1) and not read(limit) else None


__all__ = ["Ways", "positions_of", "slots_of", "ways_of"]
