"""What a message has beside its text: calls of tools, their schemas, thoughts.

The chat template shows them, or they are refused by name; and their texts cannot forge control tokens."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from alignkit.errors import DataError

UNSEEN = "The model would not see it."
REMEDY = "use a model whose chat template shows it, give one (run.policy(…, chat_template=…)), or leave such rows out"


def fields_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a message as a dict, {} where there are none.

    Raises:
        DataError: what is no JSON object.
    """
    fields = message.get("fields")
    if not fields:
        return {}
    try:
        found = json.loads(fields) if isinstance(fields, str) else fields
        return dict(found)
    except (ValueError, TypeError) as error:
        raise DataError(f"the fields of a message are no JSON object ({error})") from error


def for_template(turns: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """(the messages as a chat template reads them, the schemas of their tools or None)."""
    kept = ("tool_calls", "tool_call_id", "name", "reasoning_content")
    messages = [
        {"role": turn["role"], "content": turn["content"], **{k: v for k, v in turn["fields"].items() if k in kept}}
        for turn in turns
    ]
    tools = [schema for turn in turns for schema in turn["fields"].get("tools", [])]
    return messages, tools or None


def strings_in(value: Any) -> Iterator[str]:
    """The texts in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from strings_in(key)
            yield from strings_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings_in(inner)


def marked(
    turns: Sequence[Mapping[str, Any]], nonce: str, thoughts: Collection[int]
) -> tuple[list[Any], dict[str, str]]:
    """Turns in whose fields every text that has to be seen is a mark of its own.

    Args:
        turns: from `turns_of`.
        nonce: letters and digits that nobody can guess.
        thoughts: the turns whose thoughts have to be seen; of others a template may leave them out.

    Returns:
        (the turns, what each mark stands for).
    """
    marks: dict[str, str] = {}

    def mark(what: str) -> str:
        text = f"{nonce}F{len(marks)}Z"
        marks[text] = what
        return text

    def replaced(value: Any, what: str) -> Any:
        if isinstance(value, str):
            return mark(what) if value else value
        if isinstance(value, Mapping):
            return {key: replaced(inner, what) for key, inner in value.items()}
        return [replaced(inner, what) for inner in value] if isinstance(value, list | tuple) else value

    out = []
    for i, turn in enumerate(turns):
        fields = dict(turn["fields"])
        if "tool_calls" in fields:
            what = f"tool_calls of message {i}"
            calls = [call["function"] for call in fields["tool_calls"]]
            own = [{"name": mark(what), "arguments": replaced(call.get("arguments"), what)} for call in calls]
            pairs = zip(fields["tool_calls"], own, strict=True)
            fields["tool_calls"] = [{**call, "function": {**call["function"], **new}} for call, new in pairs]
        if "tools" in fields:
            fields["tools"] = [_named(schema, mark) for schema in fields["tools"]]
        if "reasoning_content" in fields and i in thoughts:
            fields["reasoning_content"] = mark(f"reasoning_content of message {i}")
        out.append({**turn, "fields": fields})
    return out, marks


def _named(schema: Any, mark: Any) -> Any:
    """A schema under a name that is a mark."""
    inner = schema.get("function") if isinstance(schema, Mapping) else None
    if isinstance(inner, Mapping):
        return {**schema, "function": {**inner, "name": mark("tools")}}
    return {**schema, "name": mark("tools")} if isinstance(schema, Mapping) and "name" in schema else schema


def refuse_unseen(shown: str, marks: Mapping[str, str]) -> None:
    """Refuse what a template does not show.

    Args:
        shown: what it makes of the turns of `marked`.
        marks: with what each stands for.

    Raises:
        DataError: naming the first.
    """
    for text, what in marks.items():
        if text not in shown:
            raise DataError(f"the chat template does not show the {what}", effect=UNSEEN, remedy=REMEDY)
