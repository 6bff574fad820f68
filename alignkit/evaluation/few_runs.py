"""What several runs of several methods say, where runs are few (Agarwal et al. 2021, arXiv 2108.13264).

Scores are a matrix [seeds, prompts] of each method: the paper's runs are seeds, and what they solve are prompts.
Statistics are those of the paper; intervals are made to hold their word for two to ten seeds, where the percentile
bootstrap does not:

1. Seeds and prompts cross: one prompt is hard under every seed. So the variance of a statistic is found by drawing
   again the seeds alone (A), the prompts alone (B), and single scores (C), each method a stratum of its own.
2. What is neither the seed's nor the prompt's, R, is in A and in B; it follows from the three (for the mean exactly):
   R = (C − A/P − B/S) / (1 − 1/P − 1/S). The variance is A + B − R, and never less than A or B.
3. Bootstrap variances are too small by the factor (n − 1)/n, which is put right, and the interval is ± t times the
   standard error, with Satterthwaite's degrees of freedom: a few seeds say little of the seeds' spread.

One seed says nothing of other seeds: its interval is that of other prompts alone.

Where nothing varies the three are 0, and would call a rare event impossible: of scores that are all 0 or 1 (or all -1
or 1), the error is then what puts the end of the interval where Wilson's is, of as many events as there are prompts
(seeds, where the prompts are the whole problem).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from alignkit.errors import ConfigError, NumericError
from alignkit.evaluation.statistics import EVENTS, Interval, events_of

Array = NDArray[np.float64]
Statistic = Callable[..., Array]
"""Of one matrix or two, each [..., seeds, prompts], to [...]."""

RESAMPLES = 1000
_CHUNK = 4_000_000
"""Numbers drawn at once while resampling."""


def mean(scores: Array) -> Array:
    """The mean over seeds and prompts."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def interquartile_mean(scores: Array) -> Array:
    """The mean of the middle half of all scores: a quarter, rounded down, is cut from each end."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return np.asarray(flat[..., cut : flat.shape[-1] - cut].mean(axis=-1))


def optimality_gap(scores: Array, target: float = 1.0) -> Array:
    """How far scores fall short of the target, on average; what lies above it makes up for nothing."""
    return np.asarray(target - np.minimum(scores, target).mean(axis=(-2, -1)))


def probability_of_improvement(a: Array, b: Array) -> Array:
    """The chance that a run of `a` scores higher than a run of `b` on the same prompt; a tie is half."""
    above = a[..., :, None, :] > b[..., None, :, :]
    equal = a[..., :, None, :] == b[..., None, :, :]
    return np.asarray((above + 0.5 * equal).mean(axis=(-3, -2, -1)))


def performance_profile(scores: Array, thresholds: ArrayLike) -> Array:
    """The share of scores above each threshold: [thresholds]."""
    return np.asarray([(scores > t).mean() for t in np.asarray(thresholds, dtype=np.float64)])


@dataclass(frozen=True)
class Estimate:
    """A statistic, and how sure it is.

    Args:
        value: of the statistic.
        error: its standard error.
        freedom: degrees of freedom of the error.
        seeds: the smallest number of seeds that went in.
        least, most: the range that an interval cannot leave.
    """

    value: float
    error: float
    freedom: float
    seeds: int
    least: float = -math.inf
    most: float = math.inf

    def interval(self, confidence: float = 0.95, low: float = -math.inf, high: float = math.inf) -> Interval:
        """The interval, cut to the range that the statistic can take."""
        reach = self.error * float(stats.t.ppf(0.5 + confidence / 2, self.freedom)) if self.error else 0.0
        low, high = max(low, self.least), min(high, self.most)
        return Interval(self.value, max(low, self.value - reach), min(high, self.value + reach), self.seeds)

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the value is 0; 1 where there is nothing to judge the spread by."""
        if not self.error:
            return 1.0
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))


def estimate(
    statistic: Statistic,
    *scores: ArrayLike,
    draw_prompts: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
    share: bool | None = None,
) -> Estimate:
    """A statistic of one method or two, with its error under other seeds and other prompts.

    Args:
        statistic: of as many matrices as there are `scores`.
        scores: each [seeds, prompts], the same prompts in all; each has seeds of its own.
        draw_prompts: whether the prompts stand for others. False: they are the whole problem.
        resamples: how often each part is drawn again.
        seed: of the resampling.
        share: whether scores are of events that happen (1) or do not (0); default: whether all are 0 or 1, or all -1
            or 1.

    Raises:
        ConfigError: no scores, or matrices of different prompts.
        NumericError: a score is NaN or infinite.
    """
    given = [_matrix(part) for part in scores]
    if not given or len({part.shape[1] for part in given}) != 1:
        raise ConfigError("needs matrices [seeds, prompts] over the same prompts", where="estimate")
    value = float(statistic(*given))
    seeds, prompts = min(len(part) for part in given), given[0].shape[1]
    levels = events_of(*given) if share is None else EVENTS[0] if share else None
    # A chance is a share whatever the scores are.
    size = 0.0 if levels is None else 1.0 if statistic is probability_of_improvement else levels[1] - levels[0]
    a = _variance(statistic, given, "seeds", resamples, seed) * _unbiased(seeds)
    if not draw_prompts or prompts == 1:
        if not a and size and seeds > 1:
            return _unvaried(value, seeds, seeds, size, _ends(statistic, given, levels))
        return Estimate(value, math.sqrt(a), max(seeds - 1, 1), seeds)
    b = _variance(statistic, given, "prompts", resamples, seed) * _unbiased(prompts)
    if not a and not b and size:
        return _unvaried(value, prompts, seeds, size, _ends(statistic, given, levels))
    if seeds == 1:
        return Estimate(value, math.sqrt(b), prompts - 1, seeds)
    c = _variance(statistic, given, "scores", resamples, seed) * _unbiased(seeds * prompts)
    room = 1 - 1 / prompts - 1 / seeds
    rest = max((c - a / prompts - b / seeds) / room, 0.0) if room > 0 else 0.0
    whole = max(a + b - rest, a, b)
    if not whole:
        return Estimate(value, 0.0, 1, seeds)
    freedom = whole**2 / (a**2 / (seeds - 1) + (whole - a) ** 2 / (prompts - 1))
    return Estimate(value, math.sqrt(whole), freedom, seeds)


