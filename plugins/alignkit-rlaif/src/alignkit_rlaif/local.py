"""A judge that runs here: log-probs of its labels from one forward pass, the question computed once for all labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from alignkit import PolicyHandle
from alignkit.plugin import (
    ChatFormat,
    ConfigError,
    DataError,
    Groups,
    Policy,
    Sampler,
    is_tiny,
    model_digest,
    response_logprobs,
)
from alignkit_rlaif.answers import Answer, Text
from alignkit_rlaif.prompts import Question

MAX_PROMPT = 4096
"""Tokens of the longest question with its answer; a longer one is not cut but unanswered."""


def digest_of(model: Any) -> Any:
    """What identifies a local model: the stage of a handle, the weights of a live policy, the files of a folder."""
    return model.to_json() if isinstance(model, PolicyHandle) else model_digest(model)


def written_out(chat: ChatFormat, lead: str, labels: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """How a tokenizer writes the labels after `lead`: (the ids before them, for each label the ids of its own).

    A label follows a lead after one space. Whether the tokenizer writes " 1" as one token or as a space and "1", the
    whole text is tokenised, and what all labels have in common at the front belongs to the question.
    """
    ids = [chat.encode_response(f"{lead} {label}" if lead else label)[:-1] for label in labels]
    shortest = min(map(len, ids)) - 1
    common = next((i for i in range(shortest) if len({each[i] for each in ids}) > 1), shortest)
    return ids[0][:common], [each[common:] for each in ids]


def verdict_ids(chat: ChatFormat, lead: str, labels: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The ids of verdict labels: (the ids of the lead, for each label the tokens that stand for it).

    A label may be written bare or after a space; each way in which it is a single token counts, and their
    probabilities add up.

    Raises:
        ConfigError: a label that is not one token, or two labels that share one.
    """
    shared, after = written_out(chat, lead, labels)
    found: list[list[int]] = []
    for label, own in zip(labels, after, strict=True):
        bare, spaced = (chat.encode_response(text)[:-1] for text in (label, f" {label}"))
        if len(own) != 1 or len(bare) != 1 or (len(spaced) != 1 and spaced[-1:] != bare):
            raise ConfigError(
                f"the label {label!r} is {len(own)} tokens after {lead!r}, {len(bare)} alone and {len(spaced)} after "
                "a space",
                where="judge",
                effect="Its log-prob would not be that of the verdict.",
                remedy="give labels that are one token of the judge's tokenizer",
            )
        found.append(list(dict.fromkeys([*own, *bare, *(spaced if len(spaced) == 1 else [])])))
    flat = [i for ids in found for i in ids]
    if len(set(flat)) != len(flat):
        raise ConfigError(f"the labels {list(labels)} share a token", where="judge", remedy="give distinct labels")
    return shared, found


