"""What a model says to a judge's question: the probabilities of labels, or a text; or why there is neither."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """The probabilities of a question's labels, or why there are none.

    Args:
        probs: of each label, as the model gave them, not normalised; None where the call failed.
        reason: of a failure, or of a judge's silence.
        by: "logprobs", or "sampled" where they are shares of draws.
    """

    probs: tuple[float, ...] | None
    reason: str | None = None
    by: str = "logprobs"

    @property
    def mass(self) -> float:
        """How much probability the labels have together."""
        return sum(self.probs or ())


@dataclass(frozen=True)
class Text:
    """A text that a model wrote, or why there is none.

    Args:
        text: may be empty; None where the call failed.
        reason: of a failure.
    """

    text: str | None
    reason: str | None = None
