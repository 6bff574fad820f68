"""The suites: each a function that returns prompts to learn on, prompts kept back, and the truth about an answer."""

from __future__ import annotations

from alignkit.errors import ConfigError
from alignkit.suites import Suite
from alignkit.types import Groups
from alignkit_tasks import embedded as task
from alignkit_tasks.annotator import gold, gold_helpfulness, gold_safety


def embedded(*, kind: str = "small", prompts: int = 64, heldout: int = 64) -> Suite:
    """Short answers whose instructions a program checks; see `alignkit_tasks.embedded`.

    Args:
        kind: "small" for an instruct model; "tiny" for a byte-level model with random weights.
        prompts: how many to learn on.
        heldout: how many to measure on; their topics do not occur among the others.

    Raises:
        ConfigError: another kind.
    """
    if kind not in ("small", "tiny"):
        raise ConfigError(f"kind={kind!r}", where="suite embedded", remedy="use small or tiny")
    make = task.tiny_prompts if kind == "tiny" else task.prompts
    return Suite(
        prompts=Groups.from_prompts(make("train", prompts)),
        heldout=Groups.from_prompts(make("heldout", heldout)),
        scores={"gold": gold, "helpfulness": gold_helpfulness, "safety": gold_safety},
        max_new_tokens=16 if kind == "tiny" else 36,
    )
