"""Learning from preferences without a reward model: DPO and its relatives, offline and online, and KTO.

`losses` holds the losses of comparisons, `optimizers` the optimizers `dpo` and `online_dpo`, `kto` the method that
needs no pairs, with its loss and its baseline.
"""

from __future__ import annotations

from alignkit.plugin import Register, hookimpl
from alignkit_dpo.kto import KTO, kto, label_statistics
from alignkit_dpo.losses import PAIR_LOSSES, chosen_nll, preference_statistics
from alignkit_dpo.optimizers import DPO, OnlineDPO

__all__ = ["DPO", "KTO", "PAIR_LOSSES", "OnlineDPO", "kto"]


@hookimpl
def register_losses(register: Register) -> None:
    for name, loss in (PAIR_LOSSES | {"kto": kto}).items():
        register(name, loss)
    for further in (chosen_nll, preference_statistics, label_statistics):
        register(further.__name__, further)


@hookimpl
def register_optimizers(register: Register) -> None:
    register("dpo", DPO)
    register("online_dpo", OnlineDPO)
    register("kto", KTO)
