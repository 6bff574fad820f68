"""Rewards: one raw score per response, or "missing" with a reason; and what combines them.

A score is the log-odds of a Bradley-Terry model or any real number of the user's, never a saturated probability.
Statistics over a round (whitening) are the optimizer's business, so a score never depends on its neighbours.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignkit import batched
from alignkit.calls import calling, release, whose
from alignkit.errors import ConfigError, PluginError
from alignkit.fields import check_values
from alignkit.groups import Groups
from alignkit.identity import function_key, plain
from alignkit.meter import Meter
from alignkit.selection import take_responses, with_ranks


@dataclass(frozen=True)
class Scores:
    """Scores of the responses of `Groups`.

    Args:
        values: [groups][K] raw scores; None where a score is missing.
        reasons: [groups][K] why it is missing; None where it is there.
        tokens: that went through a model for it, prompts included.
        flops: floating-point operations that this took.
    """

    values: list[list[float | None]]
    reasons: list[list[str | None]]
    tokens: int = 0
    flops: int = 0

    def missing(self) -> int:
        """How many responses have no score."""
        return sum(value is None for row in self.values for value in row)


NOT_NEEDED = "its score is not needed here"
"""Why a part of a combination has none."""


class Reward:
    """Scores responses. Subclasses override `score`; `name` labels the column and the curves."""

    name: str = "reward"
    computed_in: str = "float64"
    """The type that its scores are computed in, "float32" where a model says them: scores that lie no further apart
    than its rounding are equal to what whitens or normalises them. A combination has that of its coarsest part."""

    def score(self, groups: Groups) -> Scores:
        """Score each response on its own."""
        raise NotImplementedError

    def key(self) -> Any:
        """What identifies this reward in a stage's key: plain JSON that changes whenever a score could."""
        raise NotImplementedError(f"{type(self).__name__} must say what identifies it")

    def parts(self) -> Sequence[Reward]:
        """The rewards this one is made of, whose scores are logged beside its own."""
        return ()

    def needed(self, groups: Groups) -> Sequence[Sequence[int] | None]:
        """For each of `parts`, the places of the groups that it is asked about; None: all. Elsewhere its score is
        missing, and the combination must not depend on it."""
        return [None] * len(self.parts())

    def release(self) -> None:
        """Give back what is held between calls, such as a model; called when a verb ends. A combination's parts too."""
        release(*self.parts())


def parts_of(reward: Reward) -> list[Reward]:
    """A reward, and whatever it is made of."""
    return [reward, *(each for part in reward.parts() for each in parts_of(part))]


def clean_score(value: Any) -> tuple[float | None, str | None]:
    """A number, or None with the reason: NaN and infinity are missing, not numbers to learn from."""
    if value is None:
        return None, "the reward returned None"
    if isinstance(value, (str, bytes)):
        raise TypeError(f"a score is a number, not the text {value!r}")
    number = float(value)
    if not math.isfinite(number):
        return None, f"the reward returned {number}"
    return number, None


