"""A judge behind an OpenAI-compatible endpoint. Its replies are untrusted bytes: parsed strictly, bounded in size and
time, and whatever is wrong with one makes the answer missing, never a number.

Where the server gives log-probs, one call is one answer. Where it gives none (`transformers serve` refuses the field),
the verdict is drawn several times and counted.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import os
import re
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from alignkit.data.sources import strict_json
from alignkit.errors import ConfigError
from alignkit.sampling.counter import derived_seed, stream_key, uniforms
from alignkit_rlaif.backends import Answer
from alignkit_rlaif.prompts import Question

logger = logging.getLogger("alignkit.rlaif")

REFUSES_FIELD = (400, 422, 501)
"""How servers say that they know no log-probs."""
TRY_AGAIN = (408, 425, 429)
FIRST_WAIT = 0.5
"""Seconds before the first retry; doubled for each further one."""
GIVE_UP_AFTER = 8
"""Calls in a row without a reply after which the rest is not made: an endpoint that is down costs minutes, not days."""


class CallFailed(Exception):
    """A call without a usable reply; the text says why, in words of ours only."""


class TryAgain(CallFailed):
    """A failure that another attempt may not meet.

    Args:
        reason: in words.
        wait: seconds that the server asked for.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Unreachable(CallFailed):
    """No reply after all attempts."""


class Refused(CallFailed):
    """The server refuses the request as it is."""


def is_url(model: Any) -> bool:
    return isinstance(model, str) and model.startswith(("http://", "https://"))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address; nothing is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and what is asked of the connection.

    Args:
        url: up to the version: "https://host/v1". Plain http only to this machine, unless `insecure_http`.
        model: the model's name there.
        key_env: name of the environment variable that holds the key; the key itself is in no file, key or message.
        logprobs: "yes", "no" (draw the verdicts), or "auto": drawn where the server gives none.
        draws: per question, where verdicts are drawn.
        temperature: of the draws.
        attempts: of one call.
        timeout: seconds of one attempt, everything included.
        deadline: seconds of one call, all attempts and waits included.
        max_wait: longest wait between attempts, whatever the server asks for, seconds.
        max_bytes: of a reply.
        workers: calls at a time.
        insecure_http: allow plain http to other machines.

    Raises:
        ConfigError: an address with a user, query or fragment, another scheme, plain http to another machine, or
        numbers outside their range.
    """

    url: str
    model: str = ""
    key_env: str = ""
    logprobs: str = "auto"
    draws: int = 8
    temperature: float = 1.0
    attempts: int = 5
    timeout: float = 60.0
    deadline: float = 180.0
    max_wait: float = 30.0
    max_bytes: int = 8 * 1024 * 1024
    workers: int = 4
    insecure_http: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("not an http(s) address", where="judge endpoint", remedy='write "https://host/v1"')
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "the address holds a user, a query or a fragment",
                where="judge endpoint",
                effect="Keys in addresses end up in logs.",
                remedy="put the key into an environment variable and name it in key_env",
            )
        if parts.scheme == "http" and not is_loopback(parts.hostname) and not self.insecure_http:
            raise ConfigError(
                "plain http to another machine", where=f"judge endpoint {parts.hostname}", remedy="use https"
            )
        if self.logprobs not in ("auto", "yes", "no"):
            raise ConfigError(f"logprobs={self.logprobs!r}", where="judge endpoint", remedy="use auto, yes or no")
        if min(self.draws, self.attempts, self.workers, self.max_bytes) < 1 or min(self.timeout, self.deadline) <= 0:
            raise ConfigError("draws, attempts, workers, bytes and times must be positive", where="judge endpoint")

    def key(self) -> Any:
        """What identifies the answers: the address, the model and how it is asked; never the key."""
        names = ("url", "model", "logprobs", "draws", "temperature")
        return {"endpoint": {name: getattr(self, name) for name in names}}

    def headers(self) -> dict[str, str]:
        """With the key, where one is named.

        Raises:
            ConfigError: the variable is not set, or holds what no header can.
        """
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if not self.key_env:
            return headers
        secret = os.environ.get(self.key_env, "")
        if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ConfigError(
                "the environment variable is not set" if not secret else "its value cannot be a key",
                where=self.key_env,
                remedy=f"export {self.key_env}=…",
            )
        return {**headers, "Authorization": f"Bearer {secret}"}


class HttpBackend:
    """Asks an endpoint.

    Args:
        endpoint: where, and how patiently.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.gives_logprobs = {"yes": True, "no": False}.get(endpoint.logprobs)  # None: not known yet
        self.calls = 0
        self._in_a_row = 0

    def release(self) -> None:
        """Nothing is kept open between calls."""

    def ask(self, questions: Sequence[Question], seed: int = 0) -> list[Answer]:
        """The probabilities of each question's labels, from log-probs or from draws."""
        if not questions:
            return []
        return _run(self._each(questions, lambda client, q: self._answer(client, q, seed), _failure))

    def write(self, questions: Sequence[Question], max_new_tokens: int, seed: int = 0) -> list[str | None]:
        """A text in reply to each question; None where the call failed or the text is far longer than asked for."""

        async def one(client: httpx.AsyncClient, question: Question) -> str | None:
            body = self._body(question, max_new_tokens, temperature=0.0)
            text = content_of(await self._call(client, body, (seed, question.key, "thought"))).strip()
            return text if len(text) <= 32 * max_new_tokens else None

        return _run(self._each(questions, one, lambda _reason: None)) if questions else []

    # -- one question --------------------------------------------------------------------------------------------------

    async def _each(self, questions: Sequence[Question], one: Any, failure: Any) -> list[Any]:
        """`one(client, question)` for each, a few at a time; `failure(reason)` where it fails."""
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
        if self.gives_logprobs is not False and not _nested(question.labels):
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
        if self.gives_logprobs is None and not _nested(question.labels):
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


