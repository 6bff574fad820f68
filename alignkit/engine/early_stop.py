"""Stopping early: the reward on held-out prompts after every round, and the best round's weights put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignkit.engine.judging import scored_once
from alignkit.engine.setting import Setting
from alignkit.errors import DataError
from alignkit.groups import Groups
from alignkit.models import Policy
from alignkit.rewards import Reward
from alignkit.sampling import Drawing


@dataclass
class EarlyStop:
    """Watches the held-out reward.

    Args:
        drawing: samples from the policy that is trained.
        reward: what scores the responses.
        heldout: prompts, or None: nothing is watched.
        patience: rounds without a better held-out reward before stopping; 0 never stops.
        setting: where.
        best_reward: the best round's mean.
        best_scores: its rewards by prompt, None where one is missing: a later round is compared on the prompts that
            have a reward in both, or a prompt that fails now and then would decide which is best.
        best_round: when it was.
        best_weights: trained parameters of the policy and of a separate value model, as they were then.
        best_state: of the method, as it was then.
        value_model: a separate one, or None.
    """

    drawing: Drawing
    reward: Reward | None
    heldout: Groups | None
    patience: int
    setting: Setting
    best_reward: float = -float("inf")
    best_scores: list[float | None] = field(default_factory=list)
    best_round: int | None = None
    best_weights: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    best_state: Mapping[str, Any] = field(default_factory=dict)
    value_model: Policy | None = None

    def over(self, index: int, state: Mapping[str, Any] | None = None) -> bool:
        """Sample and score one response per held-out prompt; whether patience is over.

        A round after which the budget might not pay for all of them is not measured.

        Args:
            index: of the round.
            state: of the method, after it.

        Raises:
            DataError: no response has a reward.
        """
        if self.heldout is None or self.reward is None:
            return False
        if self.setting.spending.exceeded_by(self._most()):
            return False
        label = self.setting.label(index)
        groups = self.drawing.draw(
            self.heldout, 1, seed=(*self.setting.seed, "heldout"), what=f"{label} held-out prompts"
        )
        values, present = scored_once(groups, self.reward, self.setting).rewards(self.reward.name)
        scores = [v[0] if p[0] else None for v, p in zip(values, present, strict=True)]
        kept = [score for score in scores if score is not None]
        if not kept:
            raise DataError("every held-out reward is missing", where=f"round {index}", remedy="mend the reward")
        mean = sum(kept) / len(kept)
        self.setting.say(f"{label}: held-out reward {mean:.3f}")
        if self.best_round is None or self._better(scores):
            self.best_reward, self.best_round, self.best_state = mean, index, dict(state or {})
            self.best_scores = scores
            self.best_weights = [(p, p.detach().clone()) for p in self._trained()] if self.patience else []
        return bool(self.patience) and index - self.best_round >= self.patience

    def _better(self, scores: list[float | None]) -> bool:
        """Whether they are above the best round's, on the prompts that both have a reward of."""
        both = zip(scores, self.best_scores, strict=True)
        return sum(now - best for now, best in both if now is not None and best is not None) > 0

    def _trained(self) -> Iterator[Tensor]:
        """The parameters that the rounds change: what one round leaves behind belongs together."""
        for model in (self.drawing.policy, self.value_model):
            yield from (p for p in (model.parameters() if model is not None else ()) if p.requires_grad)

    def _most(self) -> dict[str, int]:
        """What a measurement may cost at most."""
        if self.heldout is None or not self.setting.spending.limits:
            return {}
        return {**self.drawing.most(len(self.heldout), 1), "reward_calls": len(self.heldout)}

    @torch.no_grad()
    def restore_best(self) -> int | None:
        """Put the weights of the best held-out round back, the value model's too; returns that round, or None where
        none is kept."""
        if self.best_round is None or not self.patience:
            return None
        for parameter, best in self.best_weights:
            parameter.copy_(best)
        return self.best_round
