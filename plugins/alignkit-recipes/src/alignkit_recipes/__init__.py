"""Recipes: pipelines that name methods."""

from __future__ import annotations

from alignkit.plugin import Register, hookimpl


@hookimpl
def register_recipes(register: Register) -> None:
    from alignkit_recipes import instructgpt, llama2, method

    register("instructgpt", instructgpt.main)
    register("llama2", llama2.main)
    register("method", method.main)
