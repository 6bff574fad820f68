"""Prompts and responses as people write them down: plain text, messages, transcripts."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from alignkit.data.checks import Finding
from alignkit.errors import suggestion
from alignkit.groups import ROLES

Turn = dict[str, Any]

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class BadRow(Exception):
    """A row that cannot be read; carries what is wrong with it."""

    def __init__(self, code: str, field: str, what: str, effect: str = "", remedy: str = "") -> None:
        self.finding = Finding(code, field, what, effect, remedy)
        super().__init__(what)


def text_of(value: Any, field: str) -> str:
    """A text, or `BadRow`."""
    if not isinstance(value, str):
        raise BadRow("D21", field, f"is of type {type(value).__name__} where text is expected", remedy="give a text")
    return value


def is_transcript(value: Any) -> bool:
    """Whether a text is written as `\\n\\nHuman: … \\n\\nAssistant: …`."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def transcript_turns(text: str) -> list[Turn]:
    """The turns of a `\\n\\nHuman: … \\n\\nAssistant: …` transcript, without the white space around each."""
    parts = _SPEAKER.split("\n\n" + text.lstrip())
    speakers = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": speakers[speaker], "content": said.strip()} for speaker, said in pairs]


def turns_in(value: Any, field: str) -> list[Turn]:
    """A conversation from messages, a transcript or plain text (one user turn; of an empty text, none).

    Raises:
        BadRow: what is none of these.
    """
    if isinstance(value, str):
        if not value:
            return []
        if not is_transcript(value):
            return [{"role": "user", "content": value}]
        turns = transcript_turns(value)
        # "…\n\nAssistant:" at the end asks for a response, it is none.
        return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns
    if not isinstance(value, list | tuple) or not value:
        what = "holds no messages" if value == [] else f"is of type {type(value).__name__}"
        raise BadRow("D21", field, what, remedy="give a list of {role, content}, or a text")
    return [_turn(turn, f"{field}[{place}]") for place, turn in enumerate(value)]


def _turn(turn: Any, field: str) -> Turn:
    if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
        found = sorted(map(str, turn)) if isinstance(turn, Mapping) else type(turn).__name__
        raise BadRow("D21", field, f"is no message: {found}", remedy="give {role, content}")
    if turn["role"] not in ROLES:
        raise BadRow("D12", field, f"unknown role {turn['role']!r}", remedy=suggestion(turn["role"], ROLES))
    content = turn["content"]
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(text_of(part.get("text"), f"{field}.content") for part in content)
    kept: Turn = {"role": turn["role"], "content": text_of(content, f"{field}.content")}
    return kept | ({"trained": True} if turn.get("trained") else {})


def response_in(value: Any, prompt: list[Turn], field: str) -> str:
    """The text of a response: plain, one assistant message, or a conversation that begins with the prompt.

    Raises:
        BadRow: D03 where the prompt is no prefix of the conversation.
    """
    if isinstance(value, str) and not is_transcript(value):
        return value
    turns = turns_in(value, field)
    if len(turns) > 1:
        if not _same(turns[: len(prompt)], prompt):
            raise BadRow(
                "D03", field, "the prompt is no prefix of it", "the pair would not answer the same prompt", "repair it"
            )
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = [turn["role"] for turn in turns]
        raise BadRow(
            "D12", field, f"{roles} follow the prompt where one assistant turn is expected", remedy="split the row"
        )
    return turns[0]["content"]


def implicit_pair(chosen: Any, rejected: Any) -> tuple[list[Turn], str, str]:
    """The prompt that two conversations or texts share, and what each goes on with.

    Raises:
        BadRow: D03 where they share no prompt, or differ before the last turn.
    """
    if isinstance(chosen, str) and isinstance(rejected, str) and not is_transcript(chosen):
        return _shared_text(chosen, rejected)
    both = [turns_in(chosen, "chosen"), turns_in(rejected, "rejected")]
    for turns, field in zip(both, ("chosen", "rejected"), strict=True):
        if turns[-1]["role"] != "assistant":
            raise BadRow("D12", field, "does not end with an assistant turn", remedy="give the response too")
    prompt, other = both[0][:-1], both[1][:-1]
    if not prompt or not _same(prompt, other):
        pairs = list(zip(prompt, other, strict=False))
        shared = next((place for place, (a, b) in enumerate(pairs) if not _same([a], [b])), len(pairs))
        what = f"no common prompt: they share {shared} messages of {len(prompt)} and {len(other)} before the last"
        raise BadRow("D03", "rejected", what, "the pair would not answer the same prompt", "repair the row")
    return prompt, both[0][-1]["content"], both[1][-1]["content"]


def _shared_text(chosen: str, rejected: str) -> tuple[list[Turn], str, str]:
    if chosen == rejected:
        raise BadRow("D02", "rejected", "identical pair", "its gradient is exactly zero", "drop the row")
    shared = common = _common_prefix(chosen, rejected)
    if any(text[len(common) :] and not text[len(common)].isspace() for text in (chosen, rejected)):
        # Never inside a word: both responses begin with a whole one.
        shared = re.sub(r"\S*\Z", "", common)
    if not shared.strip():
        what = f"they share only {len(common)} characters: is the prompt missing?"
        raise BadRow("D03", "chosen", what, "there is no prompt to learn from", "add a column prompt")
    return [{"role": "user", "content": shared.strip()}], chosen[len(shared) :].strip(), rejected[len(shared) :].strip()


def _common_prefix(one: str, other: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(character for character, _ in same)


def _same(one: list[Turn], other: list[Turn]) -> bool:
    return [(t["role"], t["content"]) for t in one] == [(t["role"], t["content"]) for t in other]


def columns_hint(found: Iterable[str], known: Iterable[str]) -> str:
    """Which column was probably meant."""
    usual = {
        "instruction": "prompt", "question": "prompt", "query": "prompt", "input": "prompt", "output": "completion",
        "conversations": "messages", "answer": "completion", "text": "messages", "winner": "chosen",
        "loser": "rejected",
    }  # fmt: skip
    meant = {}
    for name in found:
        close = difflib.get_close_matches(name.lower(), list(known), 1, 0.75)
        if name not in known and (close or name.lower() in usual):
            meant[close[0] if close else usual[name.lower()]] = name
    if not meant:
        return f"map what you have with columns={{'prompt': …}}; known: {', '.join(known)}"
    return f"did you mean columns={meant}?"
