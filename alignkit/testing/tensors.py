"""What a loss is given of some groups, and what its values become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignkit.data.chat import ChatFormat
from alignkit.data.encode import encode_groups
from alignkit.engine.assemble import assemble
from alignkit.engine.reduction import Layout, reduce_terms
from alignkit.engine.training_data import Step, TrainingData, laid_out_for
from alignkit.groups import Groups
from alignkit.models import Policy, RewardModel
from alignkit.models.batch import collate
from alignkit.optimizers import Term


def training_data(
    model: Policy | RewardModel, groups: Groups, pairs: Sequence[tuple[int, int]] | None = None
) -> TrainingData:
    """The groups as a model reads them; all must fit. `pairs` as in `Batch.pairs`."""
    encoded, problems = encode_groups(groups, model.chat, max_prompt_tokens=500, max_response_tokens=500)
    assert not problems, problems
    return TrainingData(groups, list(encoded), named_pairs=pairs, **laid_out_for(model))


def tensors_of(
    policy: Policy, groups: Groups, *names: str, pairs: Sequence[tuple[int, int]] | None = None
) -> dict[str, Tensor]:
    """The tensors of the vocabulary that a loss of these groups is given by name, in one micro-batch."""
    data = training_data(policy, groups, pairs)
    found, _ = assemble(policy, data, data.collate(range(len(data.encoded))), frozenset(names))
    return found


def learned_ids(groups: Groups, chat: ChatFormat, max_prompt_tokens: int = 400) -> tuple[list[int], list[int]]:
    """(ids, targets) of a single row as fine-tuning sees it; the target is -100 where nothing is learned."""
    encoded, problems = encode_groups(groups, chat, max_prompt_tokens=max_prompt_tokens, max_response_tokens=100)
    assert len(encoded) == 1, problems
    assert not problems, problems
    batch = collate(encoded, [0], [0], pad_id=chat.pad_id)
    ids = batch.input_ids[0].tolist()
    targets = [-100] * len(ids)
    for place, target, real in zip(batch.predict_index[0], batch.targets[0], batch.response_mask[0], strict=True):
        if real:
            targets[int(place) + 1] = int(target)
    return ids, targets


def learned_sequences(policy: Policy, groups: Groups, mask: str, tensor: Tensor | None = None) -> float:
    """By how many responses a "sequence" mean over all groups is divided, under a mask of the method's own.

    Args:
        policy: whose tokens are counted.
        groups: of one step.
        mask: its name.
        tensor: [responses, tokens] the mask itself, unless it is one that the engine makes.
    """
    data = training_data(policy, groups)
    data.tensors = {} if tensor is None else {mask: tensor}
    whole = list(range(len(groups)))
    return data.count(Step([whole], whole), "sequence", mask)


def reduced(values: Tensor, term: Term, mask: Tensor, counts: Mapping[str, float]) -> float:
    """What a term of token values adds to the loss, one response to a prompt.

    Args:
        values: [responses, tokens], whatever the mask hides.
        term: how it is reduced.
        mask: [responses, tokens].
        counts: of the whole step by kind: "token", "sequence", "response".
    """
    none = torch.zeros(0, dtype=torch.long)
    layout = Layout({"response_mask": mask}, torch.arange(len(values)), none, len(values))
    total, _ = reduce_terms({"t": values}, {"t": term}, ("logprobs",), layout, lambda kind, _mask: counts[kind])
    assert total is not None
    return float(total)