def _asked_of(function: Callable[..., Any], offered: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names of what is offered that a function takes, what it must have besides, sorted)."""
    filled = set(function.keywords) if isinstance(function, functools.partial) else set()
    taken, unknown = [], []
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.VAR_KEYWORD:
            taken += [name for name in offered if name not in taken and name not in filled]
        elif p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
            unknown.append(f"{p.name} by position")
        elif p.name in offered and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            taken += [] if p.name in filled else [p.name]
        elif p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
            unknown.append(p.name)
    return taken, sorted(unknown)


class FunctionReward(Reward):
    """A plain Python function as a reward.

    Args:
        function: called once per response with those of these that it names, with or without a default: `prompt`
            (text of the last user turn), `messages` (the conversation), `response` (text), `finished` (whether it ended
            by itself; None if unknown), `tags`, `meta` (dict), `prompt_id`; with `**` all of them. What
            `functools.partial` has filled in stays. Returns a number, or None for "missing". A function that names
            `completions` is called once with lists over all responses, as TRL's are: `prompts` (texts of last user
            turns), `completions` (texts), `completion_ids`, `messages`, `finished`, `tags`, `prompt_ids`, and further
            columns of the data by their names. It returns as many numbers or None.
        name: the column's name; default the function's.
        version: part of the stage's key when the source of the function cannot be read.
        conversational: give lists of messages for `prompts` and `completions`, as TRL does for conversations.

    Raises:
        ConfigError: the function asks for a name that is not offered.
    """

    OFFERED = ("prompt", "messages", "response", "finished", "tags", "meta", "prompt_id")

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        version: str | None = None,
        *,
        conversational: bool = False,
    ) -> None:
        self.function, self.version, self.conversational = function, version, conversational
        self.name = name or getattr(function, "__name__", "reward").strip("<>")
        self.batched = batched.is_batched(function)
        if self.batched:
            return
        if conversational:
            what = "conversational=True, and the function is called response by response"
            raise ConfigError(what, where=self.name, remedy="name completions, or take messages")
        self.arguments, unknown = _asked_of(function, self.OFFERED)
        if unknown:
            raise ConfigError(
                f"the reward function asks for {unknown}",
                where=self.name,
                remedy=f"name parameters from {', '.join(self.OFFERED)}",
            )

    def score(self, groups: Groups) -> Scores:
        if self.batched:
            return self._score_at_once(groups)
        values, reasons = [], []
        for row in groups:
            cleaned = [self._asked(row, k) for k in range(len(row["responses"]))]
            values.append([value for value, _ in cleaned])
            reasons.append([reason for _, reason in cleaned])
        return Scores(values, reasons)

    def _score_at_once(self, groups: Groups) -> Scores:
        lists = batched.taken(self.function, batched.lists_of(groups, self.conversational), self.name)
        with calling(self, ""):
            found = self.function(**lists) if groups.num_responses else []
        given = iter(batched.listed(found, groups.num_responses, whose(self)))
        values, reasons = [], []
        for prompt, size in zip(groups.column("prompt_id"), groups.sizes(), strict=True):
            cleaned = []
            for k in range(size):
                with calling(self, "", f"response {k} to prompt {prompt}"):
                    cleaned.append(clean_score(next(given)))
            values.append([value for value, _ in cleaned])
            reasons.append([reason for _, reason in cleaned])
        return Scores(values, reasons)

    def _asked(self, row: Mapping[str, Any], k: int) -> tuple[float | None, str | None]:
        with calling(self, "", f"response {k} to prompt {row['prompt_id']}"):
            return clean_score(self.function(**self._offer(row, k)))

    def _offer(self, row: Mapping[str, Any], k: int) -> dict[str, Any]:
        finished = row["finished"][k] if row["finished"] else None
        offer = {
            "prompt": batched.last_said(row["prompt"]),
            "messages": row["prompt"],
            "response": row["responses"][k],
            "finished": finished,
            "tags": row["tags"],
            "meta": json.loads(row["meta"]) if row["meta"] else {},
            "prompt_id": row["prompt_id"],
        }
        return {name: offer[name] for name in self.arguments}

    def key(self) -> Any:
        form = {"conversational": True} if self.conversational else {}
        return {"function": function_key(self.function, self.version), "name": self.name, **form}


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
        check_values(self)
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
        parts = zip(self.rewards, self.weights, strict=True)
        return {"sum": [[plain(reward), weight] for reward, weight in parts], "name": self.name}


@dataclass(frozen=True)
class Piecewise(Reward):
    """Llama 2's piecewise combination (Touvron et al. 2023, section 3.2.3), on raw scores.

    R_c = R_safety where the prompt carries one of `tags` or sigmoid(R_safety) < `threshold`, else R_helpfulness. The
    threshold is compared as logit(threshold), so that no score is squashed.

    Each of two reward models has a zero and a unit of its own. Where responses to different prompts are measured by one
    another, with one response each, every response to a tagged prompt could so be worth less than the mean, and the
    policy would unlearn the best of them. `normalised` puts both on one scale.

    Args:
        safety: the safety reward.
        helpfulness: the helpfulness reward.
        threshold: on the probability scale, in (0, 1); Llama 2 uses 0.15.
        tags: prompts tagged with one of these are always scored by `safety`.
        safety_scale: (mean, deviation): where R_safety is chosen, (R_safety - mean) / deviation is given.
        helpfulness_scale: likewise for R_helpfulness.
        name: the column's name.
    """

    safety: Reward
    helpfulness: Reward
    threshold: float = 0.15
    tags: tuple[str, ...] = ("safety",)
    safety_scale: tuple[float, float] = (0.0, 1.0)
    helpfulness_scale: tuple[float, float] = (0.0, 1.0)
    name: str = "piecewise"

    def __post_init__(self) -> None:
        check_values(self)
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold={self.threshold} must be in (0, 1)", where="Piecewise")
        for field in ("safety_scale", "helpfulness_scale"):
            if not getattr(self, field)[1] > 0:
                raise ConfigError(f"{field}={getattr(self, field)}: the deviation must be positive", where="Piecewise")

    def normalised(self, scored: Groups) -> Piecewise:
        """The same, each part with mean 0 and variance 1 over the responses that it judges (Ziegler et al. 2019, arXiv
        1909.08593, section 2.2: over samples of the policy, so that the scale of the reward stays as it is).

        A part that judges no two of them differently keeps its scale: without prompts of its kind nothing is compared
        across the kinds.

        Args:
            scored: responses with the scores of this reward, as `score_groups` or `Run.score` leave them.
        """
        tagged = [bool(set(tags) & set(self.tags)) for tags in scored.column("tags")]
        scales: dict[str, Any] = {}
        for field, part, own in (
            ("safety_scale", self.safety, tagged),
            ("helpfulness_scale", self.helpfulness, [not each for each in tagged]),
        ):
            values, present = scored.rewards(part.name)
            rows = zip(values, present, own, strict=True)
            judged = [v for row, there, mine in rows if mine for v, t in zip(row, there, strict=True) if t]
            if len(set(judged)) > 1:
                scales[field] = (statistics.fmean(judged), statistics.stdev(judged))
        return replace(self, **scales)

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
            if set(row["tags"]) & set(self.tags) or safe < self.raw_threshold:
                return _rescaled(safe, self.safety_scale)
            return _rescaled(helpful, self.helpfulness_scale)

        return _combine(scores, pick, groups)

    def needed(self, groups: Groups) -> Sequence[Sequence[int] | None]:
        """Safety of every group. Where a model says the helpfulness, it reads those without a tag alone, since nothing
        comes of the others'; a function costs nothing, and its score is shown of all."""
        if self.helpfulness.computed_in != "float32":
            return [None, None]
        return [None, [place for place, (tags,) in enumerate(groups.each("tags")) if not set(tags) & set(self.tags)]]

    def score(self, groups: Groups) -> Scores:
        asked = zip(self.parts(), self.needed(groups), strict=True)
        return self.combine(groups, [_asked_about(groups, part, places) for part, places in asked])

    def key(self) -> Any:
        return {
            "piecewise": plain([self.safety, self.helpfulness]),
            "threshold": self.threshold,
            "tags": list(self.tags),
            "scales": [list(self.safety_scale), list(self.helpfulness_scale)],
            "name": self.name,
        }


