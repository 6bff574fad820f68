"""Replies of an endpoint, read strictly: what is wrong with one is a failure with a reason in words of ours only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import httpx

from alignkit_rlaif.answers import Answer

REFUSES_FIELD = (400, 422, 501)
"""How servers say that they know no log-probs."""
TRY_AGAIN = (408, 425, 429)
LEAST_LOGPROB = -1e4
"""Servers write -9999 for "next to nothing"; what is below that is nonsense."""


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
        CallFailed: there is none, or it holds lone surrogates, which no later call could send.
    """
    message = _choice(reply).get("message")
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


def logprob_answer(reply: Any, labels: Sequence[str]) -> Answer | None:
    """The labels' probabilities at the first token of a reply; None where it has no log-probs.

    Each token that is a label, white space aside, counts.

    Raises:
        CallFailed: log-probs of another form, not finite, positive, of more than all the probability there is, or of
        one label's token twice.
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
    found = [_token_prob(entry) for entry in top]
    for token, prob in found:
        if token.strip() in probs:
            probs[token.strip()] += prob
    named = [token for token, _ in found if token.strip() in probs]  # others may look alike: parts of a character do
    if len(set(named)) != len(named):
        raise CallFailed("the reply gives one token twice")
    if sum(prob for _, prob in found) > 1.001:
        raise CallFailed("the reply's probabilities sum to more than 1")
    return Answer(tuple(probs.values()))


def _token_prob(entry: Any) -> tuple[str, float]:
    token, value = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
    if not isinstance(token, str) or not isinstance(value, (int, float)) or isinstance(value, bool):
        raise CallFailed("the reply's log-probs are malformed")
    if not LEAST_LOGPROB <= value <= 1e-6:  # compared before it is made a float: a huge integer has none
        raise CallFailed("the reply's log-probs are malformed")
    return token, math.exp(float(value))


def nested(labels: Sequence[str]) -> bool:
    """Whether a label begins with another, so that its first token need not tell them apart."""
    return any(a != b and b.startswith(a) for a in labels for b in labels)