def paired(a: ArrayLike, b: ArrayLike, *, draw_prompts: bool = True, seed: int = 0) -> Estimate:
    """The mean of `a - b`, each seed and prompt compared with itself: on common random numbers.

    Args:
        a, b: [seeds, prompts], the same of both.

    Raises:
        ConfigError: of different shapes.
    """
    left, right = _matrix(a), _matrix(b)
    if left.shape != right.shape:
        raise ConfigError(f"shapes {left.shape} and {right.shape}", where="paired", remedy="give the same seeds")
    levels = events_of(left, right)
    size = levels[1] - levels[0] if levels is not None else 1.0
    found = estimate(mean, (left - right) / size, draw_prompts=draw_prompts, seed=seed, share=levels is not None)
    most = size if levels is not None else math.inf
    return replace(found, value=found.value * size, error=found.error * size, least=-most, most=most)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down rule, in the order given."""
    adjusted, highest = [1.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def ranks(means: Mapping[str, float], better: Mapping[tuple[str, str], bool]) -> dict[str, tuple[int, int, int]]:
    """(rank, best it can be, worst it can be) of each method.

    With differences corrected for their number the ranges hold for all methods at once (Mogstad et al. 2024, "Inference
    for Ranks"): a method's best rank has as many before it as are surely better.

    Args:
        means: by method, higher is better; equal ones share a rank.
        better: (a, b) -> whether a is surely better than b.
    """
    found = {}
    for name, value in means.items():
        rank = 1 + sum(other > value for other in means.values())
        before = sum(better.get((other, name), False) for other in means)
        behind = sum(better.get((name, other), False) for other in means)
        found[name] = (rank, 1 + before, len(means) - behind)
    return found


def _variance(statistic: Statistic, given: Sequence[Array], what: str, resamples: int, seed: int) -> float:
    """Of the statistic over resamples of one part; 0 where there is one of it only."""
    rng = np.random.default_rng([seed, len(what)])
    size = sum(part.size * (len(part) if len(given) > 1 else 1) for part in given)
    rows, values = max(1, _CHUNK // size), []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        values.append(statistic(*_drawn(given, what, count, rng)))
    return float(np.concatenate(values).var())


def _drawn(given: Sequence[Array], what: str, count: int, rng: np.random.Generator) -> list[Array]:
    """`count` resamples of each matrix: [count, seeds, prompts]. Prompts are drawn for all methods together."""
    if what == "prompts":
        width = given[0].shape[1]
        places = rng.integers(0, width, size=(count, width))
        return [np.moveaxis(part[:, places], 1, 0) for part in given]
    if what == "seeds":
        return [part[rng.integers(0, len(part), size=(count, len(part)))] for part in given]
    flat = [part.ravel()[rng.integers(0, part.size, size=(count, part.size))] for part in given]
    return [drawn.reshape(count, *part.shape) for drawn, part in zip(flat, given, strict=True)]


def _ends(statistic: Statistic, given: Sequence[Array], levels: tuple[float, float] | None) -> tuple[float, float]:
    """The least and the most that a statistic of events can be."""
    low, high = levels or EVENTS[0]
    if len(given) > 1:
        return low - high, high - low
    least, most = sorted(float(statistic(np.full_like(given[0], level))) for level in (low, high))
    return least, most


def _unvaried(value: float, events: int, seeds: int, size: float, ends: tuple[float, float]) -> Estimate:
    """Of events of which all happened, or none: the interval of 95% ends where Wilson's does.

    Args:
        value: of the statistic.
        events: how many independent ones there were.
        seeds: of the estimate.
        size: by how much one that happens changes its score.
        ends: the least and the most that the statistic can be.
    """
    z2 = float(stats.norm.ppf(0.975)) ** 2
    freedom = max(events - 1, 1)
    error = size * z2 / (events + z2) / float(stats.t.ppf(0.975, freedom))
    return Estimate(value, error, freedom, seeds, *ends)


def _unbiased(count: int) -> float:
    return count / (count - 1) if count > 1 else 0.0


def _matrix(scores: ArrayLike) -> Array:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ConfigError(f"scores of shape {array.shape}", where="statistics", remedy="give [seeds, prompts]")
    if not np.isfinite(array).all():
        raise NumericError("a score is NaN or infinite", where="statistics", remedy="leave the prompt out")
    return array
