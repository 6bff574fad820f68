"""Answering one conversation at a time, the text told while it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from alignkit.groups import Groups
from alignkit.models import Policy
from alignkit.randomness import stream_key
from alignkit.sampling.decode import Rule, tokens_of
from alignkit.sampling.sampler import Sampler

CUT = "\ufffd"
"""What a decoder gives for bytes whose character has not ended yet."""


class Voice:
    """A policy that answers; it keeps ready between answers, so it is a context.

    Args:
        policy: who answers.
        sampler: how; it is asked for a token at a time, so that another engine's `generate` is not used.
        seed: same seed, same answers: those of `sampler.sample` for the same conversation.
    """

    def __init__(self, policy: Policy, sampler: Sampler, seed: int = 0) -> None:
        self.policy, self.sampler, self.seed = policy, sampler, seed
        self._open = contextlib.ExitStack()
        self._reader: Any = None

    def __enter__(self) -> Self:
        self._reader = self._open.enter_context(self.policy.reading(hand_on=False))
        return self

    def __exit__(self, *why: object) -> None:
        self._open.close()

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """The answer, piece by piece; stop reading it, and it is not written on.

        Args:
            messages: the conversation before it.

        Raises:
            DataError: a conversation that does not fit, or that the chat template refuses.
        """
        asked = Groups.from_prompts([list(messages)])
        (ids,) = self.sampler.encoded(self.policy, asked)
        sampler, chat = self.sampler, self.policy.chat
        key = stream_key(self.seed, "chat", asked.column("prompt_id")[0], 0, 0)
        warp = sampler.warp if sampler.truncates else None
        rule = Rule(
            chat.end_ids, sampler.max_new_tokens, sampler.temperature, sampler.greedy, warp, self.policy.vocabulary
        )
        written, shown = list[int](), 0
        for token in tokens_of(self._reader, ids, key, rule):
            written.append(token)
            text = chat.decode(written)
            if not text.endswith(CUT):
                yield text[shown:]
                shown = len(text)
        yield chat.decode(written)[shown:]


__all__ = ["Voice"]
