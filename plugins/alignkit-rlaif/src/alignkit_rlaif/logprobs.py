"""The probabilities of a reply's first token, in each of the forms in which servers write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from alignkit_rlaif.answers import Answer
from alignkit_rlaif.replies import CallFailed, choice_of

LEAST_LOGPROB = -1e4
"""Servers write -9999 for "next to nothing"; what is below that is nonsense, but for the lowest float32 there is."""
NOTHING = -3.4028234e38
"""From here on a log-prob is llama.cpp's word for a probability of 0: the lowest float32, -3.4028235e38."""
ROUNDING = 0.05
"""What rounding may do to a log-prob: one decimal is 0.05. Servers that compute in bfloat16 sum to 1.0037."""

MALFORMED = "the reply's log-probs are malformed"


def logprob_answer(reply: Any, labels: Sequence[str]) -> Answer | None:
    """The labels' probabilities at the first token of a reply; None where it does not say them.

    Three forms are read: a chat's (`content[0].top_logprobs`, a list of tokens), the completions' (`top_logprobs[0]`, a
    mapping by token), and either with the other's kind of list. A reply that has no log-probs, or those of the token
    it chose alone, says nothing of the other label. Each token that is a label, white space aside, counts.

    Raises:
        CallFailed: log-probs of another form, not finite, positive, of more than all the probability there is, or of
        one label's token twice with different numbers.
    """
    found = _alternatives(choice_of(reply).get("logprobs"))
    if found is None:
        return None
    probs = dict.fromkeys(labels, 0.0)
    for token, prob in found.items():
        if token.strip() in probs:
            probs[token.strip()] += prob
    total = sum(found.values())
    if total > 1 + ROUNDING:
        raise CallFailed("the reply's probabilities sum to more than 1")
    return Answer(tuple(prob / max(total, 1.0) for prob in probs.values()))


def _alternatives(logprobs: Any) -> dict[str, float] | None:
    """The probability of each token that might have come first; None where there are no two of them."""
    if not logprobs and (logprobs is None or isinstance(logprobs, dict)):
        return None
    if not isinstance(logprobs, dict):
        raise CallFailed(MALFORMED)
    top = _first_of_chat(logprobs["content"]) if logprobs.get("content") else _first(logprobs.get("top_logprobs"))
    if not top:
        return None
    entries = [*top.items()] if isinstance(top, dict) else [_entry(each) for each in _listed(top)]
    found: dict[str, float] = {}
    for token, value in entries:
        prob = _prob(token, value)
        if abs(found.setdefault(token, prob) - prob) > ROUNDING * prob:  # alike: the chosen token beside the likeliest
            raise CallFailed("the reply gives one token twice")
    return found if len(found) > 1 else None


def _first_of_chat(content: Any) -> Any:
    first = _first(content)
    if not isinstance(first, dict):
        raise CallFailed(MALFORMED)
    return first.get("top_logprobs")


def _first(values: Any) -> Any:
    return _listed(values)[0] if values else None


def _listed(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise CallFailed(MALFORMED)
    return values


def _entry(entry: Any) -> tuple[Any, Any]:
    return (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)


def _prob(token: Any, value: Any) -> float:
    if not isinstance(token, str) or not isinstance(value, (int, float)) or isinstance(value, bool):
        raise CallFailed(MALFORMED)
    if isinstance(value, float) and value <= NOTHING:
        return 0.0
    if not LEAST_LOGPROB <= value <= ROUNDING:  # compared before it is made a float: a huge integer has none
        raise CallFailed(MALFORMED)
    return math.exp(float(value))