def _rescaled(score: float | None, scale: tuple[float, float]) -> float | None:
    """(score - mean) / deviation; nothing of nothing."""
    return None if score is None else (score - scale[0]) / scale[1]


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
    return Scores(values, reasons, sum(part.tokens for part in scores), sum(part.flops for part in scores))


def _asked_about(groups: Groups, reward: Reward, places: Sequence[int] | None) -> Scores:
    """The scores of the groups at these places, spread over all of them; elsewhere they are missing."""
    if places is None:
        return reward.score(groups)
    found = reward.score(groups.select(places)) if places else Scores([], [])
    values, reasons = _over_all(groups, places, found.values, found.reasons)
    return replace(found, values=values, reasons=reasons)


def _over_all(
    groups: Groups, places: Sequence[int], values: Sequence[Sequence[Any]], reasons: Sequence[Sequence[Any]]
) -> tuple[list[list[Any]], list[list[Any]]]:
    """Scores and reasons of the groups at these places as those of all groups; elsewhere they are not needed."""
    scores: list[list[Any]] = [[None] * size for size in groups.sizes()]
    why: list[list[Any]] = [[NOT_NEEDED] * size for size in groups.sizes()]
    for place, own, said in zip(places, values, reasons, strict=True):
        scores[place], why[place] = list(own), list(said)
    return scores, why


def _scored(groups: Groups, reward: Reward, ask: Callable[[], Scores]) -> Scores:
    """What a reward answered, looked at: a score or a reason for each response.

    Raises:
        PluginError: it raised, or answered with something else.
    """
    where = f"{whose(reward)}.score"
    with calling(reward, "score"):
        found = ask()
    if not isinstance(found, Scores):
        raise PluginError(f"returned a {type(found).__name__}", where=where, remedy="return Scores")
    _refuse_other_sizes(groups, found, where)
    values, reasons = [], []
    for (prompt,), row, why in zip(groups.each("prompt_id"), found.values, found.reasons, strict=True):
        cleaned = []
        for k, value in enumerate(row):
            with calling(reward, "score", f"response {k} to prompt {prompt}"):
                cleaned.append(clean_score(value))
        values.append([value for value, _ in cleaned])
        reasons.append(
            [None if v is not None else (given or ours) for given, (v, ours) in zip(why, cleaned, strict=True)]
        )
    return replace(found, values=values, reasons=reasons)


