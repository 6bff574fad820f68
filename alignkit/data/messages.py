"""One message as people write it down: OpenAI's, ShareGPT's, LLaMA-Factory's and others' fields to ours.

A field that the chat template reads is kept in `fields`; one that could carry meaning and is not understood is refused
by name. What is left is the sender's own bookkeeping.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from alignkit.data.checks import Finding
from alignkit.errors import suggestion
from alignkit.groups import ROLES

Turn = dict[str, Any]

SPEAKERS = {
    "human": "user", "user": "user", "prompter": "user", "question": "user", "instruction": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "bot": "assistant", "model": "assistant", "ai": "assistant", "answer": "assistant", "system": "system",
    "developer": "system", "tool": "tool", "observation": "tool", "function": "tool", "tool_response": "tool",
    "function_response": "tool", "ipython": "tool", "function_call": "call", "tool_call": "call",
}  # fmt: skip
"""The names that files give to whoever speaks; "call" is an assistant turn that is a call of a tool."""

ROLE, TEXT = ("role", "from", "speaker"), ("content", "value", "text")
"""The fields that say who speaks, and what is said, in the order in which they are looked for."""

READ_BY_TEMPLATES = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""Fields that a chat template may read; they are kept beside the text."""

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_LEARNED = ("weight", "loss_weight", "loss", "train", "training")
_BOOKKEEPING = {
    "id", "message_id", "parent_id", "timestamp", "ts", "date", "created", "created_at", "model", "finish_reason",
    "stop_reason", "index", "uuid", "key", "lang", "language", "author", "user", "user_id", "object", "logprobs",
    "generator", "source", "num_tokens", "num_turns", "rank", "turn",
}  # fmt: skip
_PICTURES = ("image", "image_url", "input_image", "video", "video_url", "audio", "audio_url", "input_audio", "file")


LONGEST = 300
"""Characters that are said of what is wrong with a row; a value of the file may be as long as it likes."""


class BadRow(Exception):
    """A row that cannot be read; carries what is wrong with it."""

    def __init__(self, code: str, field: str, what: str, effect: str = "", remedy: str = "") -> None:
        what = what if len(what) <= LONGEST else f"{what[: LONGEST // 2]} … {what[-LONGEST // 2 :]}"
        self.finding = Finding(code, field, what, effect, remedy)
        super().__init__(what)


def text_of(value: Any, field: str) -> str:
    """A text, or `BadRow`."""
    if not isinstance(value, str):
        raise BadRow("D21", field, f"is of type {type(value).__name__} where text is expected", remedy="give a text")
    return value


_LIKE_MESSAGES = re.compile(
    r"\s*\[?\s*\{\s*(?:'(?:role|from|content|value)'\s*:"
    rf"|\"(?:role|from)\"\s*:\s*\"(?:{'|'.join(SPEAKERS)})\")"
)


def refuse_unparsed(text: str, field: str) -> None:
    """Refuse messages that were written as text and not as JSON (as pandas writes them into a CSV file) or are torn:
    their brackets would be learned.

    Raises:
        BadRow: so.
    """
    if _LIKE_MESSAGES.match(text):
        what, effect = "holds messages as text that is no JSON", "the brackets would be read as what was said"
        raise BadRow("D21", field, what, effect, "write messages with json.dumps, or the table as Parquet")


