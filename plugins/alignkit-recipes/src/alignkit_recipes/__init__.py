"""Recipes: pipelines that name methods."""

from __future__ import annotations

from alignkit import hookimpl
from alignkit.plugins.hookspecs import Register


@hookimpl
def register_recipes(register: Register) -> None:
    from alignkit_recipes import llama2, method

    register("llama2", llama2.main)
    register("method", method.main)
