"""The annotator `gold`: ranks by a reward that is held to be the truth, and errs as people do.

AlpacaFarm (Dubois et al. 2023, arXiv 2305.14387), section 3: simulated annotators agree with people's variability only
when labels are flipped at random, 25 per cent of them; without that noise no over-optimisation shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignkit.plugin import (
    Annotator,
    Component,
    ConfigError,
    DataError,
    FunctionReward,
    Groups,
    Reward,
    build,
    check_values,
    class_code,
    plain,
    rank_by_reward,
    stream_key,
    uniforms,
)
from alignkit_rlaif.verdicts import rating_of

COLUMN = "gold annotator"
"""Under which the perturbed truth travels while responses are ranked; it is not left in the answer."""


@dataclass(frozen=True)
class Gold(Annotator):
    """Ranks by a reward, with noise.

    Args:
        reward: the truth: a `Reward`, a plain function, or a registered reward by name.
        noise: probability that a comparison is turned round after it was made; of pairs only.
        temperature: T of a Bradley-Terry choice, P(a over b) = sigmoid((r_a - r_b) / T), in units of the reward; with
            more than two responses a Plackett-Luce ranking. 0 takes the higher reward, and equal ones tie.
        soft: give the probability of the choice instead of one draw of it (`preference_prob`; of pairs only).
        dimension: of the annotation.
    """

    reward: Any
    noise: float = 0.25
    temperature: float = 0.0
    soft: bool = False
    dimension: str = "preference"

    def __post_init__(self) -> None:
        check_values(self)
        object.__setattr__(self, "dimensions", (self.dimension,))
        if not 0 <= self.noise < 0.5 or self.temperature < 0:
            raise ConfigError(
                f"noise={self.noise} must be in [0, 0.5), temperature={self.temperature} not negative", where="gold"
            )

    def key(self) -> Any:
        fields = {"noise": self.noise, "temperature": self.temperature, "soft": self.soft, "dimension": self.dimension}
        return {"gold": {**fields, "reward": plain(self.truth())}, **class_code(type(self))}

    def truth(self) -> Reward:
        """The reward itself."""
        named = isinstance(self.reward, (str, Component))
        built = build("reward", self.reward) if named else self.reward
        return built if isinstance(built, Reward) else FunctionReward(built)

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        """Rank each group; responses without the reward are left out, and groups with fewer than two that have it.

        Raises:
            DataError: noise or soft labels asked for more than two responses.
        """
        truth = self.truth()
        scores = truth.score(groups)
        truth.release()
        drawn = [
            self._draw(row, values, i, seed) for i, (row, values) in enumerate(zip(groups, scores.values, strict=True))
        ]
        ranked = rank_by_reward(groups.with_rewards(COLUMN, drawn), COLUMN) if len(groups) else groups
        truths = iter([[v for v in values if v is not None] for values in scores.values if _rated(values)])
        return {
            self.dimension: Groups.from_rows(
                [self._labelled(row, next(truths), seed, i) for i, row in enumerate(ranked)]
            )
        }

    def _draw(
        self, row: Mapping[str, Any], values: Sequence[float | None], index: int, seed: int
    ) -> list[float | None]:
        """The rewards in units of T, each with Gumbel noise: their order is a Plackett-Luce sample."""
        if not self.temperature or self.soft:
            return list(values)
        key = stream_key(seed, "gold", row["prompt_id"], index)
        draws = uniforms(np.full(len(values), key, dtype=np.uint64), np.arange(len(values)))
        gumbel = [-math.log(-math.log(max(u, 2.0**-53))) for u in draws]
        return [None if v is None else v / self.temperature + g for v, g in zip(values, gumbel, strict=True)]

    def _prob(self, truth: Sequence[float]) -> float:
        """P(the first of two is chosen), before it is turned round."""
        gap = truth[0] - truth[1]
        if self.temperature:
            return 0.5 + 0.5 * math.tanh(gap / self.temperature / 2)
        return 0.5 if gap == 0 else float(gap > 0)

    def _labelled(self, row: dict[str, Any], truth: Sequence[float], seed: int, index: int) -> dict[str, Any]:
        shown = [r for r in row["rewards"] if r["name"] != COLUMN] or None
        row = {**row, "rewards": shown, "dimension": self.dimension, "rating": None, "preference_prob": None}
        if len(truth) > 2:
            if self.noise or self.soft:
                raise DataError(
                    f"{len(truth)} responses", where="gold", remedy="set noise=0 and soft=False, and a temperature"
                )
            return row
        prob = self._prob(truth)
        if self.soft:
            prob = prob * (1 - self.noise) + (1 - prob) * self.noise
            row |= {"ranks": [1 + (prob < 0.5), 1 + (prob > 0.5)], "preference_prob": max(prob, 1 - prob)}
        elif (
            float(uniforms(np.array([stream_key(seed, "flip", row["prompt_id"], index)], dtype=np.uint64), 0)[0])
            < self.noise
        ):
            row |= {"ranks": row["ranks"][::-1]}
        return row | ({"rating": rating_of(prob)} if self.temperature else {})


def _rated(values: Sequence[float | None]) -> bool:
    return sum(value is not None for value in values) > 1
