"""Replies of an endpoint, read strictly: what is wrong with one is a failure with a reason in words of ours only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import httpx

from alignkit.plugin import strict_json

REFUSES_FIELD = (400, 422, 501)
"""How servers say that they do not take a parameter."""
TRY_AGAIN = (408, 425, 429)
CLOSED = (401, 402, 404, 405, 407, 410)
"""The key, the account or the address: what every further question would meet too. 403 may be about one text."""
NO_SUCH_ADDRESS = (404, 405)
SENT = ("model", "messages", "max_completion_tokens", "max_tokens", "temperature", "top_logprobs", "logprobs", "seed")
"""The parameters of a request. A reply that names one is repeated by these words alone."""


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


class Closed(CallFailed):
    """The endpoint takes no question at all: its key, its account, its address."""


class Refused(CallFailed):
    """The server refuses the request as it is.

    Args:
        reason: in words.
        names: the parameters that it names.
    """

    def __init__(self, reason: str, names: Sequence[str] = ()) -> None:
        super().__init__(reason + f", the server names {', '.join(names)}" * bool(names))
        self.names = tuple(names)


def check_status(response: httpx.Response, text: bytes, asked: str) -> None:
    """Nothing for 200.

    Args:
        response: its status and headers.
        text: its body, where it was read.
        asked: the addresses that were asked.

    Raises:
        TryAgain: for what may pass, with the wait asked for.
        Refused: for a parameter.
        Closed: for what is the same for every question.
        CallFailed: for anything else; a redirect is not followed.
    """
    if response.status_code != 200:
        wait = retry_after(response.headers.get("retry-after"))
        _raise(response.status_code, f"HTTP {response.status_code}", named_parameters(text), asked, wait)


def check_reply(reply: Any, asked: str) -> None:
    """Nothing for a reply; gateways write the errors of those behind them into a 200.

    Args:
        reply: its JSON.
        asked: the addresses that were asked.

    Raises:
        TryAgain: an error without a number, or with one that may pass.
        CallFailed: as `check_status`, for the number in place of the status.
    """
    holders = [reply, *(reply.get("choices") or [])] if isinstance(reply, dict) else []
    error = next((each["error"] for each in holders if isinstance(each, dict) and each.get("error")), None)
    if error is None:
        return
    code = str(error.get("code") or error.get("status") or "") if isinstance(error, dict) else ""
    status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else 500
    _raise(status, f"an error{f' {status}' if code else ''} in a reply of HTTP 200", _named(error), asked)


def _raise(status: int, reason: str, names: Sequence[str], asked: str, wait: float = 0.0) -> None:
    if status in TRY_AGAIN or (status >= 500 and status not in REFUSES_FIELD):
        raise TryAgain(reason, wait)
    if status in REFUSES_FIELD:
        raise Refused(reason, names)
    if status in NO_SUCH_ADDRESS:
        raise Closed(f"{reason} at {asked}" + ", the server names model" * ("model" in names))
    if status in CLOSED:
        raise Closed(reason)
    raise CallFailed(reason + ", redirects are not followed" * (300 <= status < 400))


def named_parameters(text: bytes) -> list[str]:
    """Which parameters of a request an error names, by OpenAI's `param`, pydantic's `loc` or in its sentences."""
    try:
        return _named(strict_json(text.decode("utf-8")))
    except ValueError:
        return _in_words(text.decode("utf-8", "replace"))


def _named(error: Any) -> list[str]:
    fields, words = _said(error)
    return [name for name in SENT if name in fields] or _in_words(" ".join(words))


def _in_words(text: str) -> list[str]:
    """Parameters named in prose; "model" and "messages" are common words."""
    return [name for name in SENT[2:] if re.search(rf"(?<![A-Za-z0-9_]){name}(?![A-Za-z0-9_])", text)]


def _said(value: Any, name: str = "") -> tuple[list[str], list[str]]:
    """(the fields that an error names, its sentences); what it repeats of the request ("input") says nothing."""
    if name in ("param", "loc"):
        return [str(each).removeprefix("body.") for each in (value if isinstance(value, list) else [value])], []
    if isinstance(value, str):
        return [], [value]
    inner = [*value.items()] if isinstance(value, dict) else []
    inner += [(name, each) for each in value] if isinstance(value, list) else []
    found = [_said(each, str(key)) for key, each in inner if key not in ("input", "body", "request")]
    return [f for fields, _ in found for f in fields], [w for _, words in found for w in words]


def retry_after(value: str | None) -> float:
    """Seconds that the header asks for; 0 where it is absent, a date, or no sensible number."""
    return float(value) if value is not None and re.fullmatch(r"[0-9]{1,6}", value.strip()) else 0.0


def choice_of(reply: Any) -> dict[str, Any]:
    """The one choice of a reply.

    Raises:
        CallFailed: there is none, or there are several.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise CallFailed("the reply does not hold one choice")
    return choices[0]


def content_of(reply: Any) -> str:
    """The text of a chat completion.

    Raises:
        CallFailed: there is none, or it holds lone surrogates, which no later call could send.
    """
    message = choice_of(reply).get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        raise CallFailed("the reply has no text")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise CallFailed("the reply's text is not Unicode") from None
    return content


def label_said(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text consists of, punctuation and white space aside; None for any other text."""
    return next((label for label in labels if re.fullmatch(rf"\W*{re.escape(label)}\W*", text)), None)


def nested(labels: Sequence[str]) -> bool:
    """Whether a label begins with another, so that its first token need not tell them apart."""
    return any(a != b and b.startswith(a) for a in labels for b in labels)
