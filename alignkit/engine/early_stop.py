"""Stopping early: the reward on held-out prompts after every round, and the best round's weights put back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignkit.engine.judging import scored_once
from alignkit.engine.setting import Setting
from alignkit.errors import DataError
from alignkit.groups import Groups
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
        best_reward: the best mean so far.
        best_round: when it was.
        best_weights: trained parameters by name, as they were then.
    """

    drawing: Drawing
    reward: Reward | None
    heldout: Groups | None
    patience: int
    setting: Setting
    best_reward: float = -float("inf")
    best_round: int | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def over(self, index: int) -> bool:
        """Sample and score one response per held-out prompt; whether patience is over.

        A round after which the budget might not pay for all of them is not measured.

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
        kept = [v[0] for v, p in zip(values, present, strict=True) if p[0]]
        if not kept:
            raise DataError("every held-out reward is missing", where=f"round {index}", remedy="mend the reward")
        mean = sum(kept) / len(kept)
        self.setting.say(f"{label}: held-out reward {mean:.3f}")
        if self.best_round is None or mean > self.best_reward:
            trained = self.drawing.policy.named_parameters() if self.patience else ()
            self.best_reward, self.best_round = mean, index
            self.best_weights = {n: p.detach().clone() for n, p in trained if p.requires_grad}
        return bool(self.patience) and index - self.best_round >= self.patience

    def _most(self) -> dict[str, int]:
        """What a measurement may cost at most."""
        if self.heldout is None or not self.setting.spending.limits:
            return {}
        return {**self.drawing.most(len(self.heldout), 1), "reward_calls": len(self.heldout)}

    @torch.no_grad()
    def restore_best(self) -> int | None:
        """Put the weights of the best held-out round back; returns that round, or None where none is kept."""
        if self.best_round is None or not self.patience:
            return None
        for name, parameter in self.drawing.policy.named_parameters():
            if name in self.best_weights:
                parameter.copy_(self.best_weights[name])
        return self.best_round
