"""A suite: prompts to learn on, others to measure on, and the truth about an answer."""

from __future__ import annotations

import itertools

from alignkit.plugin import ConfigError, Groups, Register, Suite, hookimpl

THINGS = ("a door", "a lamp", "a river", "a spoon", "a tower", "a wheel", "a glove", "a drum", "a ladder", "a shell")
QUALITIES = ("green", "old", "heavy", "broken", "new", "small", "wet", "loud", "cheap", "strange")


def vowels(response: str) -> float:
    """The share of vowels among an answer's characters: the truth of this suite."""
    return sum(letter in "aeiou" for letter in response) / max(len(response), 1)


def example_component(*, prompts: int = 32, heldout: int = 16) -> Suite:
    """Answers made of vowels: something that a model of random weights can learn within a minute.

    Args:
        prompts: how many there are to learn on.
        heldout: how many others there are to measure on.

    Raises:
        ConfigError: there are not as many, or none is asked for.
    """
    every = [f"Say something {quality} about {thing}." for quality, thing in itertools.product(QUALITIES, THINGS)]
    if not (prompts > 0 and heldout > 0 and prompts + heldout <= len(every)):
        raise ConfigError(f"{prompts} + {heldout} prompts, there are {len(every)}", where="example_component")
    return Suite(
        prompts=Groups.from_prompts(every[:prompts]),
        heldout=Groups.from_prompts(every[-heldout:]),
        scores={"vowels": vowels},
        max_new_tokens=8,
        doc="Answers made of vowels.",
    )


@hookimpl
def register_suites(register: Register) -> None:
    register("example_component", example_component)
