"""ReST: draw samples once (Grow), then learn several times from those above rising thresholds (Improve).

Gulcehre et al. 2023 (Reinforced Self-Training, arXiv 2308.08998), section 3 and algorithm 1. With one Improve above the
lowest threshold it is fine-tuning on one's own samples; with a larger policy's samples it is distillation.

How it maps to the engine: a round is an Improve, and the rounds of a Grow share its samples (`sample_every`). All
Improves filter the same samples, so their sets are nested: the higher the threshold, the fewer and the better.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from alignkit.plugin import (
    Batch,
    ConfigError,
    Groups,
    MetricSpec,
    NothingToLearnError,
    PolicyOptimizer,
    Term,
    check_values,
    eligible,
    take_responses,
    with_ranks,
)


def threshold_at(values: Sequence[float], quantile: float) -> float:
    """The threshold above which the share 1 - quantile of the values lies, or a little more where values are equal.

    It is the highest value below the one at place floor(quantile n), so that something always lies above it; -inf for
    the quantile 0, above which everything lies.

    Args:
        values: raw scores, none of them NaN.
        quantile: in [0, 1).
    """
    least = sorted(values)[int(quantile * len(values))]
    return max((v for v in values if v < least), default=-math.inf)


def distinct(groups: Groups) -> Groups:
    """Each response to a prompt once, at its first place, though it was sampled twice or its prompt drawn twice."""
    seen: set[tuple[str, str]] = set()
    kept: list[list[int]] = []
    for row in groups:
        keys = [(row["prompt_id"], response) for response in row["responses"]]
        kept.append([k for k, key in enumerate(keys) if key not in seen and key not in keys[:k]])
        seen |= set(keys)
    return take_responses(groups, kept)


@dataclass(frozen=True)
class ReST(PolicyOptimizer):
    """Reinforced self-training.

    Args:
        loss: the paper found behaviour cloning best; any other registered offline loss, with `contrast` for those that
            compare responses.
        samples_per_prompt: of a Grow; 0 learns from the scored groups it is given (a Grow made elsewhere).
        rounds: Grows x Improves; worked out, not given, as is `sample_every`.
        learning_rate: of the first Improve; each later one has a lower one (`schedule`).
        quantiles: one Improve for each: the rewards of this share of the samples lie below its threshold.
        thresholds: one Improve for each, in units of the reward, instead of the quantiles; kept is what lies above.
        grows: times that samples are drawn; people liked the result of one best (section 4).
        contrast: give the loss each prompt's responses on both sides of the threshold, those above ranked and labelled
            better, instead of those above alone.
        require_finished: a response that the length limit cut off is not learned from, since imitating it teaches not
            to stop.
    """

    samples_per_prompt: int = 16
    rounds: int = field(default=0, init=False)
    sample_every: int = field(default=0, init=False)
    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 2e-5
    schedule: str = "linear"
    quantiles: tuple[float, ...] = (0.5, 0.75, 0.9)
    thresholds: tuple[float, ...] = ()
    grows: int = 1
    contrast: bool = False
    require_finished: bool = True

    search: ClassVar[Mapping[str, Any]] = {**PolicyOptimizer.search, "epochs": (1, 6)}
    logs: ClassVar[Mapping[str, MetricSpec]] = {
        "kept": MetricSpec("samples above the threshold", "a handful: the threshold is too high for this many samples"),
        "kept_share": MetricSpec("their share of the samples", unit="share"),
        "least_kept": MetricSpec("lowest reward among them"),
        "kept_reward_mean": MetricSpec("their mean reward", better="up"),
        "pool_reward_mean": MetricSpec("mean reward of all samples", better="up"),
    }

    def __post_init__(self) -> None:
        check_values(self)
        levels = self.levels
        if not levels or any(a >= b for a, b in itertools.pairwise(levels)):
            raise ConfigError(
                f"thresholds {list(levels)} do not rise", where="rest", remedy="give them from low to high"
            )
        if not self.thresholds and not all(0 <= q < 1 for q in levels):
            raise ConfigError(f"quantiles {list(levels)} must be in [0, 1)", where="rest")
        if self.grows < 1:
            raise ConfigError(f"grows={self.grows} must be at least 1", where="rest")
        object.__setattr__(self, "rounds", self.grows * len(levels))
        object.__setattr__(self, "sample_every", len(levels))
        super().__post_init__()

    @property
    def levels(self) -> tuple[float, ...]:
        """What is given of each Improve: its threshold or its quantile."""
        return tuple(self.thresholds or self.quantiles)

    @property
    def logprob_temperature(self) -> float:
        return 1.0  # it imitates text, whatever the temperature that text was sampled at

    def terms(self) -> Mapping[str, Term]:
        return {"loss": Term(reduction="token")}

    def initial_state(self) -> dict[str, Any]:
        return {"improves": 0}

    def threshold(self, values: Sequence[float], improve: int) -> float:
        """tau of an Improve, counted from 0, on the rewards of its Grow."""
        level = self.levels[improve % len(self.levels)]
        return level if self.thresholds else threshold_at(values, level)

    def prepare(self, groups: Groups, state: Mapping[str, Any], *, reward_name: str) -> Batch:
        """The samples above the threshold of the next Improve; with `contrast` those below beside them.

        Args:
            groups: the samples of the Grow, scored.
            state: `improves`: how many there have been.
            reward_name: the reward being optimised.

        Raises:
            NothingToLearnError: no response has a reward, or none lies above the threshold.
        """
        improve = int(state.get("improves", 0))
        groups = distinct(groups)
        able = eligible(groups, reward_name, self.require_finished)
        scores, _ = groups.rewards(reward_name)
        values = [
            [v if ok else math.nan for v, ok in zip(*pair, strict=True)] for pair in zip(scores, able, strict=True)
        ]
        pool = [v for row in values for v in row if not math.isnan(v)]
        if not pool:
            raise NothingToLearnError(
                "no response has a reward" + " and an end" * self.require_finished,
                where="rest",
                effect="Learning from nothing was refused.",
            )
        tau = self.threshold(pool, improve)
        above = [[k for k, v in enumerate(row) if v > tau] for row in values]
        kept = [v for row in values for v in row if v > tau]
        if not kept:
            raise NothingToLearnError(
                f"none of {len(pool)} responses lies above {tau:.4g}; the highest is {max(pool):.4g}",
                where=f"rest, Improve {improve + 1} of {self.rounds}",
                effect="Learning from nothing was refused.",
                remedy="lower the threshold, or sample more",
            )
        learned = self._contrasted(groups, values, tau) if self.contrast else take_responses(groups, above)
        metrics = {
            "kept": float(len(kept)),
            "kept_share": len(kept) / len(pool),
            "least_kept": min(kept),
            "kept_reward_mean": statistics.fmean(kept),
            "pool_reward_mean": statistics.fmean(pool),
        }
        return Batch(learned, metrics=metrics, state={**state, "improves": improve + 1})

    def _contrasted(self, groups: Groups, values: Sequence[Sequence[float]], tau: float) -> Groups:
        """Groups with responses on both sides: above is rank 1 and a good label, below rank 2 and a bad one."""
        places = [[k for k, v in enumerate(row) if not math.isnan(v)] for row in values]
        better = [[values[i][k] > tau for k in row] for i, row in enumerate(places)]
        mixed = [i for i, row in enumerate(better) if len(set(row)) == 2]
        if not mixed:
            raise NothingToLearnError(
                f"no prompt has responses on both sides of {tau:.4g}",
                where="rest",
                effect="There is no comparison to learn from.",
                remedy="sample more of a prompt, or choose another threshold",
            )
        taken = take_responses(groups.select(mixed), [places[i] for i in mixed])
        ranked = with_ranks(taken, [[1 if good else 2 for good in better[i]] for i in mixed])
        labels = iter([better[i] for i in mixed])
        return ranked.map_rows(lambda row: {"labels": next(labels)})
