"""Reinforced self-training (`rest`), its recipe, and distillation from a larger policy's best samples (`distill`)."""

from __future__ import annotations

from alignkit.plugin import Register, hookimpl
from alignkit_rest.rest import ReST, distinct, threshold_at

__all__ = ["ReST", "distinct", "threshold_at"]


@hookimpl
def register_optimizers(register: Register) -> None:
    register("rest", ReST)


@hookimpl
def register_recipes(register: Register) -> None:
    from alignkit_rest import recipes

    register("rest", recipes.rest)
    register("distill", recipes.distill)
