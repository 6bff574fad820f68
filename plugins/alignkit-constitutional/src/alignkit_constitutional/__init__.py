"""Constitutional AI: principles in words stand in for human labels of harm (Bai et al. 2022, arXiv 2212.08073)."""

from __future__ import annotations

from alignkit.plugin import Register, hookimpl
from alignkit_constitutional.constitution import Constitution, read_constitution
from alignkit_constitutional.critique_revise import CritiqueRevise


@hookimpl
def register_transforms(register: Register) -> None:
    register("critique_revise", CritiqueRevise)


@hookimpl
def register_recipes(register: Register) -> None:
    from alignkit_constitutional import recipe

    register("constitutional", recipe.main)


__all__ = ["Constitution", "CritiqueRevise", "read_constitution"]