def nothing(value: Any) -> bool:
    """Whether a value says nothing: null, or empty of its kind (tables fill such columns in)."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and len(value) == 0)


def parsed(text: Any) -> Any:
    """What a text holds as JSON; the text itself, where it is none, and any other value as it is."""
    if not isinstance(text, str) or text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def is_message(value: Any) -> bool:
    """Whether a value is a message: says who speaks, and what is said."""
    return (
        isinstance(value, Mapping)
        and any(name in value for name in ROLE[:2])
        and bool({*TEXT, "tool_calls"} & {*value})
    )


def turn_of(message: Any, field: str) -> Turn:
    """A message as a turn: `role`, `content`, and where it says so `trained` and `fields`.

    Raises:
        BadRow: it is none; an unknown role; a field or a part that cannot be learned from.
    """
    speaks = next((name for name in ROLE if name in message), "") if isinstance(message, Mapping) else ""
    says = next((name for name in TEXT if name in message), "") if isinstance(message, Mapping) else ""
    if not speaks or not (says or message.get("tool_calls") or message.get("function_call")):
        found = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
        raise BadRow("D21", field, f"is no message: {found}", remedy="give {role, content} or {from, value}")
    role = message[speaks]
    named = SPEAKERS.get(role.lower()) if isinstance(role, str) else None
    if named is None:
        raise BadRow("D12", field, f"unknown role {role!r}", remedy=suggestion(role, ROLES))
    turn: Turn = {"role": "assistant" if named == "call" else named}
    text, fields = _content(message.get(says), f"{field}.{says}")
    if named == "call":
        text, fields = "", {"tool_calls": calls_of(text, f"{field}.{says}")}
    fields |= _fields(message, field)
    if message.get(says) is None and "tool_calls" not in fields:
        what = "is null, and there are no tool_calls" if says else "says nothing"
        raise BadRow("D21", f"{field}.{says or 'content'}", what, remedy="give a text, or drop the row")
    _refuse_others(message, {speaks, says}, field)
    if (learned := _learned(message, turn["role"], field)) is not None:
        fields |= {} if learned else {"weight": 0}
        turn |= {"trained": True} if learned else {}
    if message.get("trained"):
        turn["trained"] = True
    return {**turn, "content": text, **({"fields": fields} if fields else {})}


def _content(value: Any, field: str) -> tuple[str, dict[str, Any]]:
    """The text of a content, plain or in parts, and what its parts say beside it."""
    if value is None:
        return "", {}
    if not isinstance(value, list | tuple):
        return text_of(value, field), {}
    texts: list[str] = []
    fields: dict[str, Any] = {}
    for place, part in enumerate(value):
        where = f"{field}[{place}]"
        if not isinstance(part, Mapping) or not isinstance(part.get("type", "text"), str):
            raise BadRow("D21", where, "is no part of a content", remedy="give {type: text, text: …}")
        kind = part.get("type", "text")
        said = next((part[name] for name in ("text", "value", "content") if part.get(name) is not None), None)
        if kind in ("text", "input_text", "output_text"):
            texts.append(text_of(said, where))
        elif kind in (*_THOUGHTS, "thought"):
            fields["reasoning_content"] = fields.get("reasoning_content", "") + text_of(part.get(kind, said), where)
        elif kind == "tool_call":
            fields["tool_calls"] = [*fields.get("tool_calls", []), *calls_of(said, where)]
        else:
            what = f"a part of type {kind!r}"
            effect = "only text can be learned from" if kind in _PICTURES else "it would not be seen"
            raise BadRow("D21", where, what, effect, "take it out, or drop the row")
    return "".join(texts), fields


def calls_of(value: Any, field: str) -> list[dict[str, Any]]:
    """Calls of tools as OpenAI writes them, the arguments as an object; from one or several {name, arguments}, which
    may be JSON text.

    Raises:
        BadRow: what is no call.
    """
    value = parsed(value)
    calls = []
    for place, call in enumerate(value if isinstance(value, list | tuple) else [value]):
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            remedy = "give {type: function, function: {name, arguments}}"
            raise BadRow("D21", f"{field}[{place}]", "is no call of a tool", remedy=remedy)
        arguments = parsed(inner.get("arguments", inner.get("parameters", {})))
        own = {name: call[name] for name in ("id",) if isinstance(call.get(name), str)}
        calls.append({**own, "type": "function", "function": {"name": inner["name"], "arguments": arguments}})
    return calls


def tools_of(value: Any, field: str = "tools") -> list[Any]:
    """The schemas of the tools that a conversation may call, from a list or its JSON text.

    Raises:
        BadRow: what is no list of schemas.
    """
    value = parsed(value)
    schemas = list(value) if isinstance(value, list | tuple) else [value]
    schemas = [parsed(schema) for schema in schemas]
    if not all(isinstance(schema, Mapping) for schema in schemas):
        raise BadRow("D21", field, "is no list of tools", remedy="give a list of JSON schemas")
    return [
        dict(schema) if "function" in schema or "name" not in schema else {"type": "function", "function": dict(schema)}
        for schema in schemas
    ]


def _fields(message: Mapping[str, Any], field: str) -> dict[str, Any]:
    """What of a message a chat template may read beside its text."""
    found: dict[str, Any] = {}
    for name in ("tool_calls", "function_call"):
        if not nothing(message.get(name)):
            found["tool_calls"] = calls_of(message[name], f"{field}.{name}")
    for name in ("tool_call_id", "name"):
        if not nothing(message.get(name)):
            found[name] = text_of(message[name], f"{field}.{name}")
    for name in _THOUGHTS:
        if not nothing(message.get(name)):
            found["reasoning_content"] = text_of(message[name], f"{field}.{name}")
    return found


def _learned(message: Mapping[str, Any], role: str, field: str) -> bool | None:
    """Whether a message says that it is to be learned (weight 1, loss true) or not (0, false); None: it does not say.

    What is no answer is never learned, whatever it says of its weight.
    """
    for name in _LEARNED:
        value = message.get(name)
        if value is None or role != "assistant":
            continue
        if value not in (0, 1):
            what, effect = f"{value!r} is neither 0 nor 1", "every token of an answer counts alike"
            raise BadRow("D17", f"{field}.{name}", what, effect, "give 0 (not learned) or 1")
        return bool(value)
    return None


def _refuse_others(message: Mapping[str, Any], said: Iterable[str], field: str) -> None:
    known = {*said, *READ_BY_TEMPLATES, *_THOUGHTS, *_LEARNED, *_BOOKKEEPING, "trained", "function_call", "fields"}
    for name, value in message.items():
        if name not in known and not nothing(value):
            effect = "only text can be learned from" if str(name).rstrip("s") in _PICTURES else "it would not be seen"
            remedy = "take the field out if it says nothing that is to be learned"
            raise BadRow("D21", f"{field}.{name}", "is a field that is not understood", effect, remedy)
