"""Rejection sampling fine-tuning: of K samples the one with the highest reward becomes the target, learned like SFT.

Llama 2 (Touvron et al. 2023, arXiv 2307.09288), section 3.2.3. Their third version learned from the samples of the last
iteration alone and forgot skills (rhymes in poems); the remedy was to let the best samples of *all* earlier iterations
into the pool. Here they compete under the current reward, which is why the engine scores `history` again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from alignkit.plugin import (
    VOCABULARY,
    Batch,
    ConfigError,
    Groups,
    MetricSpec,
    NothingToLearnError,
    PolicyOptimizer,
    Register,
    Term,
    eligible,
    hookimpl,
    take_responses,
)

POOLS = ("all", "last", "none")


def best_of(rewards: Sequence[float], eligible: Sequence[bool]) -> int | None:
    """The place of the highest reward among those that may win.

    Args:
        rewards: [K], raw scores; NaN never wins.
        eligible: [K], which of them may win.

    Returns:
        the lowest place among equals; None if none may win.
    """
    places = [k for k, (r, able) in enumerate(zip(rewards, eligible, strict=True)) if able and not math.isnan(r)]
    return max(places, key=lambda k: rewards[k], default=None)  # max keeps the first of equals


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n || policy) = log n - (n - 1)/n (Stiennon et al. 2020), nats: exact without ties, else a bound."""
    return math.log(n) - (n - 1) / n


def winners(groups: Groups, reward_name: str, require_finished: bool) -> Groups:
    """Each group reduced to its best response; groups in which none may win are left out.

    Args:
        groups: scored by `reward_name`.
        reward_name: the reward that decides.
        require_finished: refuse responses that the length limit cut off.
    """
    if not len(groups):
        return groups
    values, _ = groups.rewards(reward_name)
    best = [best_of(*pair) for pair in zip(values, eligible(groups, reward_name, require_finished), strict=True)]
    return take_responses(groups, [[] if k is None else [k] for k in best])


def compete(pool: Sequence[Groups], reward_name: str) -> Groups:
    """One response for each prompt: the best of all that were won by it, the first of them on a tie.

    Args:
        pool: winners, one response each, in order of precedence.
        reward_name: the reward that decides.
    """
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for groups in (part for part in pool if len(part)):
        values, _ = groups.rewards(reward_name)
        for (value,), row in zip(values, groups, strict=True):
            if row["prompt_id"] not in best or value > best[row["prompt_id"]][0]:
                best[row["prompt_id"]] = (value, row)
    return Groups.from_rows(row for _, row in best.values())


def newest_first(history: Groups, only_last: bool) -> Groups:
    """Samples of earlier versions, newest first (-1, the oldest, where no version is written down)."""
    versions = [-1 if v is None else int(v) for v in history.column("iteration")]
    order = sorted(range(len(versions)), key=lambda i: -versions[i])
    return history.select(i for i in order if not only_last or versions[i] == versions[order[0]])


