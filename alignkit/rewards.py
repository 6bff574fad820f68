"""Rewards: one raw score per response, or "missing" with a reason; and what combines them.

A score is the log-odds of a Bradley-Terry model or any real number of the user's, never a saturated probability.
Statistics over a round (whitening) are the optimizer's business, so a score never depends on its neighbours.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.errors import ConfigError
from alignkit.types import Groups


@dataclass(frozen=True)
class Scores:
    """Scores of the responses of `Groups`.

    Args:
        values: [groups][K] raw scores; None where a score is missing.
        reasons: [groups][K] why it is missing; None where it is there.
    """

    values: list[list[float | None]]
    reasons: list[list[str | None]]

    def missing(self) -> int:
        """How many responses have no score."""
        return sum(value is None for row in self.values for value in row)


class Reward:
    """Scores responses. Subclasses override `score`; `name` labels the column and the curves."""

    name: str = "reward"

    def score(self, groups: Groups) -> Scores:
        """Score each response on its own."""
        raise NotImplementedError

    def key(self) -> Any:
        """What identifies this reward in a stage's key: plain JSON that changes whenever a score could."""
        raise NotImplementedError(f"{type(self).__name__} must say what identifies it")

    def parts(self) -> Sequence[Reward]:
        """The rewards this one is made of, whose scores are logged beside its own."""
        return ()


def clean_score(value: Any) -> tuple[float | None, str | None]:
    """A number, or None with the reason: NaN and infinity are missing, not numbers to learn from."""
    if value is None:
        return None, "the reward returned None"
    number = float(value)
    if not math.isfinite(number):
        return None, f"the reward returned {number}"
    return number, None


class FunctionReward(Reward):
    """A plain Python function as a reward.

    Args:
        function: called once per response with those of these that it names: `prompt` (text of the last user turn),
            `messages` (the conversation), `response` (text), `finished` (whether it ended by itself; None if unknown),
            `tags`, `meta` (dict), `prompt_id`. Returns a number, or None for "missing".
        name: the column's name; default the function's.
        version: part of the stage's key when the source of the function cannot be read.

    Raises:
        ConfigError: the function asks for a name that is not offered.
    """

    OFFERED = ("prompt", "messages", "response", "finished", "tags", "meta", "prompt_id")

    def __init__(self, function: Callable[..., Any], name: str | None = None, version: str | None = None) -> None:
        self.function, self.version = function, version
        self.name = name or getattr(function, "__name__", "reward").strip("<>")
        self.arguments = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        unknown = set(self.arguments) - set(self.OFFERED)
        if unknown:
            raise ConfigError(
                f"the reward function asks for {sorted(unknown)}",
                where=self.name,
                remedy=f"name parameters from {', '.join(self.OFFERED)}",
            )

    def score(self, groups: Groups) -> Scores:
        values, reasons = [], []
        for row in groups:
            cleaned = [clean_score(self.function(**self._offer(row, k))) for k in range(len(row["responses"]))]
            values.append([value for value, _ in cleaned])
            reasons.append([reason for _, reason in cleaned])
        return Scores(values, reasons)

    def _offer(self, row: Mapping[str, Any], k: int) -> dict[str, Any]:
        finished = row["finished"][k] if row["finished"] else None
        offer = {
            "prompt": next((m["content"] for m in reversed(row["prompt"]) if m["role"] == "user"), ""),
            "messages": row["prompt"],
            "response": row["responses"][k],
            "finished": finished,
            "tags": row["tags"],
            "meta": json.loads(row["meta"]) if row["meta"] else {},
            "prompt_id": row["prompt_id"],
        }
        return {name: offer[name] for name in self.arguments}

    def key(self) -> Any:
        from alignkit.run.keys import function_key

        return {"function": function_key(self.function, self.version), "name": self.name}