def check_status(response: httpx.Response) -> None:
    """Nothing for 200.

    Raises:
        TryAgain: for what may pass, with the wait asked for.
        CallFailed: for anything else; a redirect is not followed.
    """
    status = response.status_code
    if status == 200:
        return
    if status in TRY_AGAIN or (status >= 500 and status not in REFUSES_FIELD):
        raise TryAgain(f"HTTP {status}", retry_after(response.headers.get("retry-after")))
    if status in REFUSES_FIELD:
        raise Refused(f"HTTP {status}")
    raise CallFailed(f"HTTP {status}" + ", redirects are not followed" * (300 <= status < 400))


def retry_after(value: str | None) -> float:
    """Seconds that the header asks for; 0 where it is absent, a date, or no sensible number."""
    return float(value) if value is not None and re.fullmatch(r"[0-9]{1,6}", value.strip()) else 0.0


def _choice(reply: Any) -> dict[str, Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise CallFailed("the reply does not hold one choice")
    return choices[0]


def content_of(reply: Any) -> str:
    """The text of a chat completion.

    Raises:
        CallFailed: there is none.
    """
    message = _choice(reply).get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        raise CallFailed("the reply has no text")
    return content


def label_said(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text consists of, punctuation and white space aside; None for any other text."""
    return next((label for label in labels if re.fullmatch(rf"\W*{re.escape(label)}\W*", text)), None)


def logprob_answer(reply: Any, labels: Sequence[str]) -> Answer | None:
    """The labels' probabilities at the first token of a reply; None where it has no log-probs.

    Each token that is a label, white space aside, counts.

    Raises:
        CallFailed: log-probs of another form, not finite, positive, or of more than all the probability there is.
    """
    logprobs = _choice(reply).get("logprobs")
    if logprobs is None:
        return None
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        raise CallFailed("the reply's log-probs are malformed")
    top = content[0].get("top_logprobs")
    if not isinstance(top, list) or not top:
        raise CallFailed("the reply's log-probs are malformed")
    probs = dict.fromkeys(labels, 0.0)
    total = 0.0
    for entry in top:
        token, prob = _token_prob(entry)
        total += prob
        if token.strip() in probs:
            probs[token.strip()] += prob
    if total > 1.001:
        raise CallFailed("the reply's probabilities sum to more than 1")
    return Answer(tuple(probs.values()))


def _token_prob(entry: Any) -> tuple[str, float]:
    token, value = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not isinstance(token, str) or not math.isfinite(number) or number > 1e-6:
        raise CallFailed("the reply's log-probs are malformed")
    return token, math.exp(number)


def _nested(labels: Sequence[str]) -> bool:
    """Whether a label begins with another, so that its first token need not tell them apart."""
    return any(a != b and b.startswith(a) for a in labels for b in labels)


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
