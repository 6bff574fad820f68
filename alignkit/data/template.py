"""A chat template's text, taken apart into scaffold and contents."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from alignkit.data.beside_text import fields_of, for_template
from alignkit.data.rendering import RENDERER
from alignkit.errors import DataError
from alignkit.groups import Message

MAX_TEMPLATE = 64 * 1024
"""Bytes of the longest template that is rendered: templates come from strangers."""


class Piece(NamedTuple):
    """Some characters of the rendered conversation: of the template (owner None) or of the message number `owner`."""

    text: str
    owner: int | None


def turns_of(messages: Sequence[Mapping[str, Any] | Message]) -> list[dict[str, Any]]:
    """Messages as plain dicts with role, content, trained, fields.

    Raises:
        DataError: fields that are no JSON object.
    """
    dicts = [message.to_dict() if isinstance(message, Message) else message for message in messages]
    return [
        {"role": d["role"], "content": d["content"], "trained": bool(d.get("trained")), "fields": fields_of(d)}
        for d in dicts
    ]


def fold_system(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the leading system text before the first user turn.

    Raises:
        DataError: no user turn follows.
    """
    system, *rest = turns
    if not rest or rest[0]["role"] != "user":
        raise DataError("a system turn that no user turn follows, and the chat template has no system role")
    fields = {**system.get("fields", {}), **rest[0].get("fields", {})}
    first = {**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}", "fields": fields}
    return [first, *rest[1:]]