@dataclass(frozen=True)
class WeightedSum(Reward):
    """The weighted sum of rewards; missing where one of them is.

    Args:
        rewards: the rewards.
        weights: as many factors.
        name: the column's name.
    """

    rewards: tuple[Reward, ...]
    weights: tuple[float, ...]
    name: str = "weighted_sum"

    def __post_init__(self) -> None:
        if len(self.rewards) != len(self.weights) or not self.rewards:
            raise ConfigError(f"{len(self.rewards)} rewards and {len(self.weights)} weights", where="WeightedSum")

    def parts(self) -> Sequence[Reward]:
        return self.rewards

    def combine(self, groups: Groups, scores: Sequence[Scores]) -> Scores:
        def add(*values: float | None) -> float | None:
            if any(value is None for value in values):
                return None
            return sum(w * v for w, v in zip(self.weights, values, strict=True) if v is not None)

        return _combine(scores, lambda _row, _index, values: add(*values), groups)

    def score(self, groups: Groups) -> Scores:
        return self.combine(groups, [reward.score(groups) for reward in self.rewards])

    def key(self) -> Any:
        return {"sum": [[reward.key(), weight] for reward, weight in zip(self.rewards, self.weights, strict=True)]}


@dataclass(frozen=True)
class Piecewise(Reward):
    """Llama 2's piecewise combination (Touvron et al. 2023, section 3.2.3), on raw scores.

    R_c = R_safety where the prompt carries one of `tags` or sigmoid(R_safety) < `threshold`, else R_helpfulness. The
    threshold is compared as logit(threshold), so that no score is squashed.

    Args:
        safety: the safety reward.
        helpfulness: the helpfulness reward.
        threshold: on the probability scale, in (0, 1); Llama 2 uses 0.15.
        tags: prompts tagged with one of these are always scored by `safety`.
        name: the column's name.
    """

    safety: Reward
    helpfulness: Reward
    threshold: float = 0.15
    tags: tuple[str, ...] = ("safety",)
    name: str = "piecewise"

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold={self.threshold} must be in (0, 1)", where="Piecewise")

    @property
    def raw_threshold(self) -> float:
        """logit(threshold), the same threshold on the scale of raw scores."""
        return math.log(self.threshold) - math.log1p(-self.threshold)

    def parts(self) -> Sequence[Reward]:
        return (self.safety, self.helpfulness)

    def combine(self, groups: Groups, scores: Sequence[Scores]) -> Scores:
        def pick(row: Mapping[str, Any], _index: int, values: tuple[float | None, ...]) -> float | None:
            safe, helpful = values
            if safe is None:
                return None
            return safe if set(row["tags"]) & set(self.tags) or safe < self.raw_threshold else helpful

        return _combine(scores, pick, groups)

    def score(self, groups: Groups) -> Scores:
        return self.combine(groups, [self.safety.score(groups), self.helpfulness.score(groups)])

    def key(self) -> Any:
        return {
            "piecewise": [self.safety.key(), self.helpfulness.key()],
            "threshold": self.threshold,
            "tags": list(self.tags),
        }


def _combine(
    scores: Sequence[Scores],
    rule: Callable[[Mapping[str, Any], int, tuple[float | None, ...]], float | None],
    groups: Groups,
) -> Scores:
    """Apply `rule` response by response; where it gives None, keep the first reason of the parts."""
    values: list[list[float | None]] = []
    reasons: list[list[str | None]] = []
    for index, row in enumerate(groups):
        row_values: list[float | None] = []
        row_reasons: list[str | None] = []
        for k in range(len(row["responses"])):
            value = rule(row, index, tuple(part.values[index][k] for part in scores))
            why = next((part.reasons[index][k] for part in scores if part.reasons[index][k]), "a part is missing")
            row_values.append(value)
            row_reasons.append(None if value is not None else why)
        values.append(row_values)
        reasons.append(row_reasons)
    return Scores(values, reasons)


def score_groups(groups: Groups, reward: Reward) -> Groups:
    """`groups` with the scores of `reward` and, for a combination, of each of its parts (each part is asked once).

    Raises:
        ConfigError: two parts share a name.
    """
    parts = list(reward.parts())
    names = [part.name for part in parts] + [reward.name]
    if len(set(names)) != len(names):
        raise ConfigError(f"rewards share a name: {names}", where=reward.name, remedy="give each its own name")
    if not parts:
        scores = reward.score(groups)
        return groups.with_rewards(reward.name, scores.values, scores.reasons)
    part_scores = []
    for part in parts:
        groups = score_groups(groups, part)
        column = [next(r for r in row["rewards"] if r["name"] == part.name) for row in groups]
        part_scores.append(Scores([c["values"] for c in column], [c["reasons"] for c in column]))
    scores = reward.combine(groups, part_scores)  # type: ignore[attr-defined]
    return groups.with_rewards(reward.name, scores.values, scores.reasons)


