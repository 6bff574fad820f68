"""Who answers a judge's questions: what is asked of a model, whether it runs here or behind an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from alignkit_rlaif.answers import Answer, Text
from alignkit_rlaif.endpoint import Endpoint, is_url
from alignkit_rlaif.prompts import Question


class Backend(Protocol):
    """A model that answers questions."""

    def ask(self, questions: Sequence[Question], seed: int) -> list[Answer]:
        """The probabilities of each question's labels, in order."""

    def write(self, questions: Sequence[Question], max_new_tokens: int, seed: int) -> list[Text]:
        """A text in reply to each question (a chain of thought), in order."""

    def release(self) -> None:
        """Give memory and connections back."""


def open_backend(model: Any, endpoint: dict[str, Any], cache: str | None = None) -> Backend:
    """The backend of a model: an endpoint for a URL or an `Endpoint`, a local model for everything else.

    Args:
        model: see `Judge`.
        endpoint: arguments of `Endpoint` where `model` is a URL.
        cache: folder in which an endpoint's answers are kept; None keeps none.
    """
    where = Endpoint(model, **endpoint) if is_url(model) else model
    if isinstance(where, Endpoint):
        from alignkit_rlaif.http import HttpBackend

        return HttpBackend(where, cache)
    from alignkit_rlaif.local import LocalBackend

    return LocalBackend(model)


def identity_of(model: Any, endpoint: dict[str, Any]) -> Any:
    """What identifies a model in a stage's key: an endpoint by its address and name, a local model by its weights."""
    where = Endpoint(model, **endpoint) if is_url(model) else model
    if isinstance(where, Endpoint):
        return where.key()
    from alignkit_rlaif.local import digest_of

    return digest_of(model)
