"""A judge behind an OpenAI-compatible endpoint. Its replies are untrusted bytes: parsed strictly, bounded in size and
time, and whatever is wrong with one makes the answer missing, never a number.

Where the server gives log-probs, one call is one answer. Where it gives none (`transformers serve` ignores the field),
the verdict is drawn several times and counted.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from alignkit.plugin import derived_seed, stream_key, strict_json, uniforms
from alignkit_rlaif.answers import Answer, Text
from alignkit_rlaif.endpoint import Endpoint, is_loopback
from alignkit_rlaif.kept import Kept
from alignkit_rlaif.prompts import Question
from alignkit_rlaif.replies import (
    CallFailed,
    Refused,
    TryAgain,
    Unreachable,
    check_status,
    content_of,
    label_said,
    logprob_answer,
    nested,
)

logger = logging.getLogger("alignkit.rlaif")

FIRST_WAIT = 0.5
"""Seconds before the first retry; doubled for each further one."""
GIVE_UP_AFTER = 8
"""Calls in a row without a reply after which the rest is not made: an endpoint that is down costs minutes, not days."""


class HttpBackend:
    """Asks an endpoint.

    Args:
        endpoint: where, and how patiently.
        cache: folder in which answers are kept (see `Kept`); None keeps none.
    """

    def __init__(self, endpoint: Endpoint, cache: str | None = None) -> None:
        self.endpoint = endpoint
        self.kept = None if cache is None else Kept(cache, endpoint)
        self.gives_logprobs = {"yes": True, "no": False}.get(endpoint.logprobs)  # None: not known yet
        self.calls = 0
        self._in_a_row = 0

    def release(self) -> None:
        """Nothing is kept open between calls."""

    def ask(self, questions: Sequence[Question], seed: int = 0) -> list[Answer]:
        """The probabilities of each question's labels, from log-probs or from draws."""

        async def one(client: httpx.AsyncClient, question: Question) -> Answer:
            answer = await self._answer(client, question, seed)
            if self.kept is not None:
                self.kept.keep_answer(answer, question, seed)
            return answer

        known = [self.kept.answer(question, seed) if self.kept else None for question in questions]
        return self._completed(questions, known, one, _failure)

    def write(self, questions: Sequence[Question], max_new_tokens: int, seed: int = 0) -> list[Text]:
        """A text in reply to each question; one far longer than asked for is a failed call."""
        most = 32 * max_new_tokens

        async def one(client: httpx.AsyncClient, question: Question) -> Text:
            body = self._body(question, max_new_tokens, temperature=0.0)
            text = content_of(await self._call(client, body, (seed, question.key, "thought"))).strip()
            if len(text) > most:
                raise CallFailed(f"the text has {len(text)} characters where {most} are allowed")
            if self.kept is not None:
                self.kept.keep_text(text, question, max_new_tokens)
            return Text(text)

        texts = [self.kept.text(question, max_new_tokens) if self.kept else None for question in questions]
        known = [None if text is None else Text(text) for text in texts]
        return self._completed(questions, known, one, lambda reason: Text(None, reason))

    def _completed(self, questions: Sequence[Question], known: Sequence[Any], one: Any, failure: Any) -> list[Any]:
        """What is known, and what is not known asked for."""
        wanted = [question for question, found in zip(questions, known, strict=True) if found is None]
        asked = iter(_run(self._each(wanted, one, failure)) if wanted else [])
        return [next(asked) if found is None else found for found in known]

    # -- one question --------------------------------------------------------------------------------------------------

    async def _each(self, questions: Sequence[Question], one: Any, failure: Any) -> list[Any]:
        """`one(client, question)` for each, a few at a time; `failure(reason)` where it fails."""
        self._in_a_row = 0  # a server that was down in the pass before may be up again
        host = urlsplit(self.endpoint.url).hostname or ""
        limits = httpx.Limits(max_connections=self.endpoint.workers)
        outside = not is_loopback(host)  # proxies of the environment are for other machines
        gate = asyncio.Semaphore(self.endpoint.workers)

        async def guarded(client: httpx.AsyncClient, question: Question) -> Any:
            async with gate:
                if self._in_a_row >= GIVE_UP_AFTER:
                    return failure(f"not asked, after {GIVE_UP_AFTER} calls in a row without a reply")
                try:
                    found = await one(client, question)
                except CallFailed as error:
                    self._in_a_row = self._in_a_row + 1 if isinstance(error, Unreachable) else 0
                    return failure(str(error))
                self._in_a_row = 0
                return found

        async with httpx.AsyncClient(
            headers=self.endpoint.headers(), follow_redirects=False, timeout=None, limits=limits, trust_env=outside
        ) as client:
            first = [await guarded(client, questions[0])]  # alone: it may find out that there are no log-probs
            return first + list(await asyncio.gather(*(guarded(client, q) for q in questions[1:])))

    async def _answer(self, client: httpx.AsyncClient, question: Question, seed: int) -> Answer:
        if self.gives_logprobs is not False and not nested(question.labels):
            try:
                found = await self._by_logprobs(client, question, seed)
            except Refused:
                if self.gives_logprobs:
                    raise
                found = None
            if found is not None:
                self.gives_logprobs = True
                return found
            if self.gives_logprobs:
                raise CallFailed("the reply has no log-probs")
        answer = await self._by_draws(client, question, seed)
        if self.gives_logprobs is None and not nested(question.labels):
            logger.warning("the endpoint gives no log-probs: verdicts are drawn %d times", self.endpoint.draws)
            self.gives_logprobs = False
        return answer

    async def _by_logprobs(self, client: httpx.AsyncClient, question: Question, seed: int) -> Answer | None:
        body = self._body(question, 1, temperature=1.0) | {"logprobs": True, "top_logprobs": 20}
        return logprob_answer(await self._call(client, body, (seed, question.key)), question.labels)

    async def _by_draws(self, client: httpx.AsyncClient, question: Question, seed: int) -> Answer:
        """The share of draws that are each label; a draw that is no label counts for none."""
        counts = dict.fromkeys(question.labels, 0)
        most = max(map(len, question.labels)) + 1
        for draw in range(self.endpoint.draws):
            path = (seed, question.key, draw)
            body = self._body(question, most, self.endpoint.temperature) | {"seed": derived_seed(*path)}
            said = label_said(content_of(await self._call(client, body, path)), question.labels)
            if said is not None:
                counts[said] += 1
        return Answer(tuple(count / self.endpoint.draws for count in counts.values()), by="sampled")

    def _body(self, question: Question, max_tokens: int, temperature: float) -> dict[str, Any]:
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in question.messages]
        named = {"model": self.endpoint.model} if self.endpoint.model else {}
        return {**named, "messages": messages, "max_tokens": max_tokens, "temperature": temperature}

    # -- one call ------------------------------------------------------------------------------------------------------

    async def _call(self, client: httpx.AsyncClient, body: dict[str, Any], path: tuple[int | str, ...]) -> Any:
        """The reply's JSON, after as many attempts as it takes and may take.

        Raises:
            CallFailed: with the reason.
        """
        try:
            async with asyncio.timeout(self.endpoint.deadline):
                return await self._attempts(client, body, path)
        except TimeoutError:
            raise Unreachable(f"no reply within {self.endpoint.deadline:g} s") from None

    async def _attempts(self, client: httpx.AsyncClient, body: dict[str, Any], path: tuple[int | str, ...]) -> Any:
        for attempt in range(self.endpoint.attempts):
            try:
                return await self._attempt(client, body)
            except TryAgain as error:
                if attempt + 1 == self.endpoint.attempts:
                    raise Unreachable(f"{error}, {attempt + 1} times") from None
                await asyncio.sleep(self._wait(attempt, error.wait, path))
        raise AssertionError("unreachable: there is at least one attempt")

    def _wait(self, attempt: int, asked: float, path: tuple[int | str, ...]) -> float:
        """Seconds before the next attempt: exponential, half of it jitter, at least what the server asks, bounded."""
        jitter = float(uniforms(np.array([stream_key(*path, "wait")], dtype=np.uint64), attempt)[0])
        return min(max(FIRST_WAIT * 2**attempt * (0.5 + 0.5 * jitter), asked), self.endpoint.max_wait)

    async def _attempt(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
        self.calls += 1
        url = self.endpoint.url.rstrip("/") + "/chat/completions"
        try:
            async with asyncio.timeout(self.endpoint.timeout), client.stream("POST", url, json=body) as response:
                check_status(response)
                text = await self._read(response)
        except TimeoutError:
            raise TryAgain(f"no reply within {self.endpoint.timeout:g} s") from None
        except httpx.TransportError as error:
            if _bad_certificate(error):
                raise Unreachable("the endpoint's certificate is not valid") from None
            raise TryAgain(f"connection failed ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise CallFailed(f"call failed ({type(error).__name__})") from None
        try:
            return strict_json(text.decode("utf-8"))
        except ValueError:
            raise CallFailed("the reply is not valid JSON") from None

    async def _read(self, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise CallFailed("the reply is compressed, which was not asked for")
        found = bytearray()
        async for chunk in response.aiter_raw():
            found += chunk
            if len(found) > self.endpoint.max_bytes:
                raise CallFailed(f"the reply is longer than {self.endpoint.max_bytes} bytes")
        return bytes(found)


def _bad_certificate(error: BaseException | None) -> bool:
    """Whether a certificate that cannot be trusted is behind an error: it will be the same at the next attempt."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _failure(reason: str) -> Answer:
    return Answer(None, reason)


def _run(work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """Run to the end, also from within a running event loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
