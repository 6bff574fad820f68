"""Metrics of comparisons: how a reward model ranks pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import BinaryCalibrationError

from alignkit.errors import ConfigError
from alignkit.fields import check_value
from alignkit.groups import RATINGS
from alignkit.metrics.base import Metric
from alignkit.metrics.specs import COMPARISONS


class Accuracy(Metric):
    """Share of pairs that are ranked rightly (a tie is not), overall and by rating."""

    spec = COMPARISONS["accuracy"]
    right: Tensor
    pairs: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("right", "pairs"):
            self.add_state(name, torch.zeros(1 + len(RATINGS), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, chosen_rewards: Tensor, rejected_rewards: Tensor, rating: Tensor) -> None:
        """[pairs] each."""
        right = chosen_rewards.detach() > rejected_rewards.detach()
        levels = torch.stack([torch.ones_like(right), *(rating == number for number in range(len(RATINGS)))])
        self.right += (levels & right).sum(-1)
        self.pairs += levels.sum(-1)

    def compute(self) -> dict[str, Tensor]:
        """By rating, for the levels that there are pairs of; "" is overall."""
        levels = zip(("", *RATINGS), self.right, self.pairs, strict=True)
        return {name: right / pairs for name, right, pairs in levels if pairs}


class CalibrationError(Metric, BinaryCalibrationError):
    """Expected calibration error of σ(|chosen − rejected|) as the confidence that the preferred response is the chosen.

    Args:
        n_bins: equal bins of [0, 1]; the confidence lies in [1/2, 1), so half of them are used.
    """

    spec = COMPARISONS["calibration_error"]

    def __init__(self, n_bins: int = 15) -> None:
        check_value("n_bins", n_bins, int, "calibration_error")
        if n_bins < 1:
            raise ConfigError(f"n_bins={n_bins} must be positive", where="calibration_error")
        super().__init__(n_bins=n_bins)

    def update(self, chosen_rewards: Tensor, rejected_rewards: Tensor) -> None:  # type: ignore[override]
        """[pairs] each, raw scores."""
        difference = chosen_rewards.detach().float() - rejected_rewards.detach().float()
        # A confidence that rounds to 1 would stand beyond the last bin.
        confidence = torch.sigmoid(difference.abs()).clamp(max=1 - 2**-24)
        super().update(confidence, (difference > 0).long())
        self.accuracies[-1] = self.accuracies[-1].float()  # an idle process brings an empty float tensor

    def compute(self) -> Any:
        return super().compute() if len(self.confidences) else {}
