"""Comparisons within a round: which response is better than which, and what is said of the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.errors import DataError
from alignkit.groups import RATINGS, Groups


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


def _safe(meta: Mapping[str, object], k: int) -> float:
    flags = meta.get("safe")
    known = isinstance(flags, list) and k < len(flags) and flags[k] is not None
    return float(bool(flags[k])) if known else -1.0  # type: ignore[index]


def pairs_of(groups: Groups) -> Pairs:
    """Every pair of responses whose ranks differ; ties make no pair.

    `meta["margin"]` gives explicit margins, `meta["safe"]` (one flag per response) the safety labels.
    """
    columns: dict[str, list[float]] = {
        name: []
        for name in (
            "chosen",
            "rejected",
            "group",
            "rating",
            "margin",
            "preference_prob",
            "chosen_safe",
            "rejected_safe",
        )
    }
    first = 0
    for number, row in enumerate(groups):
        ranks, meta = row["ranks"] or [], groups.meta(number) if row["meta"] else {}
        for a in range(len(ranks)):
            for b in range(len(ranks)):
                if ranks[a] < ranks[b]:
                    prob = row["preference_prob"]
                    values = {
                        "chosen": first + a,
                        "rejected": first + b,
                        "group": number,
                        "rating": RATINGS.index(row["rating"]) if row["rating"] else -1,
                        "margin": float(meta.get("margin") or 0.0),
                        "preference_prob": 1.0 if prob is None else prob,
                        "chosen_safe": _safe(meta, a),
                        "rejected_safe": _safe(meta, b),
                    }
                    for name, value in values.items():
                        columns[name].append(value)
        first += len(row["responses"])
    whole = ("chosen", "rejected", "group", "rating")
    tensors = {n: torch.tensor(v, dtype=torch.long if n in whole else torch.float32) for n, v in columns.items()}
    chosen, rejected, group = (tensors.pop(n) for n in ("chosen", "rejected", "group"))
    return Pairs(chosen, rejected, group, tensors)


def given_pairs(groups: Groups, pairs: Sequence[tuple[int, int]]) -> Pairs:
    """Pairs that the method named itself; a pair belongs to the group of its chosen response.

    Args:
        groups: the round.
        pairs: (chosen, rejected) by number over all responses.

    Raises:
        DataError: a number outside the round, or a response paired with itself.
    """
    owner = [number for number, row in enumerate(groups) for _ in row["responses"]]
    wrong = [pair for pair in pairs if pair[0] == pair[1] or not all(0 <= n < len(owner) for n in pair)]
    if wrong:
        raise DataError(f"{wrong[0]} is not a pair of the round's {len(owner)} responses", where="Batch.pairs")
    chosen, rejected = (torch.tensor([pair[side] for pair in pairs], dtype=torch.long) for side in (0, 1))
    blank = torch.zeros(len(pairs))
    tensors = {"rating": torch.full((len(pairs),), -1), "margin": blank, "preference_prob": blank + 1}
    tensors |= {"chosen_safe": blank - 1, "rejected_safe": blank - 1}
    group = torch.tensor([owner[int(n)] for n in chosen], dtype=torch.long)
    return Pairs(chosen, rejected, group, tensors)
