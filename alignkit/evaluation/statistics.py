"""What held-out scores say and how sure it is: intervals, paired differences, best-of-n, accuracy by rating.

The unit of every interval is the **prompt**: several samples of one prompt are averaged first, because they are not
independent evidence. The interval of a mean is Student's, or that of the studentised bootstrap on the side where it
reaches further (Hall 1988): the percentile bootstrap of 5 to 10 prompts holds 80 to 90% where it says 95%, and
Student's as little where scores are skewed. Where every value is one of an event that happens or does not (0 or 1, -1
or 1) both would be of no width, or far too narrow, near the two: there a mean has Wilson's interval, a paired
difference Bonett and Price's. Of other scores that are all equal nothing says how far others may lie: their interval
has no width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignkit.errors import ConfigError, NumericError
from alignkit.groups import RATINGS
from alignkit.metrics.specs import ANSWERS

FURTHEST = 2.0
"""Times Student's reach that the studentised bootstrap may go to: of scores that are nearly all equal its quantiles
have no end."""
EVENTS = ((0.0, 1.0), (-1.0, 1.0))
"""What rewards of events give: that it did not happen, that it did."""

_CHUNK = 2_000_000
"""Numbers drawn at once while resampling: bounds memory at about 32 MB."""

Scores = ArrayLike | Mapping[str, Any]
"""Values per prompt ([prompts] or [prompts][samples]), or the same by prompt id."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval over `n` units (prompts, pairs)."""

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        """As it is kept in `stage.json`."""
        return asdict(self)

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


def bootstrap_mean(
    values: Scores,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    share: bool | None = None,
) -> Interval:
    """The mean over prompts and its interval, by the studentised bootstrap; Wilson's for the mean of events.

    Args:
        values: one number per prompt, several (averaged per prompt first), or a mapping from prompt id to either.
        confidence: the share of such intervals that hold the true mean.
        resamples: how often the prompts are drawn again with replacement.
        seed: of the resampling; the same seed gives the same interval.
        share: whether the mean is that of events that happen (1) or do not (0); default: whether every value is 0 or 1,
            or every one -1 or 1.

    Returns:
        The interval; a single prompt gives one of width zero, which says nothing: look at `n`.

    Raises:
        NumericError: a value is NaN or infinite.
        ConfigError: no values, a confidence outside (0, 1), no resamples.
    """
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise ConfigError(
            f"confidence={confidence}, resamples={resamples}", where="bootstrap_mean", remedy="use 0.95, 10000"
        )
    units = _per_prompt(values)
    levels = events_of(values) if share is None else EVENTS[0] if share else None
    if levels is not None:
        low, high = levels
        shares = (units - low) / (high - low)
        pieces = _pieces(float(shares.mean()), shares.var() / len(units), len(units), _how_many(values))
        return _on(levels, _wilson(float(shares.mean()), pieces, confidence, len(units)))
    below, above = _reach(units, confidence, resamples, seed)
    mean = float(units.mean())
    return Interval(mean, mean - below, mean + above, len(units))


