"""Recipes: pipelines that name methods, and the annotator of their embedded task."""

from __future__ import annotations

from alignkit import hookimpl
from alignkit.plugins.hookspecs import Register


@hookimpl
def register_recipes(register: Register) -> None:
    from alignkit_recipes import llama2

    register("llama2", llama2.main)


@hookimpl
def register_annotators(register: Register) -> None:
    from alignkit_recipes.annotator import VerifiableAnnotator

    register("verifiable", VerifiableAnnotator)
