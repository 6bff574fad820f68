"""A judge behind an OpenAI-compatible endpoint. Its replies are untrusted bytes: parsed strictly, bounded in size and
time, and whatever is wrong with one makes the answer missing, never a number.

Where the server gives log-probs, one call is one answer. Where it gives none (`transformers serve` ignores the field),
the verdict is drawn several times and counted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections.abc import Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from alignkit.plugin import derived_seed, stream_key, strict_json, uniforms
from alignkit_rlaif.answers import Answer, Text
from alignkit_rlaif.endpoint import Endpoint, is_loopback
from alignkit_rlaif.kept import Kept
from alignkit_rlaif.logprobs import logprob_answer
from alignkit_rlaif.patience import Patience
from alignkit_rlaif.prompts import Question
from alignkit_rlaif.replies import (
    NO_SUCH_ADDRESS,
    REFUSES_FIELD,
    CallFailed,
    Refused,
    TryAgain,
    Unreachable,
    check_reply,
    check_status,
    content_of,
    label_said,
    nested,
)
from alignkit_rlaif.surroundings import certificates_named, opened, proxy_named

logger = logging.getLogger("alignkit.rlaif")

FIRST_WAIT = 0.5
"""Seconds before the first retry; doubled for each further one."""
MOST_LOGPROBS = (20, 5)
"""How many are asked for: OpenAI's most, and what servers with a lower limit grant."""
WITHOUT = {
    "max_tokens": "max_completion_tokens stands in its place",
    "seed": "the server draws as it likes, and another time otherwise",
    "temperature": "the server's own temperature holds",
}
"""What is tried without where a server refuses it by name, and what that means."""


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
        self._addresses = endpoint.addresses()
        self._without: frozenset[str] = frozenset()
        self._most_logprobs = MOST_LOGPROBS[0]

    def release(self) -> None:
        """Nothing is kept open between calls."""

    def ask(self, questions: Sequence[Question], seed: int = 0, tolerated: float = math.inf) -> list[Answer]:
        """The probabilities of each question's labels, from log-probs or from draws; see `Backend.ask`."""

        async def one(client: httpx.AsyncClient, question: Question) -> Answer:
            answer = await self._answer(client, question, seed)
            if self.kept is not None:
                self.kept.keep_answer(answer, question, seed)
            return answer

        known = [self.kept.answer(question, seed) if self.kept else None for question in questions]
        return self._completed(questions, known, one, _failure, Patience(tolerated))

    def write(
        self, questions: Sequence[Question], max_new_tokens: int, seed: int = 0, tolerated: float = math.inf
    ) -> list[Text]:
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
        return self._completed(questions, known, one, lambda reason: Text(None, reason), Patience(tolerated))

    def _completed(
        self, questions: Sequence[Question], known: Sequence[Any], one: Any, failure: Any, patience: Patience
    ) -> list[Any]:
        """What is known, and what is not known asked for."""
        wanted = [question for question, found in zip(questions, known, strict=True) if found is None]
        asked = iter(_run(self._each(wanted, one, failure, patience)) if wanted else [])
        return [next(asked) if found is None else found for found in known]

    # -- one question --------------------------------------------------------------------------------------------------

    async def _each(self, questions: Sequence[Question], one: Any, failure: Any, patience: Patience) -> list[Any]:
        """`one(client, question)` for each, a few at a time; `failure(reason)` where it fails."""
        gate = asyncio.Semaphore(self.endpoint.workers)

        async def guarded(client: httpx.AsyncClient, question: Question) -> Any:
            async with gate:
                if patience.ended:
                    return failure(patience.ended)
                try:
                    found = await one(client, question)
                except CallFailed as error:
                    patience.fail(error)
                    return failure(str(error))
                patience.succeed()
                return found

        async with self._client() as client:
            first = [await guarded(client, questions[0])]  # alone: it finds out what the server takes
            return first + list(await asyncio.gather(*(guarded(client, q) for q in questions[1:])))

    def _client(self) -> httpx.AsyncClient:
        host = urlsplit(self.endpoint.url).hostname or ""
        return opened(
            host,
            headers=self.endpoint.headers(),
            follow_redirects=False,
            timeout=None,
            limits=httpx.Limits(max_connections=self.endpoint.workers),
            trust_env=not is_loopback(host),  # proxies of the environment are for other machines
        )

    async def _answer(self, client: httpx.AsyncClient, question: Question, seed: int) -> Answer:
        if self.gives_logprobs is not False and not nested(question.labels):
            found = await self._by_logprobs(client, question, seed)
            if found is not None:
                self.gives_logprobs = True
                return found
            if self.endpoint.logprobs == "yes":
                raise CallFailed("the reply has no log-probs")
        answer = await self._by_draws(client, question, seed)
        if self.gives_logprobs is None and not nested(question.labels):
            logger.warning("the endpoint gives no log-probs: verdicts are drawn %d times", self.endpoint.draws)
            self.gives_logprobs = False
        return answer

    async def _by_logprobs(self, client: httpx.AsyncClient, question: Question, seed: int) -> Answer | None:
        """The answer by log-probs; None where a reply has none, or the server refuses to give them."""
        for most in [self._most_logprobs] if self.gives_logprobs else MOST_LOGPROBS:
            body = self._body(question, 1, temperature=1.0) | {"logprobs": True, "top_logprobs": most}
            try:
                found = logprob_answer(await self._call(client, body, (seed, question.key)), question.labels)
            except Refused:
                if self.gives_logprobs:  # they were given before, or are said to be: it is the question
                    raise
                continue
            self._most_logprobs = most
            return found
        return None

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
                return await self._accepted(client, body, path)
        except TimeoutError:
            raise Unreachable(f"no reply within {self.endpoint.deadline:g} s") from None

    async def _accepted(self, client: httpx.AsyncClient, body: dict[str, Any], path: tuple[int | str, ...]) -> Any:
        """The reply to a request without what the server refuses by name."""
        without = self._without
        while True:
            sent = _adapted(body, without)
            try:
                reply = await self._attempts(client, sent, path)
            except Refused as error:
                refused = {name for name in error.names if name in sent and name in WITHOUT}
                if not refused:
                    raise
                without |= refused
            else:
                for name in without - self._without:  # only now: another reply may have named it by the way
                    logger.warning("the endpoint refuses %s and is asked without: %s", name, WITHOUT[name])
                self._without |= without
                return reply

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
        url = self._addresses[0]
        try:
            async with asyncio.timeout(self.endpoint.timeout), client.stream("POST", url, json=body) as response:
                if response.status_code in NO_SUCH_ADDRESS and len(self._addresses) > 1:
                    self._addresses = [each for each in self._addresses if each != url]
                    return await self._attempt(client, body)
                reads = response.status_code in (200, *REFUSES_FIELD, *NO_SUCH_ADDRESS)
                text = await self._read(response) if reads else b""
        except TimeoutError:
            raise TryAgain(f"no reply within {self.endpoint.timeout:g} s") from None
        except httpx.ProxyError:
            raise TryAgain(f"the proxy that {proxy_named()} names does not connect") from None
        except httpx.TransportError as error:
            if _bad_certificate(error):
                trusted = certificates_named()
                said = f" by those that {trusted} names" if trusted else ""
                raise Unreachable(f"the endpoint's certificate is not valid{said}") from None
            raise TryAgain(f"connection failed ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise CallFailed(f"call failed ({type(error).__name__})") from None
        asked = " and ".join(self.endpoint.addresses())
        check_status(response, text, asked)
        try:
            reply = strict_json(text.decode("utf-8"))
        except ValueError:
            raise CallFailed("the reply is not valid JSON") from None
        check_reply(reply, asked)
        return reply

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


def _adapted(body: dict[str, Any], without: Collection[str]) -> dict[str, Any]:
    """A request without these parameters; the longest answer goes by its newer name."""
    sent = {name: value for name, value in body.items() if name not in without}
    return sent | ({"max_completion_tokens": body["max_tokens"]} if "max_tokens" in without else {})


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
