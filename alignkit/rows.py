"""One row of groups: messages, and the form in which a row is kept whatever it was written as."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.columns import FEATURES, PER_RESPONSE, ill_typed
from alignkit.errors import DataError
from alignkit.identity import canonical_json

RATINGS = ("significantly_better", "better", "slightly_better", "negligibly_better_or_unsure")
"""Llama 2's four levels of preference (Touvron et al. 2023, section 3.2.1), from the most to the least distinct."""

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: one of `ROLES`.
        content: the text, kept as it is.
        trained: for an assistant turn inside a prompt: whether its tokens are learned from.
        fields: what the chat template reads beside the text, as a JSON object: `tool_calls`, `tool_call_id`, `name`,
            `reasoning_content`; of the first message also `tools`; and `weight` 0 for an answer that is never learned.
    """

    role: str
    content: str
    trained: bool = False
    fields: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, "trained": self.trained, "fields": self.fields}


def prompt_id(messages: Sequence[Mapping[str, Any] | Message]) -> str:
    """Content hash (16 hex digits) of a conversation: roles, NFC-normalised text, and fields where there are any."""
    turns = [message.to_dict() if isinstance(message, Message) else message for message in messages]
    own = [[turn["role"], unicodedata.normalize("NFC", turn["content"])] for turn in turns]
    text = canonical_json([[*one, *_shown(turn.get("fields"))] for one, turn in zip(own, turns, strict=True)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _shown(fields: Any) -> list[str]:
    """The fields that a template may show, as canonical JSON; weights are none of them."""
    known = unpacked(fields)
    known.pop("weight", None)
    return [canonical_json(known)] if known else []


def unpacked(fields: Any) -> dict[str, Any]:
    """The fields of a message as a dict, {} where there are none."""
    if not fields:
        return {}
    found = json.loads(fields) if isinstance(fields, str) else fields
    if not isinstance(found, Mapping):
        raise TypeError(f"fields of type {type(found).__name__}")
    return dict(found)


def packed(fields: Any) -> str | None:
    """The fields of a message as they are stored: JSON, or None where there are none. Keys keep their order, in which a
    template shows them."""
    return json.dumps(unpacked(fields), ensure_ascii=False, separators=(",", ":"), allow_nan=False) if fields else None


def _normal_prompt(prompt: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if prompt else []
    turns = [turn.to_dict() if isinstance(turn, Message) else dict(turn) for turn in _items(prompt)]
    for turn in turns:
        _refuse_surrogates(turn.get("content"), where)
        if turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise DataError(
                f"a message has role {turn.get('role')!r} and content of type {type(turn.get('content')).__name__}",
                where=where,
                remedy=f"use roles {', '.join(ROLES)} and text content",
            )
    return [
        {
            "role": t["role"],
            "content": t["content"],
            "trained": bool(t.get("trained")),
            "fields": packed(t.get("fields")),
        }
        for t in turns
    ]


def _refuse_surrogates(text: Any, where: str) -> None:
    """Refuse what is no Unicode text: it could be neither written nor tokenised."""
    if isinstance(text, str) and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"AK-D22 a lone surrogate at character {error.start}"
            raise DataError(what, where=where, remedy="repair the text") from error


def _normal_responses(responses: Any, where: str) -> list[Any]:
    found = [] if responses is None else _items(responses)
    for text in found:
        _refuse_surrogates(text, where)
    return found


def _items(value: Any) -> list[Any]:
    """The items of a list; what can be walked through too (a text by its letters, a dict by its keys) is none."""
    if isinstance(value, str | bytes | Mapping):
        raise TypeError(f"of type {type(value).__name__}")
    return list(value)


def _normal_rewards(rewards: Any) -> list[dict[str, Any]] | None:
    """Accept {name: values} or the stored list of {name, values, reasons}."""
    if not rewards:
        return None
    if isinstance(rewards, Mapping):
        rewards = [{"name": name, "values": _items(values)} for name, values in rewards.items()]
    return [
        {
            "name": r["name"],
            "values": _items(r["values"]),
            "reasons": _items(r.get("reasons") or [None] * len(r["values"])),
        }
        for r in sorted(rewards, key=lambda r: r["name"])
    ]


def normal_row(row: Mapping[str, Any], where: str = "row") -> dict[str, Any]:
    """Fill in what is missing and check what is there, so that every row has every column.

    Args:
        row: `prompt` (text, messages or `Message`s; an empty one is none: the response is plain text) and, where known,
            the other columns of `FEATURES`; `meta` may be a dict.
        where: named in errors.

    Raises:
        DataError: unknown columns, wrong roles, a per-response column whose length is not K, a rating outside
        `RATINGS`.
    """
    if not isinstance(row, Mapping):
        what = f"AK-D21 a row of type {type(row).__name__}"
        raise DataError(what, where=where, remedy="give a dict of columns, such as {'prompt': …, 'responses': […]}")
    refuse_unknown(row, where)
    out: dict[str, Any] = {name: row.get(name) for name in FEATURES}
    for name in _NORMAL:
        out[name] = normal_value(name, out[name], where)
    out["prompt_id"] = out["prompt_id"] or prompt_id(out["prompt"])
    check_lengths(out, len(out["responses"]), where)
    return out


def normal_value(name: str, value: Any, where: str) -> Any:
    """One value of a column as it is stored, from whatever `normal_row` accepts.

    Raises:
        DataError: a value that this column cannot hold.
    """
    change = _NORMAL.get(name)
    try:
        return value if change is None else change(value, where)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ill_typed(name, value, where) from error


def _normal_meta(meta: Any, where: str) -> str | None:
    if meta is not None and not isinstance(json.loads(meta) if isinstance(meta, str) else meta, Mapping):
        raise TypeError("no JSON object")
    return meta if meta is None or isinstance(meta, str) else canonical_json(meta)


def _normal_rating(rating: Any, where: str) -> Any:
    if rating is not None and rating not in RATINGS:
        raise DataError(f"rating {rating!r} is outside the scale", where=where, remedy=f"use {', '.join(RATINGS)}")
    return rating


_NORMAL: dict[str, Callable[[Any, str], Any]] = {
    "prompt": _normal_prompt,
    "responses": _normal_responses,
    "response_fields": lambda value, where: [packed(v) for v in _items(value)] if value and any(value) else None,
    "tags": lambda value, where: [] if value is None else _items(value),
    "rewards": lambda value, where: _normal_rewards(value),
    "meta": _normal_meta,
    "rating": _normal_rating,
}


def check_lengths(row: Mapping[str, Any], count: int, where: str) -> None:
    """Refuse what is known of each response, where there is another number of them.

    Args:
        row: the columns to look at, all or some.
        count: how many responses there are.
        where: named in the error.

    Raises:
        DataError: with the lengths that differ.
    """
    for name in PER_RESPONSE:
        if row.get(name) is not None and (isinstance(row[name], str | Mapping) or not hasattr(row[name], "__len__")):
            raise ill_typed(name, row[name], where)
    lengths = {name: len(row[name]) for name in PER_RESPONSE if row.get(name) is not None}
    lengths |= {f"rewards[{r['name']}]": len(r["values"]) for r in row.get("rewards") or []}
    wrong = {name: length for name, length in lengths.items() if length != count}
    if wrong:
        raise DataError(f"{wrong} where there are {count} responses", where=where)


def refuse_unknown(names: Iterable[str], where: str) -> None:
    """Refuse names that are no columns.

    Raises:
        DataError: naming them.
    """
    unknown = set(names) - set(FEATURES)
    if unknown:
        raise DataError(f"unknown columns {sorted(unknown)}", where=where, remedy=f"use {', '.join(FEATURES)}")
