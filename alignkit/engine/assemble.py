"""The tensors that losses name, for one micro-batch: from the model's forward pass and from what the round knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from alignkit.engine.reduction import GROUP_TENSORS, PAIR_TENSORS
from alignkit.engine.training_data import TrainingData
from alignkit.models import Policy, RewardModel
from alignkit.models.batch import MicroBatch

Reference = Callable[[MicroBatch, float], Tensor]
"""(micro-batch, temperature) -> `ref_logprobs` [R, T], detached."""


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
    scores: Tensor | None = None
    if reference is not None and "ref_logprobs" not in tensors and _asks_reference(wanted):
        tensors["ref_logprobs"] = reference(batch, temperature)
    if "labels" in wanted and "labels" not in tensors:
        tensors["labels"] = data.labels[batch.responses.cpu()].to(batch.targets.device)
    if isinstance(model, RewardModel):
        scores = model.scores(batch)
    else:
        tensors |= _policy_tensors(model, batch, wanted, temperature, value_model)
    pair_group = None
    if wanted & PAIR_TENSORS:
        chosen, rejected, pair_group, known = data.local_pairs(batch)
        tensors |= known | _pair_tensors(tensors, scores, chosen, rejected, batch)
    if wanted & GROUP_TENSORS:
        tensors |= data.group_tensors(batch, scores)
    return tensors, pair_group


def _asks_reference(wanted: frozenset[str]) -> bool:
    return any(name.startswith("ref_") for name in wanted)


def _policy_tensors(
    model: Policy, batch: MicroBatch, wanted: frozenset[str], temperature: float, value_model: Policy | None
) -> dict[str, Tensor]:
    need = {"logprobs"} | (wanted & {"entropy", "mean_logprobs", "values"})
    own = need - {"values"} if value_model is not None else need
    out = model.tensors(batch, own, temperature=temperature, entropy_gradient="entropy" in wanted)
    if value_model is not None and "values" in need:
        out |= value_model.tensors(batch, {"values"})
    return out


def _pair_tensors(
    tensors: Mapping[str, Tensor], scores: Tensor | None, chosen: Tensor, rejected: Tensor, batch: MicroBatch
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    mask = batch.response_mask
    for prefix, name in (("", "logprobs"), ("ref_", "ref_logprobs")):
        if name in tensors:
            sums = (tensors[name] * mask).sum(-1)
            out |= {f"{prefix}chosen_logprobs": sums[chosen], f"{prefix}rejected_logprobs": sums[rejected]}
    lengths = mask.sum(-1)
    out |= {"chosen_lengths": lengths[chosen], "rejected_lengths": lengths[rejected]}
    if scores is not None:
        out |= {"chosen_rewards": scores[chosen], "rejected_rewards": scores[rejected]}
    return out
