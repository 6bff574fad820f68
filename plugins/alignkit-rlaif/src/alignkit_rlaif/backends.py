"""Who answers a judge's questions: what is asked of a model, whether it runs here or behind an endpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from alignkit.plugin import answers_folder
from alignkit_rlaif.answers import Answer, Text
from alignkit_rlaif.endpoint import Endpoint, is_url
from alignkit_rlaif.prompts import Question


class Backend(Protocol):
    """A model that answers questions."""

    def ask(self, questions: Sequence[Question], seed: int, tolerated: float = math.inf) -> list[Answer]:
        """The probabilities of each question's labels, in order.

        Args:
            questions: different ones.
            seed: of what is drawn.
            tolerated: how many may fail; once more have, the rest need not be asked.
        """

    def write(
        self, questions: Sequence[Question], max_new_tokens: int, seed: int, tolerated: float = math.inf
    ) -> list[Text]:
        """A text in reply to each question (a chain of thought), in order; the arguments are those of `ask`."""

    def release(self) -> None:
        """Give memory and connections back."""


def open_backend(model: Any, endpoint: dict[str, Any], cache: str | None = None) -> Backend:
    """The backend of a model: an endpoint for a URL or an `Endpoint`, a local model for everything else.

    Args:
        model: see `Judge`.
        endpoint: arguments of `Endpoint` where `model` is a URL.
        cache: folder in which an endpoint's answers are kept; None for the run's own, "" for none.
    """
    where = Endpoint(model, **endpoint) if is_url(model) else model
    if isinstance(where, Endpoint):
        from alignkit_rlaif.http import HttpBackend

        kept = answers_folder() if cache is None else cache
        return HttpBackend(where, str(kept) if kept else None)
    from alignkit_rlaif.local import LocalBackend

    return LocalBackend(model)


def identity_of(model: Any, endpoint: dict[str, Any]) -> Any:
    """What identifies a model in a stage's key: an endpoint by its address and name, a local model by its weights."""
    where = Endpoint(model, **endpoint) if is_url(model) else model
    if isinstance(where, Endpoint):
        return where.key()
    from alignkit_rlaif.local import digest_of

    return digest_of(model)
