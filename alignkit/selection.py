"""Which responses of groups stay, how they rank, which prompts recur. Tables in, tables out; nothing needs torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignkit.columns import META_PER_RESPONSE
from alignkit.errors import DataError
from alignkit.groups import PER_RESPONSE, Groups

if TYPE_CHECKING:
    from torch import Tensor

# -- which stay -------------------------------------------------------------------------------------------------------


def take_responses(groups: Groups, kept: Sequence[Sequence[int]]) -> Groups:
    """Keep some responses of each group, with everything known of them; a group that keeps none is dropped.

    Args:
        groups: any groups.
        kept: [groups] the indices of the responses to keep, in the order wanted.

    Returns:
        groups in the same order. What is known of a whole comparison (`rating`, `preference_prob`) stays only where the
        responses stay as they were.
    """
    chosen = [(number, list(places)) for number, places in enumerate(kept) if places]
    if len(kept) != len(groups):
        raise DataError(f"{len(kept)} choices for {len(groups)} groups", where="take_responses")
    some = groups.select(number for number, _ in chosen)
    places = [indices for _, indices in chosen]
    same = [indices == list(range(size)) for indices, size in zip(places, some.sizes(), strict=True)]
    if all(same):
        return some
    columns = {name: _taken(some.column(name), places) for name in ("responses", *PER_RESPONSE)}
    columns["rewards"] = [
        [_reward_of(reward, indices) for reward in rewards or []]
        for rewards, indices in zip(some.column("rewards"), places, strict=True)
    ]
    columns["meta"] = [_meta_of(meta, indices) for meta, indices in zip(some.column("meta"), places, strict=True)]
    for name in ("rating", "preference_prob"):
        columns[name] = [value if whole else None for value, whole in zip(some.column(name), same, strict=True)]
    return some.with_columns(columns)


def _taken(column: Sequence[Any], places: Sequence[Sequence[int]]) -> list[Any]:
    """Of each row's values those at its places; None stays None."""
    return [values and [values[i] for i in indices] for values, indices in zip(column, places, strict=True)]


def _meta_of(meta: str | None, indices: Sequence[int]) -> str | dict[str, Any] | None:
    """What is known of a prompt, with the lists that have an entry for each response cut to those that stay."""
    if not meta or not any(f'"{name}"' in meta for name in META_PER_RESPONSE):
        return meta
    known = json.loads(meta)
    listed = {name: known[name] for name in META_PER_RESPONSE if isinstance(known.get(name), list)}
    return {**known, **{name: [v[i] if i < len(v) else None for i in indices] for name, v in listed.items()}}


def _reward_of(reward: dict[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    return {**reward, **{part: [reward[part][i] for i in indices] for part in ("values", "reasons")}}


def take_present(groups: Groups, present: Tensor) -> Groups:
    """Keep the responses that have a reward; the same object where all have one.

    Args:
        groups: any groups.
        present: [responses] bool, over all groups in order.

    Raises:
        DataError: none has one.
    """
    if bool(present.all()):
        return groups
    if not bool(present.any()):
        raise DataError("no response has a reward", where="prepare", effect="Learning from nothing was refused.")
    flags = iter(present.tolist())
    return take_responses(groups, [[k for k in range(size) if next(flags)] for size in groups.sizes()])


def eligible(groups: Groups, reward_name: str, require_finished: bool) -> list[list[bool]]:
    """Which responses may be imitated, [groups][K]: with a reward and, if asked for, not known to have been cut off."""
    _, present = groups.rewards(reward_name)
    finished = [known or [None] * size for known, size in zip(groups.column("finished"), groups.sizes(), strict=True)]
    return [
        [there and (done is not False or not require_finished) for there, done in zip(*pair, strict=True)]
        for pair in zip(present, finished, strict=True)
    ]


def best_responses(groups: Groups, reward_name: str, n: int) -> Groups:
    """The n responses of each group with the highest reward, in the order they stand; of equals the first.

    A response without the reward is not among them; a group without any that has it is dropped.

    Args:
        groups: scored.
        reward_name: the reward.
        n: how many.

    Raises:
        DataError: no row has a reward of that name.
    """
    kept = []
    for values, present in zip(*groups.rewards(reward_name), strict=True):
        ranked = sorted((k for k, there in enumerate(present) if there), key=lambda k: -values[k])
        kept.append(sorted(ranked[:n]))
    return take_responses(groups, kept)


# -- how they rank -----------------------------------------------------------------------------------------------------


def with_ranks(groups: Groups, ranks: Sequence[Sequence[int]]) -> Groups:
    """`groups` ranked anew: what was said of an earlier ranking (rating, soft label, margin) goes with it.

    Args:
        groups: any.
        ranks: [groups][K], 1 is best, equal ranks tie.
    """
    unknown = [None] * len(groups)
    metas = [
        {key: value for key, value in json.loads(meta).items() if key != "margin"} if meta else {}
        for meta in groups.column("meta")
    ]
    columns: dict[str, list[Any]] = {
        "ranks": [list(new) for new in ranks],
        "rating": unknown,
        "preference_prob": unknown,
        "meta": [meta or None for meta in metas],
    }
    return groups.with_columns(columns)


def labels_from_ranks(ranks: Sequence[int]) -> list[bool | None]:
    """Labels [K] of responses on their own: the best are good, the worst bad, of those between nothing is said; nor of
    any where all tie.

    Args:
        ranks: [K], 1 is best.
    """
    if len(set(ranks)) < 2:
        return [None] * len(ranks)
    return [True if rank == min(ranks) else False if rank == max(ranks) else None for rank in ranks]


def occurrences(prompts: Groups) -> list[int]:
    """How often the prompt of each row stood in an earlier row."""
    seen: Counter[str] = Counter()
    times = []
    for prompt in prompts.column("prompt_id"):
        times.append(seen[prompt])
        seen[prompt] += 1
    return times
