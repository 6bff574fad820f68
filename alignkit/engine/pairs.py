"""Comparisons within a round: which response is better than which, and what is said of the two."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkit.errors import DataError
from alignkit.groups import RATINGS, Groups

_KINDS = dict.fromkeys(("chosen", "rejected", "group", "rating"), torch.long) | dict.fromkeys(
    ("margin", "preference_prob", "chosen_safe", "rejected_safe"), torch.float32
)


@dataclass(frozen=True)
class Pairs:
    """Comparisons within groups: the better and the worse response of each, by number in the round.

    Args:
        chosen: [P] response numbers.
        rejected: [P].
        group: [P] group numbers.
        tensors: [P] each: rating (0..3, -1 unknown), margin, preference_prob, chosen_safe, rejected_safe (1, 0, -1
            unknown).
    """

    chosen: Tensor
    rejected: Tensor
    group: Tensor
    tensors: Mapping[str, Tensor]


def pairs_of(groups: Groups) -> Pairs:
    """Every pair of responses whose ranks differ; ties make no pair.

    `meta["margin"]` gives explicit margins, `meta["safe"]` (one flag per response) the safety labels.
    """
    parts: list[dict[str, NDArray[Any]]] = []
    first = 0
    columns = groups.each("ranks", "meta", "rating", "preference_prob")
    for number, (size, (ranks, meta, rating, prob)) in enumerate(zip(groups.sizes(), columns, strict=True)):
        if ranks:
            known = json.loads(meta) if meta else {}
            better, worse = np.nonzero(np.less.outer(ranks, ranks))
            safe = _safe(known.get("safe"), len(ranks))
            told = {
                "group": number,
                "rating": RATINGS.index(rating) if rating else -1,
                "margin": float(known.get("margin") or 0.0),
                "preference_prob": 1.0 if prob is None else prob,
            }
            sides: dict[str, NDArray[Any]] = {"chosen": first + better, "rejected": first + worse}
            sides |= {"chosen_safe": safe[better], "rejected_safe": safe[worse]}
            parts.append(sides | {name: np.full(len(better), value) for name, value in told.items()})
        first += size
    tensors = {
        name: torch.cat([_tensor(part[name], kind) for part in parts] or [torch.zeros(0, dtype=kind)])
        for name, kind in _KINDS.items()
    }
    chosen, rejected, group = (tensors.pop(name) for name in ("chosen", "rejected", "group"))
    return Pairs(chosen, rejected, group, tensors)


def _tensor(values: NDArray[Any], kind: torch.dtype) -> Tensor:
    return torch.from_numpy(values).to(kind)


def _safe(flags: Any, count: int) -> NDArray[np.float64]:
    """[count]: 1 safe, 0 not, -1 where nothing is said."""
    given = flags[:count] if isinstance(flags, list) else []
    known = [-1.0 if flag is None else float(bool(flag)) for flag in given]
    return np.array(known + [-1.0] * (count - len(known)))


def given_pairs(groups: Groups, pairs: Sequence[tuple[int, int]]) -> Pairs:
    """Pairs that the method named itself; a pair belongs to the group of its chosen response.

    Args:
        groups: the round.
        pairs: (chosen, rejected) by number over all responses.

    Raises:
        DataError: a number outside the round, or a response paired with itself.
    """
    owner = [number for number, size in enumerate(groups.sizes()) for _ in range(size)]
    wrong = [pair for pair in pairs if pair[0] == pair[1] or not all(0 <= n < len(owner) for n in pair)]
    if wrong:
        raise DataError(f"{wrong[0]} is not a pair of the round's {len(owner)} responses", where="Batch.pairs")
    chosen, rejected = (torch.tensor([pair[side] for pair in pairs], dtype=torch.long) for side in (0, 1))
    blank = torch.zeros(len(pairs))
    tensors = {"rating": torch.full((len(pairs),), -1), "margin": blank, "preference_prob": blank + 1}
    tensors |= {"chosen_safe": blank - 1, "rejected_safe": blank - 1}
    group = torch.tensor([owner[int(n)] for n in chosen], dtype=torch.long)
    return Pairs(chosen, rejected, group, tensors)
