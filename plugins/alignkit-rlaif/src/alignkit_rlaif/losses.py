"""The loss of a reward model on soft labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def soft_ranking(chosen_rewards: Tensor, rejected_rewards: Tensor, preference_prob: Tensor) -> Tensor:
    """-p log sigmoid(r_c - r_r) - (1 - p) log sigmoid(r_r - r_c): cross-entropy with the judge's soft label.

    RLAIF (Lee et al. 2023) and Constitutional AI (Bai et al. 2022, section 4.1). p = 1 is pairwise
    ranking; p = 1/2 has no gradient where the scores are equal and pulls them together elsewhere.

    Args:
        chosen_rewards: [pairs], raw scores.
        rejected_rewards: [pairs], raw scores.
        preference_prob: [pairs], probability that the chosen response is better; 1 where the data gives none.
    """
    from alignkit.plugin import check_shapes, preference_cross_entropy  # a recipe is explained without PyTorch

    check_shapes(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards, preference_prob=preference_prob)
    return preference_cross_entropy(chosen_rewards - rejected_rewards, preference_prob)