@dataclass(frozen=True)
class RejectionSampling(PolicyOptimizer):
    """Fine-tune on the best of K samples by reward, over the pool of all versions so far (Llama 2).

    Args:
        samples_per_prompt: K; Llama 2 compares up to 100 (figure 7).
        temperature: Llama 2's best for 10 to 100 samples were 1.2 to 1.3.
        epochs: 2, and the rate, schedule, decay and batch size of Llama 2's SFT (section 3.1).
        pool: which samples of earlier versions compete: "all", those of the "last" one alone, or "none".
        require_finished: a response cut off by the length limit cannot win, since imitating it teaches not to stop; a
            prompt without a finished response is dropped.
    """

    samples_per_prompt: int = 8
    temperature: float = 1.2
    epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 2e-5
    schedule: str = "cosine"
    weight_decay: float = 0.1
    pool: str = "all"
    require_finished: bool = True

    search: ClassVar[Mapping[str, Any]] = {**PolicyOptimizer.search, "epochs": (1, 6)}
    logs: ClassVar[Mapping[str, MetricSpec]] = {
        "targets": MetricSpec("winners learned from"),
        "targets_of_iteration_<v>": MetricSpec("how many of them each version sampled", "only the last: see `pool`"),
        "dropped_prompts": MetricSpec("prompts without a response that may win", "more than a few percent"),
        "reward_median": MetricSpec("median reward of the round's samples", better="up"),
        "best_mean": MetricSpec(
            "mean reward of this round's winners", "close to `reward_mean`: choosing gains nothing"
        ),
        "best_of_n_kl": MetricSpec("log n − (n − 1) / n, the KL that choosing the best of n costs", unit="nats"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in POOLS:
            raise ConfigError(
                f"pool={self.pool!r}", where="rejection_sampling", remedy=f"use one of {', '.join(POOLS)}"
            )

    @property
    def logprob_temperature(self) -> float:
        return 1.0  # it imitates text, whatever the temperature that text was sampled at

    def check_use(self, *, max_new_tokens: int, losses: Sequence[Any]) -> None:
        asked = {VOCABULARY[name].level for name in losses[0].tensor_names if name in VOCABULARY}
        if asked & {"pair", "group"}:
            raise ConfigError(
                f"loss {losses[0].name} compares responses, and each prompt has one winner",
                where="rejection_sampling",
                effect="There would be nothing to learn from.",
                remedy="use a loss of single responses, or online_dpo",
            )

    def terms(self) -> Mapping[str, Term]:
        return {"loss": Term(reduction="token")}

    def prepare(  # the engine passes what is named here
        self, groups: Groups, state: Mapping[str, Any], *, reward_name: str, history: Groups | None = None
    ) -> Batch:
        """The winners, one response for each prompt of the pool; on a tie the newer version's, then the first sample.

        Args:
            groups: this round's samples, scored.
            state: unused.
            reward_name: the reward being optimised.
            history: samples of earlier versions, scored by the current reward under the same name.

        Raises:
            NothingToLearnError: when no response may win.
        """
        now = winners(groups, reward_name, self.require_finished)
        older = Groups.from_rows([]) if history is None or self.pool == "none" else history
        old = winners(newest_first(older, self.pool == "last"), reward_name, self.require_finished)
        targets = compete([now, old], reward_name)
        if not len(targets):
            raise NothingToLearnError(
                f"of {groups.num_responses} responses none has a reward" + " and an end" * self.require_finished,
                where="rejection_sampling",
                effect="Learning from nothing was refused.",
                remedy="see why rewards are missing; raise the length limit, or set require_finished=False",
            )
        return Batch(targets, metrics=self._metrics(groups, now, targets, reward_name))

    def _metrics(self, groups: Groups, now: Groups, targets: Groups, reward_name: str) -> dict[str, float]:
        """This round's rewards, what the choice costs, and which version each target came from."""
        values, present = groups.rewards(reward_name)
        scores = [v for row, there in zip(values, present, strict=True) for v, ok in zip(row, there, strict=True) if ok]
        rivals = [sum(row) for row in eligible(groups, reward_name, self.require_finished)]
        versions = targets.column("iteration")
        metrics = {f"targets_of_iteration_{v}": float(versions.count(v)) for v in set(versions) if v is not None}
        metrics |= {"targets": float(len(targets)), "dropped_prompts": float(len(groups) - len(now))}
        if scores:
            metrics |= {"reward_mean": statistics.fmean(scores), "reward_median": statistics.median(scores)}
        if len(now):
            won, _ = now.rewards(reward_name)
            metrics["best_mean"] = statistics.fmean(v for (v,) in won)
            metrics["best_of_n_kl"] = statistics.fmean(best_of_n_kl(n) for n in rivals if n)
        return metrics


@hookimpl
def register_optimizers(register: Register) -> None:
    register("rejection_sampling", RejectionSampling)
