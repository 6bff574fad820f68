"""The names that people give to the columns of data files, and what several formats say of an answer alike."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from alignkit.data.messages import BadRow, parsed
from alignkit.groups import RATINGS

ASK = "prompt|instruction|question|query|input"
"""The text or messages that are answered."""

TALK = "messages|conversations|conversation|dialogue|dialog|chosen_messages"
"""A whole conversation."""

BEFORE = ("system|system_prompt|system_message", "history", "input|context", "tools|functions")
"""What may stand beside the prompt and belongs to it."""

RESPONSE = "completion|response|output"
CHOSEN = "chosen|chosen_response|chosen_answer|chosen_messages|preferred_output|preferred|response_j"
REJECTED = "rejected|rejected_response|rejected_answer|rejected_messages|non_preferred_output|dispreferred|response_k"
LABEL = "label|safe|kto_tag|is_good|desirable"
VERDICT = "label|preference|winner|choice|preferred|better"

GRADES = ("rating", "tie", "margin", "preference_prob")
"""What may be said of a comparison."""

TRUTH = (
    "answer", "answers", "solution", "solutions", "ground_truth", "reference", "reference_answer", "references",
    "reward_model", "extra_info", "env_config", "target", "targets", "answer_*", "expected_*", "test*", "rubric*",
    "constraint*", "checks", "final_answer", "gold*", "difficulty", "data_source", "ability",
)  # fmt: skip
"""Columns beside a prompt that a reward may ask for; they are kept in `meta`."""

OF_PROMPTS = ("harmful", "is_correct")
"""Columns that say of a prompt alone what a reward may ask for; beside an answer they would judge it."""

GOOD = ("preferred", "chosen", "good", "safe", "positive", "desirable", "true", "yes")
BAD = ("disliked", "rejected", "bad", "unsafe", "negative", "undesirable", "false", "no")


def is_good(label: Any, field: str) -> bool:
    """True or false of a label in any usual spelling.

    Raises:
        BadRow: another spelling.
    """
    if isinstance(label, bool) or label in (0, 1):
        return bool(label)
    word = label.strip().lower() if isinstance(label, str) else ""
    if word in (*GOOD, *BAD):
        return word in GOOD
    if word.removesuffix(".0") in ("0", "1"):  # a table of text has no other way to say it
        return word[0] == "1"
    raise BadRow(
        "D17", field, f"the label {label!r} is not known", remedy="use true and false, or preferred and disliked"
    )


def flag(value: Any, field: str) -> bool:
    """Yes or no, as tables write it: a truth value, 0 or 1, or their words.

    Raises:
        BadRow: anything else.
    """
    words = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise BadRow("D17", field, f"{value!r} is neither true nor false", remedy="use true and false")


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def number(value: Any, field: str) -> float:
    """A finite number; a table's text of one too.

    Raises:
        BadRow: anything else.
    """
    found: Any = value
    if isinstance(value, str):
        try:
            found = float(value)
        except ValueError:
            found = None
    if not is_finite(found):
        raise BadRow("D17", field, f"{value!r} is no finite number", remedy="repair or drop the row")
    return found


def rating_of(value: Any, field: str) -> str | None:
    """One of Llama 2's four words, or None.

    Raises:
        BadRow: another word, or a number.
    """
    if value is not None and (not isinstance(value, str) or value not in RATINGS):
        remedy = f"use {', '.join(RATINGS)}; numbers belong into the column margin"
        raise BadRow("D17", field, f"{value!r} is outside the scale", remedy=remedy)
    return value


def scaled(value: Any, field: str, most: float) -> float:
    """A number from 0 to `most`.

    Raises:
        BadRow: anything else, text too.
    """
    if not (is_finite(value) and 0 <= value <= most):
        scale = "a finite number >= 0" if most == math.inf else f"a number from 0 to {most}"
        what, effect = f"{value!r} is outside the scale", "the loss would push the wrong way"
        raise BadRow("D17", field, what, effect, f"give {scale}")
    return float(value)


def grading(parts: Mapping[str, Any], tie: bool) -> dict[str, Any]:
    """Ranks, rating, margin and soft label of a comparison whose better response comes first.

    Args:
        parts: with the columns of `GRADES` that the row has.
        tie: whether neither is better.
    """
    out: dict[str, Any] = {"ranks": [1, 1] if tie else [1, 2], "rating": rating_of(parts.get("rating"), "rating")}
    if tie:
        if out["rating"] not in (None, RATINGS[-1]):
            raise BadRow("D17", "rating", f"{out['rating']!r} of a tie", "they contradict", f"use {RATINGS[-1]}")
        out["rating"] = RATINGS[-1]
    if parts.get("margin") is not None:
        out["meta"] = {"margin": scaled(parts["margin"], "margin", math.inf)}
    if parts.get("preference_prob") is not None:
        out["preference_prob"] = scaled(parts["preference_prob"], "preference_prob", 1)
    return out


def graded(strength: Any, field: str, most: int = 3) -> tuple[int, dict[str, Any]]:
    """A preference from -3 (the first is much better) to 3 (the second is), 0 a tie, as HelpSteer gives it.

    Returns:
        (which is better, 0 or 1; the columns of the comparison with the better one first).
    """
    value = number(strength, field)
    if value != int(value) or abs(value) > most:
        raise BadRow(
            "D17", field, f"{strength!r} is outside the scale", remedy=f"give a whole number from -{most} to {most}"
        )
    words = dict(zip((3, 2, 1), RATINGS, strict=False))
    rating = words.get(abs(int(value)))
    return int(value > 0), grading({"rating": rating} if rating else {}, value == 0)


def texts_in(value: Any, field: str) -> list[Any]:
    """A list of answers, from a list or its JSON text.

    Raises:
        BadRow: what is none, or empty.
    """
    found = parsed(value)
    if not isinstance(found, list | tuple) or not found:
        raise BadRow("D21", field, "is no list of responses", remedy="give [{text, rank}], [{text, label}] or texts")
    return list(found)