def _refuse_other_sizes(groups: Groups, found: Scores, where: str) -> None:
    rows = list(zip(groups.column("prompt_id"), groups.sizes(), strict=True))
    for what, given in (("values", found.values), ("reasons", found.reasons)):
        if not isinstance(given, Sequence) or len(given) != len(rows):
            size = len(given) if isinstance(given, Sequence) else f"a {type(given).__name__}"
            raise PluginError(f"{what} for {size} groups of {len(rows)}", where=where, remedy="return [groups][K]")
        for (prompt, size), row in zip(rows, given, strict=True):
            if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != size:
                count = len(row) if isinstance(row, Sequence) else f"a {type(row).__name__}"
                what = f"{count} {what} for the {size} responses to prompt {prompt}"
                raise PluginError(what, where=where, remedy="return [groups][K]")


def metered_scores(groups: Groups, reward: Reward, meter: Meter | None = None) -> Scores:
    """`reward.score(groups)`, counted."""
    meter = meter or Meter()
    meter.add("reward_calls", groups.num_responses)
    with meter.phase("score"):
        scores = _scored(groups, reward, lambda: reward.score(groups))
        count_scores(scores, meter)
    return scores


def count_scores(scores: Scores, meter: Meter) -> None:
    """Count what went through a model for these scores."""
    meter.add("scored_tokens", scores.tokens)
    meter.compute(scores.flops)


def score_groups(groups: Groups, reward: Reward, meter: Meter | None = None) -> Groups:
    """`groups` with the scores of `reward` and, for a combination, of each of its parts (each part is asked once).

    Args:
        groups: whose responses are scored.
        reward: what scores them.
        meter: counts the responses, once however many parts there are.

    Raises:
        ConfigError: two parts share a name.
    """
    meter = meter or Meter()
    meter.add("reward_calls", groups.num_responses)
    with meter.phase("score"):
        return _with_scores(groups, reward, meter)


def _with_scores(groups: Groups, reward: Reward, meter: Meter) -> Groups:
    parts = list(reward.parts())
    names = [part.name for part in parts] + [reward.name]
    if len(set(names)) != len(names):
        raise ConfigError(f"rewards share a name: {names}", where=reward.name, remedy="give each its own name")
    if not parts:
        scores = _scored(groups, reward, lambda: reward.score(groups))
        count_scores(scores, meter)
        return groups.with_rewards(reward.name, scores.values, scores.reasons)
    part_scores = []
    for part, places in zip(parts, reward.needed(groups), strict=True):
        if places is None:
            groups = _with_scores(groups, part, meter)
        else:
            groups = _spread(groups, part, places, _with_scores(groups.select(places), part, meter) if places else None)
        column = [next(r for r in row if r["name"] == part.name) for row in groups.column("rewards")]
        part_scores.append(Scores([c["values"] for c in column], [c["reasons"] for c in column]))
    scores = _scored(groups, reward, lambda: reward.combine(groups, part_scores))  # type: ignore[attr-defined]
    return groups.with_rewards(reward.name, scores.values, scores.reasons)


def _spread(groups: Groups, reward: Reward, places: Sequence[int], scored: Groups | None) -> Groups:
    """`groups` with what some of them were scored; `scored` holds those at `places`, None where there are none."""
    for name in [part.name for part in parts_of(reward)]:
        entries = [next(each for each in row["rewards"] if each["name"] == name) for row in scored or ()]
        columns = ([each[what] for each in entries] for what in ("values", "reasons"))
        groups = groups.with_rewards(name, *_over_all(groups, places, *columns))
    return groups


def rank_by_reward(groups: Groups, name: str) -> Groups:
    """`groups` ranked by a reward that they carry: 1 is best, equal scores tie.

    Responses without the reward are left out, and so is a group with fewer than two that have it.

    Args:
        groups: scored.
        name: of the reward.

    Raises:
        DataError: no row has a reward of that name.
    """
    _, present = groups.rewards(name)
    kept = [[k for k, there in enumerate(row) if there] for row in present]
    rated = take_responses(groups, [row if len(row) > 1 else [] for row in kept])
    if not len(rated):
        return rated
    values, _ = rated.rewards(name)
    return with_ranks(rated, [[1 + sum(other > score for other in row) for score in row] for row in values])
