"""A reward that a program can give: short answers."""

from __future__ import annotations

from alignkit.plugin import ConfigError, Register, hookimpl


def example_component(response: str, *, words: int = 12) -> float | None:
    """1 for an answer of at most `words` words, then words / length; missing for an empty one.

    Args:
        response: the answer's text; `prompt`, `messages`, `finished`, `tags`, `meta`, `prompt_id` may be named too.
        words: above 0.

    Raises:
        ConfigError: `words` is not above 0.
    """
    if not words > 0:
        raise ConfigError(f"words={words} must be above 0", where="example_component")
    length = len(response.split())
    return min(1.0, words / length) if length else None


@hookimpl
def register_rewards(register: Register) -> None:
    register("example_component", example_component)