def paired_difference(
    a: Scores, b: Scores, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of `a - b` with its interval, each prompt compared with itself.

    Where every score is 0 or 1, or every one -1 or 1, the interval is Bonett and Price's (2012): the normal one after a
    prompt was added that speaks for each side, so that equal scores on 16 prompts are not taken for a certain 0.

    Args:
        a: scores of the newer version: by place, or by prompt id (a mapping).
        b: scores of the older version on the same prompts, in the same form.

    Raises:
        ConfigError: the two do not cover the same prompts.
    """
    if isinstance(a, Mapping) != isinstance(b, Mapping):
        raise ConfigError("one side is by prompt id, the other by place", where="paired_difference")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if set(a) != set(b):
            raise ConfigError(
                f"{len(set(a) ^ set(b))} prompts have a score on one side only",
                where="paired_difference",
                remedy="evaluate both versions on the same held-out prompts",
            )
        b = [b[key] for key in a]
    left, right = _per_prompt(a), _per_prompt(b)
    if len(left) != len(right):
        raise ConfigError(f"{len(left)} prompts against {len(right)}", where="paired_difference")
    if (levels := events_of(a, b)) is not None:
        size = levels[1] - levels[0]
        return _on((0.0, size), _paired_shares((left - right) / size, confidence))
    return bootstrap_mean(left - right, confidence=confidence, resamples=resamples, seed=seed, share=False)


def pooled(runs: Sequence[Scores], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean over several seeds of one experiment, with one interval.

    Prompts are the unit, so the interval answers "another draw of prompts", for these seeds; three seeds are too few to
    resample. Given by prompt id, the values of one prompt under all seeds travel together (averaged first): right where
    seeds share their held-out prompts. Given by place, the runs are put one after another, as if no prompt were shared.

    Args:
        runs: per seed, what `bootstrap_mean` takes; all mappings or none.

    Raises:
        ConfigError: no runs, or mappings and plain values mixed.
    """
    mappings = [run for run in runs if isinstance(run, Mapping)]
    if not runs or len(mappings) not in (0, len(runs)):
        raise ConfigError("needs one or more runs, all by prompt id or all by place", where="pooled")
    options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    if not mappings:
        return bootstrap_mean(np.concatenate([_per_prompt(run) for run in runs]), **options)
    together: dict[str, list[float]] = {}
    for run in mappings:
        for key, value in zip(run, _per_prompt(run), strict=True):
            together.setdefault(key, []).append(float(value))
    return bootstrap_mean({key: together[key] for key in sorted(together)}, **options)


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's interval, which stays inside [0, 1] and is honest at 0, 1 and small n."""
    if not 0 <= successes <= n or n == 0:
        raise ConfigError(f"{successes} of {n}", where="wilson", remedy="needs 0 <= successes <= n and n >= 1")
    return _wilson(successes / n, n, confidence, n)


def best_of_n_curve(scores: Sequence[Sequence[float]]) -> dict[int, dict[str, float]]:
    """Maximum and median reward among n samples, averaged over prompts (Llama 2, figure 7).

    The exact expectation over all subsets of n of a prompt's N samples, so the curve has no sampling noise of its own:
    the k-th smallest of a subset is the i-th smallest of all with probability C(i-1, k-1) C(N-i, n-k) / C(N, n).

    Args:
        scores: [prompts][N]; where N differs between prompts the curve ends at the smallest.

    Returns:
        `{n: {"max": ..., "median": ...}}` for n = 1 … N; the gap is what choosing the best of n can gain.
    """
    rows = [np.sort(_finite(row)) for row in scores]
    if not rows or min(map(len, rows)) == 0:
        raise ConfigError("a prompt without a score", where="best_of_n_curve", remedy="give [prompts][N] with N >= 1")
    sizes = Counter(map(len, rows))
    # The weights depend on N alone, so that the prompts of one N are averaged before anything is weighted.
    means = {size: np.mean([row for row in rows if len(row) == size], axis=0) for size in sizes}
    curve = {}
    for n in range(1, min(sizes) + 1):
        middle = sorted({(n + 1) // 2, n // 2 + 1})
        point = {"max": 0.0, "median": 0.0}
        for size, ordered in means.items():
            share = sizes[size] / len(rows)
            point["max"] += share * float(ordered @ _rank_weights(size, n, n))
            point["median"] += share * float(np.mean([ordered @ _rank_weights(size, n, k) for k in middle]))
        curve[n] = point
    return curve


def accuracy_by_level(
    chosen_scores: ArrayLike,
    rejected_scores: ArrayLike,
    ratings: Sequence[str | None] | None = None,
    prompts: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """How often a reward model prefers what people preferred, overall and by how sure they were.

    A tie is not agreement: it counts as wrong, and is told apart, so a constant model shows accuracy 0 and all ties.

    Args:
        chosen_scores: [pairs], raw.
        rejected_scores: [pairs], raw.
        ratings: [pairs], a level of `RATINGS` (or another name), or None where it is not known.
        prompts: [pairs], whose pairs they are: those of one prompt are no independent evidence. Default: each pair is
            of a prompt of its own.

    Returns:
        `{"accuracy": {"overall": {mean, low, high, n, ties}, <level>: {...}, ...}, "ties": n}`: levels without pairs
        are left out; intervals are Wilson's, with as many independent pairs as the spread between prompts is worth.
    """
    chosen, rejected = _finite(chosen_scores), _finite(rejected_scores)
    levels = list(ratings) if ratings is not None else [None] * len(chosen)
    of = list(prompts) if prompts is not None else list(range(len(chosen)))
    if not len(chosen) == len(rejected) == len(levels) == len(of):
        what = f"{len(chosen)}, {len(rejected)}, {len(levels)} and {len(of)} entries"
        raise ConfigError(what, where="accuracy_by_level")
    known = [level for level in dict.fromkeys(levels) if level is not None]
    ordered = [r for r in RATINGS if r in known] + sorted(level for level in known if level not in RATINGS)
    labels = np.array([level or "" for level in levels], dtype=object)
    masks = {"overall": np.ones(len(chosen), dtype=bool)} | {level: labels == level for level in ordered}
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(of))}
    owner = np.array([numbers[prompt] for prompt in of], dtype=np.int64)
    table = {level: _agreement(chosen[mask], rejected[mask], owner[mask]) for level, mask in masks.items()}
    return {"accuracy": table, "ties": int((chosen == rejected).sum())}


def score_histogram(
    chosen_scores: ArrayLike, rejected_scores: ArrayLike, bins: int | None = None
) -> dict[str, list[float]]:
    """Counts of both sides of held-out pairs over common bins: `{"edges", "chosen", "rejected"}`; 6 to 30 bins."""
    chosen, rejected = _finite(chosen_scores), _finite(rejected_scores)
    bins = bins or min(30, max(6, round(2 * math.sqrt(len(chosen)))))
    edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins=bins)
    counts = {side: np.histogram(v, edges)[0].tolist() for side, v in (("chosen", chosen), ("rejected", rejected))}
    return {"edges": edges.tolist(), **counts}


def per_prompt_scores(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, float]:
    """One score of evaluation rows by prompt id, averaged over the samples of a prompt; missing ones are left out.

    Args:
        rows: `{"prompt_id", "scores": {name: value}, "kl", "response_length", "finished", ...}`.
        name: a score's name, or one of what a row holds besides (`ANSWERS`).
    """
    return {key: float(np.mean(values)) for key, values in samples_by_prompt(rows, name).items()}


def samples_by_prompt(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    """The same before it is averaged: a value for each sample."""
    found: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(name) if name in ANSWERS else (row.get("scores") or {}).get(name)
        if value is not None:
            found.setdefault(row["prompt_id"], []).append(float(value))
    return found


def _agreement(chosen: NDArray[np.float64], rejected: NDArray[np.float64], owner: NDArray[np.int64]) -> dict[str, Any]:
    right, pairs = (chosen > rejected).astype(np.float64), len(chosen)
    sizes, hits = np.bincount(owner), np.bincount(owner, weights=right)
    prompts, p = int((sizes > 0).sum()), float(right.mean())
    # The variance of a ratio of sums over prompts, linearised; for prompts of one pair each it is p (1 - p) / pairs.
    variance = float(((hits - p * sizes) ** 2).sum()) / pairs**2
    if prompts < pairs:
        variance *= prompts / max(prompts - 1, 1)
    pieces = _pieces(p, variance, prompts, pairs) if prompts > 1 else 1
    return {**_wilson(p, pieces, 0.95, pairs).to_dict(), "ties": int((chosen == rejected).sum())}


def _pieces(p: float, variance: float, prompts: int, values: int) -> float:
    """How many independent events a share stands on: those whose share would vary as much, at most all `values`. Where
    nothing varies, one for each prompt: that all samples of a prompt agree is no evidence that prompts do."""
    if variance <= 0 or not 0 < p < 1:
        return prompts if p in (0.0, 1.0) else values
    return min(max(p * (1 - p) / variance, 1.0), values)


def _wilson(p: float, pieces: float, confidence: float, n: int) -> Interval:
    """Wilson's interval of a share `p` that stands on so many independent events; `n` is what is reported."""
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2.0) ** 2
    centre = (p + z2 / (2 * pieces)) / (1 + z2 / pieces)
    half = math.sqrt(z2 * (p * (1 - p) / pieces + z2 / (4 * pieces * pieces))) / (1 + z2 / pieces)
    return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def _paired_shares(differences: NDArray[np.float64], confidence: float) -> Interval:
    """Bonett and Price's interval of the mean of differences in [-1, 1]."""
    more, mean = np.append(differences, [1.0, -1.0]), float(differences.mean())
    half = NormalDist().inv_cdf(0.5 + confidence / 2.0) * math.sqrt(more.var() / len(more))
    low, high = max(-1.0, float(more.mean()) - half), min(1.0, float(more.mean()) + half)
    return Interval(mean, min(mean, low), max(mean, high), len(differences))


def _flat(values: Scores) -> NDArray[np.float64]:
    """[samples of all prompts]."""
    rows = list(values.values()) if isinstance(values, Mapping) else list(values)  # type: ignore[call-overload,arg-type]
    return np.concatenate([np.atleast_1d(np.asarray(row, dtype=np.float64)) for row in rows])


def events_of(*values: Scores) -> tuple[float, float] | None:
    """The two values of an event that does not happen and that does, where all scores are one of them."""
    flat = [_flat(each) for each in values]
    return next((levels for levels in EVENTS if all(bool(np.isin(each, levels).all()) for each in flat)), None)


def _on(levels: tuple[float, float], share: Interval) -> Interval:
    """An interval of a share as one of the mean of these two values."""
    low, high = levels
    mean, least, most = (low + (high - low) * end for end in (share.mean, share.low, share.high))
    return Interval(mean, least, most, share.n)


def _how_many(values: Scores) -> int:
    return len(_flat(values))


def _rank_weights(size: int, n: int, k: int) -> NDArray[np.float64]:
    """[size]: the probability that the k-th smallest of n, drawn without replacement, is the i-th smallest of all.

    C(i-1, k-1) C(size-i, n-k) / C(size, n) for i = 1 … size, through the ratios of neighbours: no big integers.
    """
    weights = np.zeros(size)
    i = np.arange(k, size - n + k, dtype=np.float64)  # every i that can be the k-th, but the last
    logs = np.concatenate([[0.0], np.cumsum(np.log(i / (i - k + 1)) + np.log((size - i - n + k) / (size - i)))])
    found = np.exp(logs - logs.max())
    weights[k - 1 : size - n + k] = found / found.sum()
    return weights


def _reach(units: NDArray[np.float64], confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """How far the interval of the mean goes (below, above) it; nowhere for units that are all equal."""
    from scipy.special import stdtrit

    count, error = len(units), float(units.std() / math.sqrt(max(len(units) - 1, 1)))
    if not error > 0 or float(np.ptp(units)) <= 1e-12 * float(np.abs(units).max()):  # a mean of equal numbers rounds
        return 0.0, 0.0
    student = float(stdtrit(count - 1, 0.5 + confidence / 2.0))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(_resampled_t(units, resamples, seed), [tail, 1.0 - tail])
    most = FURTHEST * student
    return error * min(max(float(high), student), most), error * min(max(float(-low), student), most)


def _resampled_t(units: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """[about resamples] (mean* - mean) / error* of units drawn again; without draws that are all equal."""
    rng, centred = np.random.default_rng(seed), units - units.mean()
    rows, least = max(1, _CHUNK // len(units)), 1e-12 * float(units.var())
    parts = [np.zeros(1)]
    for start in range(0, resamples, rows):
        drawn = centred[rng.integers(0, len(units), size=(min(rows, resamples - start), len(units)))]
        means, spreads = drawn.mean(axis=1), drawn.var(axis=1)
        told = spreads > least
        parts.append(means[told] / np.sqrt(spreads[told] / (len(units) - 1)))
    return np.concatenate(parts)


def _per_prompt(values: Scores) -> NDArray[np.float64]:
    """[prompts]: the samples of each prompt averaged."""
    rows = list(values.values()) if isinstance(values, Mapping) else values
    if isinstance(rows, Sequence) and any(np.ndim(row) for row in rows):
        rows = [_finite(row).mean() if np.size(row) else math.nan for row in rows]
    units = _finite(rows)
    units = units.mean(axis=1) if units.ndim == 2 else units
    if units.ndim != 1 or not len(units):
        raise ConfigError(
            f"values of shape {units.shape}", where="statistics", remedy="give at least one value per prompt"
        )
    return units


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise NumericError(
            f"{bad} of {array.size} values are NaN or infinite",
            where="statistics",
            remedy="drop missing scores before averaging, and say how many there were",
        )
    return array
