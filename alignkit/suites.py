"""Suites: a problem to align on, with the truth about an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignkit.groups import Groups


@dataclass(frozen=True)
class Suite:
    """What a registered suite returns.

    Args:
        prompts: to learn on.
        heldout: to measure on.
        scores: name -> reward or plain function; the first is the truth that a report leads with, and what a verifiable
            reward is.
        max_new_tokens: longest answer.
        doc: what it is, for reports.
    """

    prompts: Groups
    heldout: Groups
    scores: Mapping[str, Any]
    max_new_tokens: int = 128
    doc: str = ""