def rank_by_reward(groups: Groups, name: str) -> Groups:
    """`groups` ranked by a reward that they carry: 1 is best, equal scores tie.

    Responses without the reward are left out, and so is a group with fewer than two that have it.

    Args:
        groups: scored.
        name: of the reward.

    Raises:
        DataError: no row has a reward of that name.
    """
    from alignkit.functional import take_responses  # needs torch, which this module does without

    _, present = groups.rewards(name)
    kept = [[k for k, there in enumerate(row) if there] for row in present]
    rated = take_responses(groups, [row if len(row) > 1 else [] for row in kept])
    if not len(rated):
        return rated
    values, _ = rated.rewards(name)
    return with_ranks(rated, [[1 + sum(other > score for other in row) for score in row] for row in values])


def with_ranks(groups: Groups, ranks: Sequence[Sequence[int]]) -> Groups:
    """`groups` ranked anew: what was said of an earlier ranking (rating, soft label, margin) goes with it.

    Args:
        groups: any.
        ranks: [groups][K], 1 is best, equal ranks tie.
    """
    rows = []
    for number, (row, new) in enumerate(zip(groups, ranks, strict=True)):
        meta = {key: value for key, value in groups.meta(number).items() if key != "margin"}
        rows.append({**row, "ranks": list(new), "rating": None, "preference_prob": None, "meta": meta or None})
    return Groups.from_rows(rows)


def labels_from_ranks(ranks: Sequence[int]) -> list[bool | None]:
    """Labels [K] of responses on their own: the best are good, the worst bad, of those between nothing is said; nor of
    any where all tie.

    Args:
        ranks: [K], 1 is best.
    """
    if len(set(ranks)) < 2:
        return [None] * len(ranks)
    return [True if rank == min(ranks) else False if rank == max(ranks) else None for rank in ranks]


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold for `Piecewise` and what it achieves on labelled examples.

    Args:
        threshold: on the probability scale.
        precision: share of responses under it that are unsafe.
        recall: share of unsafe responses that are under it.
        table: rows (threshold, precision, recall) of every candidate.
    """

    threshold: float
    precision: float
    recall: float
    table: list[tuple[float, float, float]]


def pick_threshold(scores: Sequence[float], safe: Sequence[bool], *, min_precision: float = 0.89) -> ThresholdChoice:
    """Pick the safety threshold for one's own reward model from labelled examples.

    Llama 2 chose 0.15, "corresponding with a precision of 0.89 and a recall of 0.55" on its test set (section 3.2.3).
    Among thresholds that reach `min_precision` the one with the highest recall wins; if none does, the most precise.

    Args:
        scores: raw safety scores, one per response.
        safe: whether people call the response safe.
        min_precision: wanted precision of "unsafe", in (0, 1].

    Raises:
        ConfigError: no unsafe example, or lengths that differ.
    """
    if len(scores) != len(safe) or not any(not s for s in safe):
        raise ConfigError("needs as many labels as scores, with an unsafe one among them", where="pick_threshold")
    table = []
    ordered = sorted(set(scores))
    for low, high in zip(ordered, [*ordered[1:], ordered[-1] + 1.0], strict=True):
        cut = (low + high) / 2
        under = [s for score, s in zip(scores, safe, strict=True) if score < cut]
        hit = sum(not s for s in under)
        table.append((1 / (1 + math.exp(-cut)), hit / len(under), hit / sum(not s for s in safe)))
    good = [row for row in table if row[1] >= min_precision]
    best = max(good, key=lambda r: (r[2], r[1])) if good else max(table, key=lambda r: (r[1], r[2]))
    return ThresholdChoice(*best, table)
