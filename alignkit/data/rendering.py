"""A chat template's text, taken apart into scaffold and contents."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignkit.errors import DataError
from alignkit.types import Message

MAX_TEMPLATE = 64 * 1024
"""Bytes of the longest template that is rendered: templates come from strangers."""


class Piece(NamedTuple):
    """Some characters of the rendered conversation: of the template (owner None) or of the message number `owner`."""

    text: str
    owner: int | None


def turns_of(messages: Sequence[Mapping[str, Any] | Message]) -> list[dict[str, Any]]:
    """Messages as plain dicts with role, content, trained."""
    dicts = [message.to_dict() if isinstance(message, Message) else message for message in messages]
    return [{"role": d["role"], "content": d["content"], "trained": bool(d.get("trained"))} for d in dicts]


def fold_system(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the leading system text before the first user turn.

    Raises:
        DataError: no user turn follows.
    """
    system, *rest = turns
    if not rest or rest[0]["role"] != "user":
        raise DataError("a system turn that no user turn follows, and the chat template has no system role")
    first = {**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}
    return [first, *rest[1:]]


def without_oldest(turns: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Leave out the oldest exchange that may go (a user turn up to the next user turn), or None if there is none.

    The system turn, the first exchange and everything from the last user turn on stay, so that roles still alternate and
    every answer still follows its question.
    """
    starts = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    if len(starts) < 3:
        return None
    return turns[: starts[1]] + turns[starts[2] :]


def render(tokenizer: Any, template: str, turns: list[dict[str, Any]], generation_prompt: bool = True) -> str:
    """The template's text for a conversation.

    Raises:
        DataError: the template refuses the conversation, or fails.
    """
    from jinja2 import TemplateError

    messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=generation_prompt
        )
    except (TemplateError, TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"the chat template fails on a conversation of roles [{roles}]: {error}",
            remedy="change the roles of the conversation, or give another template",
        ) from error


def pieces_of(tokenizer: Any, template: str, turns: list[dict[str, Any]], nonce: str) -> list[Piece]:
    """Render a conversation (with the generation prompt) and tell scaffold from content.

    Args:
        tokenizer: renders the template.
        template: Jinja source.
        turns: from `turns_of`.
        nonce: letters and digits that nobody can guess; it stands for the contents while rendering.

    Returns:
        Pieces that joined are the rendered text.

    Raises:
        DataError: the template fails, drops a message, or changes one by more than white space at its ends.
    """
    if any(nonce in turn["content"] for turn in turns):
        raise DataError("a message contains the secret that separates messages", remedy="take it out of the text")
    # A message without text has no characters to find, and templates may well leave it out.
    holes = [{**turn, "content": f"{nonce}{i}Z" if turn["content"] else ""} for i, turn in enumerate(turns)]
    parts = re.split(f"{nonce}([0-9]+)Z", render(tokenizer, template, holes))
    owners = [int(part) for part in parts[1::2]]
    for i, turn in enumerate(turns):
        if turn["content"] and i not in owners:
            raise DataError(
                f"the chat template drops or rewrites the text of message {i} (role {turn['role']})",
                effect="The model would not see it.",
                remedy="use a template that shows every message",
            )
    true = render(tokenizer, template, turns)
    for strip in (str, str.strip, str.lstrip, str.rstrip):
        texts = [strip(turn["content"]) for turn in turns]
        pieces = _fill(parts, texts)
        if "".join(piece.text for piece in pieces) == true:
            return pieces
    pieces = _fill_mixed(parts, turns, true)
    if pieces is None:
        raise DataError(
            "the chat template rewrites a message (it is not shown as it was given, white space at its ends aside)",
            effect="What the model would see is not what the data say.",
            remedy="change the text (some templates cut out reasoning marks such as </think>), or give another template",
        )
    return pieces


def _fill(parts: list[str], texts: list[str]) -> list[Piece]:
    """Put the texts into the holes; parts alternate scaffold and the number of a message."""
    pieces = [Piece(texts[int(part)], int(part)) if i % 2 else Piece(part, None) for i, part in enumerate(parts)]
    return [piece for piece in pieces if piece.text]


def _fill_mixed(parts: list[str], turns: list[dict[str, Any]], true: str) -> list[Piece] | None:
    """As `_fill` for templates that strip some messages and not others: walk along the true text."""
    pieces: list[Piece] = []
    where = 0
    for i, part in enumerate(parts):
        if i % 2 == 0:
            options = [part]
        else:
            content = turns[int(part)]["content"]
            options = [content, content.strip(), content.lstrip(), content.rstrip()]
        following = parts[i + 1] if i % 2 and i + 1 < len(parts) else ""
        text = next((o for o in options if true.startswith(o + following, where)), None)
        if text is None:
            return None
        pieces.append(Piece(text, int(part) if i % 2 else None))
        where += len(text)
    return [piece for piece in pieces if piece.text] if where == len(true) else None
