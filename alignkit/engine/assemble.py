"""The tensors that losses name, for one micro-batch: from the model's forward pass and from what the round knows.

Which name comes from where stands in `alignkit.vocabulary`, by level and source.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignkit.engine.reference import Reference
from alignkit.engine.training_data import TrainingData
from alignkit.models import Policy, RewardModel
from alignkit.models.arithmetic import Flops, Reading
from alignkit.models.batch import MicroBatch
from alignkit.vocabulary import VOCABULARY, select


def assemble(
    model: Policy | RewardModel,
    data: TrainingData,
    batch: MicroBatch,
    wanted: frozenset[str],
    *,
    temperature: float = 1.0,
    value_model: Policy | None = None,
    reference: Reference | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Every tensor of the vocabulary that the loss may ask for, for one micro-batch.

    Args:
        model: policy or reward model; its forward carries the gradient.
        data: the round.
        batch: on the model's device.
        wanted: what the loss asks for.
        temperature: of the log-probs.
        value_model: a model of its own for the values; None takes the head on the policy's trunk.
        reference: gives `ref_logprobs` where the round has not kept them.

    Returns:
        (tensors by name, the group of each pair or None when no pair tensor is asked for).
    """
    tensors = {"response_mask": batch.response_mask, **data.slice_tensors(batch)}
    if reference is not None and "ref_logprobs" not in tensors and select(wanted, source="reference"):
        tensors["ref_logprobs"] = reference.logprobs(batch, temperature)
    if "labels" in wanted and "labels" not in tensors:
        tensors["labels"] = data.labels[batch.responses.cpu()].to(batch.targets.device)
    scores = None
    if isinstance(model, RewardModel):
        scores = model.scores(batch)
    else:
        tensors |= _policy_tensors(model, batch, wanted, temperature, value_model)
        old = {name: VOCABULARY[name].of for name in select(wanted, source="old")}
        tensors |= {name: tensors[of].detach() for name, of in old.items() if of in data.left_to_the_step}
    pair_group = None
    if select(wanted, level="pair"):
        tensors, pair_group = _with_pairs(tensors, scores, data, batch)
    if select(wanted, level="group"):
        tensors |= _group_tensors(data, batch, scores)
    return tensors, pair_group


def passes(
    model: Policy | RewardModel,
    reading: Reading,
    wanted: frozenset[str],
    value_model: Policy | None = None,
    gradient: bool = False,
) -> list[Flops]:
    """Operations of each pass that `assemble` takes through a model that is no reference.

    Args:
        model: policy or reward model.
        reading: what goes through.
        wanted: as for `assemble`.
        value_model: as for `assemble`.
        gradient: whether a backward pass follows.
    """
    if isinstance(model, RewardModel):
        return [model.flops(reading, gradient=gradient)]
    own, values = _asked_of(wanted, value_model)
    found = [model.flops(reading, own, gradient=gradient)]
    if value_model is not None and values:
        found.append(value_model.flops(reading, values, gradient=gradient))
    return found


def _asked_of(wanted: frozenset[str], value_model: Policy | None) -> tuple[frozenset[str], frozenset[str]]:
    """(what the policy's own pass gives, the values)."""
    own = {"logprobs"} | select(wanted, level="token", source="policy")
    values = frozenset(select(wanted, level="token", source="value"))
    return frozenset(own if value_model is not None else own | values), values


def _policy_tensors(
    model: Policy, batch: MicroBatch, wanted: frozenset[str], temperature: float, value_model: Policy | None
) -> dict[str, Tensor]:
    own, values = _asked_of(wanted, value_model)
    out = model.tensors(batch, own, temperature=temperature, entropy_gradient="entropy" in wanted)
    if value_model is not None and values:
        out |= value_model.tensors(batch, values)
    return out


def _with_pairs(
    tensors: dict[str, Tensor], scores: Tensor | None, data: TrainingData, batch: MicroBatch
) -> tuple[dict[str, Tensor], Tensor]:
    """(the tensors with those of the pairs, the group [P] of each pair): what is said of the two responses, and what is
    read from each of them."""
    device, pairs = batch.targets.device, data.pairs
    taken = data.pairs_among(batch.group_order)
    sides = {
        "chosen": _places(batch.responses, pairs.chosen[taken]),
        "rejected": _places(batch.responses, pairs.rejected[taken]),
    }
    told = {name: values[taken].to(device) for name, values in pairs.tensors.items()}
    read = _read_from_responses(_by_response(tensors, scores, batch.response_mask), sides)
    return tensors | told | read, _places(torch.tensor(batch.group_order), pairs.group[taken]).to(device)


def _places(numbers: Tensor, wanted: Tensor) -> Tensor:
    """Where in `numbers` each of those wanted stands, on the device of `numbers`."""
    at_home = numbers.cpu()
    place = torch.full((int(torch.cat([at_home, wanted]).max()) + 1,), -1)
    place[at_home] = torch.arange(len(at_home))
    found = place[wanted]
    assert bool((found >= 0).all()), "a pair joins responses of two micro-batches"
    return found.to(numbers.device)


def _by_response(tensors: Mapping[str, Tensor], scores: Tensor | None, mask: Tensor) -> dict[str, Tensor]:
    """[R] each: sums over the tokens of a response, its length, its score: what a pair's tensor may be read from."""
    sources = {spec.of for spec in VOCABULARY.values() if spec.level == "pair"} - {"response_mask"}
    out = {name: (tensors[name] * mask).sum(-1) for name in sources if name in tensors}
    out["response_mask"] = mask.sum(-1)
    return out if scores is None else out | {"scores": scores}


def _read_from_responses(responses: Mapping[str, Tensor], sides: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pairs = {name: spec.of for name, spec in VOCABULARY.items() if spec.level == "pair" and spec.of in responses}
    return {name: responses[of][sides["rejected" if "rejected" in name else "chosen"]] for name, of in pairs.items()}


def _group_tensors(data: TrainingData, batch: MicroBatch, scores: Tensor | None) -> dict[str, Tensor]:
    """`rewards`, `ranks` and `group_mask` [B, K], padded on the right."""
    order = batch.group_order
    sizes = [len(data.encoded[i].responses) for i in order]
    width, device = max(sizes), batch.targets.device
    mask = (torch.arange(width) < torch.tensor(sizes).unsqueeze(1)).to(device)
    ranks = torch.zeros(len(order), width, dtype=torch.long, device=device)
    for b, i in enumerate(order):
        given = data.ranks[i]
        if given:
            ranks[b, : len(given)] = torch.tensor(given)
    out = {"group_mask": mask, "ranks": ranks}
    if scores is not None:
        out["rewards"] = torch.zeros(mask.shape, dtype=scores.dtype, device=device).masked_scatter(mask, scores)
    return out