class LocalBackend:
    """Asks a `Policy`.

    Args:
        model: a specification for `Policy.load`, a `PolicyHandle` or a live `Policy`.
        max_tokens: cells of a micro-batch.
    """

    def __init__(self, model: Any, max_tokens: int = 4096) -> None:
        self.given, self.max_tokens = model, max_tokens
        self._policy: Policy | None = model if isinstance(model, Policy) else None
        self._known: dict[Any, tuple[list[int], list[list[list[int]]]]] = {}

    @property
    def policy(self) -> Policy:
        """The live model, loaded when first used, onto the first GPU where there is one."""
        if self._policy is None:
            loaded = self.given.load() if isinstance(self.given, PolicyHandle) else Policy.load(self.given)
            self._policy = loaded.to("cuda" if torch.cuda.is_available() else "cpu")
        return self._policy

    def release(self) -> None:
        """Give the memory back; a live policy stays the caller's."""
        if not isinstance(self.given, Policy):
            self._policy = None

    def ask(self, questions: Sequence[Question], seed: int = 0, tolerated: float = math.inf) -> list[Answer]:
        """The probabilities of each question's labels; `seed` is unused, nothing is drawn, and a failure costs nothing.

        A label of several tokens counts by the probability of all of them in a row, less that of the longer labels
        which begin with it ("1" is not "10"; "100" is part of "10" and not taken from "1" again).
        """
        answers: dict[int, Answer] = {}
        encoded: dict[int, tuple[list[int], list[list[int]]]] = {}
        for number, question in enumerate(questions):
            try:
                encoded[number] = self._encode(question)
            except DataError as error:
                answers[number] = Answer(None, f"not encoded: {error.what}")
        prompts, labels = [prompt for prompt, _ in encoded.values()], [after for _, after in encoded.values()]
        found = response_logprobs(self.policy, prompts, labels, self.max_tokens) if encoded else []
        for (number, (_, after)), sums in zip(encoded.items(), found, strict=True):
            answers[number] = self._answer(questions[number], after, sums)
        return [answers[number] for number in range(len(questions))]

    def write(
        self, questions: Sequence[Question], max_new_tokens: int, seed: int = 0, tolerated: float = math.inf
    ) -> list[Text]:
        """The likeliest text in reply to each question, token by token (as RLAIF does); none where one is too long."""
        reasons = [
            self._too_long(len(self.policy.chat.encode_prompt(question.messages)), max_new_tokens)
            for question in questions
        ]
        sampler = Sampler(greedy=True, max_new_tokens=max_new_tokens, max_prompt_tokens=self.limit)
        prompts = [list(q.messages) for q, reason in zip(questions, reasons, strict=True) if reason is None]
        drawn = sampler.sample(self.policy, Groups.from_prompts(prompts), seed=(seed, "judge")) if prompts else ()
        texts = iter([row["responses"][0].strip() for row in drawn])
        return [Text(next(texts)) if reason is None else Text(None, f"not encoded: {reason}") for reason in reasons]

    @property
    def limit(self) -> int:
        """Tokens of a question with what is written after it: what the model has positions for, `MAX_PROMPT` at most.

        The tiny model has fewer positions than a question has bytes; its weights are random and know none.
        """
        positions = getattr(self.policy.model.config, "max_position_embeddings", None)
        return MAX_PROMPT if positions is None or is_tiny(self.policy.chat) else min(MAX_PROMPT, positions)

    def _too_long(self, prompt: int, written: int) -> str | None:
        if prompt + written <= self.limit:
            return None
        return f"the question has {prompt} tokens where {self.limit - written} are allowed"

    def _spellings(self, question: Question) -> tuple[list[int], list[list[list[int]]]]:
        """(ids of the lead, for each label its spellings as lists of ids)."""
        key = (question.lead, question.labels)
        if key not in self._known:
            if len(question.labels) == 2:
                lead, found = verdict_ids(self.policy.chat, *key)
                self._known[key] = lead, [[[i] for i in ids] for ids in found]
            else:
                lead, whole = written_out(self.policy.chat, *key)
                self._known[key] = lead, [[ids] for ids in whole]
        return self._known[key]

    def _encode(self, question: Question) -> tuple[list[int], list[list[int]]]:
        """(ids of the question with the lead, ids of each spelling of each label)."""
        lead, spellings = self._spellings(question)
        prompt = self.policy.chat.encode_prompt(question.messages)
        after = [ids for label in spellings for ids in label]
        reason = self._too_long(len(prompt), len(lead) + max(map(len, after)))
        if reason is not None:
            raise DataError(reason)
        return [*prompt, *lead], after

    def _answer(self, question: Question, labels: Sequence[list[int]], sums: Sequence[float]) -> Answer:
        if not all(math.isfinite(value) for value in sums):
            return Answer(None, "the model gave log-probs that are not finite")
        _, spellings = self._spellings(question)
        begun = {tuple(ids): math.exp(value) for ids, value in zip(labels, sums, strict=True)}
        own = dict(begun)
        for ids, prob in begun.items():
            shorter = next((ids[:n] for n in range(len(ids) - 1, 0, -1) if ids[:n] in begun), None)
            if shorter is not None:
                own[shorter] -= prob
        values = (max(own[tuple(ids)], 0.0) for ids in labels)
        return Answer(tuple(sum(next(values) for _ in label) for label in spellings))
