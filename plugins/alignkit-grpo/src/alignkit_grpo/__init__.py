"""Policy gradients without a value model: `grpo`, `dapo`, `rloo`, `reinforce_pp`, and the loss they share."""

from __future__ import annotations

from alignkit.plugin import Register, hookimpl
from alignkit_grpo.dapo import DAPO
from alignkit_grpo.grpo import GRPO, group_advantages
from alignkit_grpo.reinforce_pp import ReinforcePP
from alignkit_grpo.rloo import RLOO, leave_one_out
from alignkit_grpo.surrogate import clipped_policy, reinforce

__all__ = ["DAPO", "GRPO", "RLOO", "ReinforcePP", "clipped_policy", "group_advantages", "leave_one_out", "reinforce"]


@hookimpl
def register_losses(register: Register) -> None:
    register("clipped_policy", clipped_policy)
    register("reinforce", reinforce)


@hookimpl
def register_optimizers(register: Register) -> None:
    register("grpo", GRPO)
    register("dapo", DAPO)
    register("rloo", RLOO)
    register("reinforce_pp", ReinforcePP)