def without_oldest(turns: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Leave out the oldest exchange that may go (a user turn up to the next user turn), or None if there is none.

    The system turn, the first exchange and everything from the last user turn on stay, so that roles still alternate
    and every answer still follows its question.
    """
    starts = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    if len(starts) < 3:
        return None
    return turns[: starts[1]] + turns[starts[2] :]


def render(tokenizer: Any, template: str, turns: list[dict[str, Any]], generation_prompt: bool = True) -> str:
    """The template's text for a conversation.

    Raises:
        DataError: the template refuses the conversation, fails, or goes beyond a limit (see `Renderer`).
    """
    if not turns:
        raise DataError("a conversation without a message, for which a chat template writes nothing")
    messages, tools = for_template(turns)
    given = {} if tools is None else {"tools": tools}
    try:
        return RENDERER.render(template, messages, generation_prompt, **tokenizer.special_tokens_map, **given)
    except ValueError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"the chat template fails on a conversation of roles [{roles}]: {error}",
            remedy="change the roles of the conversation, or give another template",
        ) from error


def pieces_of(
    tokenizer: Any,
    template: str,
    turns: list[dict[str, Any]],
    nonce: str,
    generation_prompt: bool = True,
) -> list[Piece]:
    """Render a conversation and tell scaffold from content.

    Args:
        tokenizer: renders the template.
        template: Jinja source.
        turns: from `turns_of`.
        nonce: letters and digits that nobody can guess; it stands for the contents while rendering.
        generation_prompt: with what the template writes before a response.

    Returns:
        Pieces that joined are the rendered text. An answer may be shown otherwise than given, as thinking templates
        leave `<think>…</think>` out of earlier ones: its piece is what is shown.

    Raises:
        DataError: the template fails, drops a message, shows one twice or before an earlier one, or changes one of
            somebody else by more than white space at its ends.
    """
    if any(nonce in turn["content"] for turn in turns):
        raise DataError("a message contains the secret that separates messages", remedy="take it out of the text")
    # A message without text has no characters to find, and templates may well leave it out.
    holes = [{**turn, "content": f"{nonce}{i}Z" if turn["content"] else ""} for i, turn in enumerate(turns)]
    bare = render(tokenizer, template, holes, generation_prompt)
    parts = re.split(f"{nonce}([0-9]+)Z", bare)
    owners = [int(part) for part in parts[1::2]]
    for i, turn in enumerate(turns):
        if turn["content"] and i not in owners:
            raise DataError(
                f"the chat template drops or rewrites the text of message {i} (role {turn['role']})",
                effect="The model would not see it.",
                remedy="use a template that shows every message",
            )
    _refuse_order(owners, turns)
    true = render(tokenizer, template, turns, generation_prompt)
    contents = [turn["content"] for turn in turns]
    pieces = _fill(parts, contents, true)
    if pieces is None:
        for i in (i for i, turn in enumerate(turns) if turn["role"] == "assistant" and turn["content"]):
            given = [{**hole, "content": contents[i]} if i == k else hole for k, hole in enumerate(holes)]
            shown = render(tokenizer, template, given, generation_prompt)
            parts, contents[i] = _shown(parts, i, bare, shown, f"{nonce}{i}Z")
        pieces = _fill(parts, contents, true)
    if pieces is None:
        raise DataError(
            "the chat template rewrites a message (it shows it otherwise than given, white space at its ends aside)",
            effect="What the model would see is not what the data say.",
            remedy="change the text (some templates cut out marks such as </think>), or give another template",
        )
    return pieces


def _refuse_order(owners: Sequence[int], turns: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a template that repeats a message, or shows the turns in another order; where the system's text stands is
    the template's own affair (Mistral's put it before the last turn).

    Raises:
        DataError: naming the message.
    """
    twice = next((i for i in owners if owners.count(i) > 1), None)
    said = [i for i in owners if turns[i]["role"] not in ("system", "developer")]
    early = next((i for one, i in itertools.pairwise(said) if i < one), None)
    if twice is None and early is None:
        return
    what = f"message {twice} more than once" if twice is not None else f"message {early} after a later one"
    raise DataError(
        f"the chat template shows {what}",
        effect="What the model would see is not what the data say.",
        remedy="give another template: run.policy(…, chat_template=…)",
    )


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many characters, or ids, two begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _shown(parts: list[str], owner: int, bare: str, shown: str, hole: str) -> tuple[list[str], str]:
    """What a template makes of one message, and the scaffold around it.

    Args:
        parts: scaffold and the number of a message, in turn.
        owner: the message.
        bare: the conversation with nonces for all contents, of which `parts` were made.
        shown: the same with the true content of this message.
        hole: its nonce.

    Returns:
        (parts, whose scaffold beside the message holds what both texts have there; the message as it is shown).
    """
    before, _, after = bare.partition(hole)
    begin = common_length(before, shown)
    rest = shown[begin:]
    tail = common_length(after[::-1], rest[::-1])
    place = 2 * [int(part) for part in parts[1::2]].index(owner) + 1
    lost, gone = len(before) - begin, len(after) - tail
    fitted = list(parts)
    if lost <= len(parts[place - 1]) and gone <= len(parts[place + 1]):  # else `_fill` finds no fit
        fitted[place - 1] = parts[place - 1][: len(parts[place - 1]) - lost]
        fitted[place + 1] = parts[place + 1][gone:]
    return fitted, rest[: len(rest) - tail]


def _fill(parts: list[str], contents: list[str], true: str) -> list[Piece] | None:
    """Put the contents into the holes, stripped where the template strips them, by walking along the true text.

    Args:
        parts: scaffold and the number of a message, in turn.
        contents: the text of each message.
        true: what the template makes of the contents themselves.
    """
    pieces: list[Piece] = []
    where = 0
    for place, part in enumerate(parts):
        if place % 2 == 0:
            options, following, owner = [part], "", None
        else:
            owner = int(part)
            content = contents[owner]
            options, following = [content, content.rstrip(), content.lstrip(), content.strip()], parts[place + 1]
        text = next((option for option in options if true.startswith(option + following, where)), None)
        if text is None:
            return None
        pieces.append(Piece(text, owner))
        where += len(text)
    return [piece for piece in pieces if piece.text] if where == len(true) else None


def probe_system(tokenizer: Any, template: str, nonce: str) -> bool:
    """Whether the template has a system role.

    Raises:
        DataError: it fails on one user turn, or drops it.
    """
    user = {"role": "user", "content": "A user asks.", "trained": False, "fields": {}}
    pieces_of(tokenizer, template, [user], nonce)
    try:
        pieces_of(tokenizer, template, [{**user, "role": "system"}, user], nonce)
    except DataError:
        return False
    return True


class Answered(NamedTuple):
    """What a template writes around the text of an assistant turn.

    Args:
        closing: the token that closes it; None: the template writes none.
        lead: the white space between the generation prompt and its first word.
        opening: what the generation prompt has beyond the head of a turn (`<think>`).
        words: all words beside the two texts of the turn and the question before it.
    """

    closing: str | None
    lead: str
    opening: str
    words: frozenset[str]


def probe_end(tokenizer: Any, template: str, nonce: str, special: Iterable[str], marks: Iterable[str]) -> Answered:
    """What surrounds the text of an assistant turn.

    Args:
        tokenizer, template, nonce: as in `pieces_of`.
        special: texts of the special tokens, one of which closes the turn.
        marks: those of added tokens that are not special: one of them does, where no special one stands there.
    """
    turns = turns_of([{"role": "user", "content": f"{nonce}0Z"}, {"role": "assistant", "content": f"{nonce}1Z"}])
    try:
        before = render(tokenizer, template, turns[:1], generation_prompt=True)
        after = render(tokenizer, template, turns, generation_prompt=False)
    except DataError:
        return Answered(None, "", "", frozenset())
    head, found, tail = after.partition(turns[1]["content"])
    if not found:
        return Answered(None, "", "", frozenset())
    rest = tail.lstrip()
    closing = [token for token in special if rest.startswith(token)] or [m for m in marks if rest.startswith(m)]
    lead = head.removeprefix(before) if head.startswith(before) else ""
    opening = before.removeprefix(head) if before.startswith(head) else ""
    around = words_of(head.partition(turns[0]["content"])[2] + " " + tail)
    return Answered(max(closing, key=len, default=None), "" if lead.strip() else lead, opening, around)


_MARKS = re.compile(r"<[^<>]{1,60}>|\[/?\w+\]")
_ROLES = frozenset({"assistant", "model", "ai", "bot", "chatbot", "gpt", "answer", "response"})


def words_of(scaffold: str) -> frozenset[str]:
    """The words of a scaffold, in lower case, without what stands in a mark such as `<|im_start|>` or `[/INST]`."""
    return frozenset(re.findall(r"\w+", _MARKS.sub(" ", scaffold).lower()))


def refuse_answer(pieces: Sequence[Piece], last: int, around: frozenset[str]) -> None:
    """Refuse a prompt at whose end the template itself speaks in the model's stead.

    Args:
        pieces: of a conversation with its generation prompt.
        last: the number of its last message.
        around: the words that stand around an answer anyway, see `Answered`.

    Raises:
        DataError: after the last message the template writes words that no turn of an assistant begins with.
    """
    ends = [place for place, piece in enumerate(pieces) if piece.owner is not None]
    if not ends or pieces[ends[-1]].owner != last:
        return
    tail = "".join(piece.text for piece in pieces[ends[-1] + 1 :])
    if words_of(tail) - around - _ROLES:
        raise DataError(
            f"the generation prompt of the chat template begins an answer: {tail.strip()[:80]!r}",
            effect="Every response would go on from words that are neither the user's nor the model's.",
            remedy="give another template: run.policy(…, chat_template=…)",
        )
