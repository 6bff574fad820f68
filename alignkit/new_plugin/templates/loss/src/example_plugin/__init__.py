"""A loss of comparisons for reward models: the squared hinge of how far apart the two scores are."""

from __future__ import annotations

import math

from torch import Tensor

from alignkit.plugin import ConfigError, Register, hookimpl


def example_component(chosen_rewards: Tensor, rejected_rewards: Tensor, *, width: float = 1.0) -> Tensor:
    """max(0, width - (r_chosen - r_rejected))^2, one value per comparison.

    Args:
        chosen_rewards: [pairs] raw scores of the preferred responses.
        rejected_rewards: [pairs] of the others.
        width: how far apart the scores should be, in units of the reward; above 0.

    Raises:
        ConfigError: `width` is not above 0, or infinite.
    """
    if not 0 < width < math.inf:
        raise ConfigError(f"width={width} must be above 0 and finite", where="example_component")
    return (width - (chosen_rewards - rejected_rewards)).clamp(min=0) ** 2


@hookimpl
def register_losses(register: Register) -> None:
    register("example_component", example_component)
