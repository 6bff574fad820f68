"""Prompts and responses as people write them down: plain text, messages, transcripts."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from alignkit.data.messages import (
    ROLE,
    SPEAKERS,
    BadRow,
    Turn,
    is_message,
    nothing,
    parsed,
    refuse_unparsed,
    text_of,
    tools_of,
    turn_of,
)

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def is_transcript(value: Any, headed: bool = False) -> bool:
    """Whether a text is written as `\\n\\nHuman: … \\n\\nAssistant: …`.

    Args:
        value: anything.
        headed: a system text may stand before the first "Human:"; else such a text may as well quote a dialogue.
    """
    if not isinstance(value, str) or "\n\nAssistant:" not in value:
        return False
    if value.lstrip().startswith("Human:"):
        return True
    return headed and 0 <= value.find("\n\nHuman:") < value.index("\n\nAssistant:")


def transcript_turns(text: str) -> list[Turn]:
    """The turns of a `\\n\\nHuman: … \\n\\nAssistant: …` transcript, without the white space around each."""
    parts = _SPEAKER.split("\n\n" + text.lstrip())
    speakers = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    turns = [{"role": speakers[speaker], "content": said.strip()} for speaker, said in pairs]
    return [{"role": "system", "content": parts[0].strip()}, *turns] if parts[0].strip() else turns


def turns_in(value: Any, field: str, headed: bool = False) -> list[Turn]:
    """A conversation from messages (or their JSON text), a transcript or plain text (one user turn; of an empty text,
    none).

    Args:
        value: of the column.
        field: its name.
        headed: as of `is_transcript`; what ends with "Assistant:" is one in any case.

    Raises:
        BadRow: what is none of these.
    """
    found = parsed(value)
    if _told(found):
        value = found
    if isinstance(value, str):
        if not value:
            return []
        refuse_unparsed(value, field)
        if not is_transcript(value, headed or value.rstrip().endswith("\n\nAssistant:")):
            return [{"role": "user", "content": value}]
        turns = transcript_turns(value)
        # "…\n\nAssistant:" at the end asks for a response, it is none.
        return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns
    if isinstance(value, Mapping) and is_message(value):
        value = [value]
    if isinstance(value, Mapping) and "messages" in value:
        return with_tools(turns_in(value["messages"], f"{field}.messages"), value.get("tools"))
    if not isinstance(value, list | tuple) or not value:
        what = "holds no messages" if value == [] else f"is of type {type(value).__name__}"
        raise BadRow("D21", field, what, remedy="give a list of {role, content}, or a text")
    turns = []
    for place, message in enumerate(value):
        turns += _exchange(message, f"{field}[{place}]")
    return turns


EXCHANGES = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer"))
"""What a question and its answer are called where they stand in one entry."""


def _exchange(message: Any, field: str) -> list[Turn]:
    """A message; or a question with its answer, as {human, assistant}."""
    both = next((pair for pair in EXCHANGES if isinstance(message, Mapping) and set(message) == {*pair}), None)
    if both is None:
        return [turn_of(message, field)]
    roles = zip(("user", "assistant"), both, strict=True)
    return [{"role": role, "content": text_of(message[name], f"{field}.{name}")} for role, name in roles]


def _told(found: Any) -> bool:
    """Whether a value is a message or messages, or the object that holds them."""
    if isinstance(found, Mapping):
        inner = found.get("messages")
        return (is_message(found) and _speaks(found)) or (isinstance(inner, list) and bool(inner) and _told(inner))
    return isinstance(found, list) and bool(found) and all(is_message(message) for message in found)


def _speaks(message: Mapping[str, Any]) -> bool:
    """Whether an object that stands alone is said by somebody known; an answer may be JSON of its own with a role."""
    return any(str(message.get(name)).lower() in SPEAKERS for name in ROLE[:2])


def with_tools(turns: list[Turn], tools: Any) -> list[Turn]:
    """A conversation with the schemas of the tools that it may call, kept with its first turn."""
    if nothing(tools) or not turns:
        return turns
    found = tools_of(tools)
    return [{**turns[0], "fields": {**turns[0].get("fields", {}), "tools": found}}, *turns[1:]] if found else turns


def conversation(parts: Mapping[str, Any], field: str = "prompt") -> list[Turn]:
    """The conversation before a response from the columns that it may stand in: a system text, earlier exchanges
    ([[question, answer], …] or messages), the prompt itself with its input below it, and the tools.

    Args:
        parts: of a row.
        field: what the prompt is called in errors.

    Raises:
        BadRow: what cannot be read.
    """
    prompt = turns_in(parts["prompt"], field) if parts.get("prompt") is not None else []
    if "input" in parts:
        if len(prompt) != 1 or prompt[0]["role"] != "user":
            raise BadRow("D21", "input", "stands beside a prompt of several turns", remedy="write it into the prompt")
        # One below the other, as LLaMA-Factory's converter for Alpaca's columns does.
        prompt = [{**prompt[0], "content": f"{prompt[0]['content']}\n{text_of(parts['input'], 'input')}"}]
    prompt = [*_earlier(parts.get("history")), *prompt]
    if "system" in parts:
        if prompt and prompt[0]["role"] == "system":
            if prompt[0]["content"] != parts["system"]:
                raise BadRow("D12", "system", "is another text than the system turn", remedy="give one of them")
        else:
            prompt = [{"role": "system", "content": text_of(parts["system"], "system")}, *prompt]
    return with_tools(prompt, parts.get("tools"))


def _earlier(history: Any) -> list[Turn]:
    history = parsed(history)
    if nothing(history):
        return []
    if not isinstance(history, list | tuple):
        raise BadRow("D21", "history", "is no list of exchanges", remedy="give [[question, answer], …]")
    if all(isinstance(exchange, list | tuple) and len(exchange) == 2 for exchange in history):
        turns: list[Turn] = []
        for place, (asked, answered) in enumerate(history):
            turns.append({"role": "user", "content": text_of(asked, f"history[{place}][0]")})
            turns.append({"role": "assistant", "content": text_of(answered, f"history[{place}][1]")})
        return turns
    return turns_in(history, "history")


def response_in(value: Any, prompt: list[Turn], field: str) -> Turn:
    """A response as an assistant turn, from plain text, one message, or a conversation that begins with the prompt.

    Raises:
        BadRow: D03 where the prompt is no prefix of the conversation.
    """
    found = parsed(value)
    told = _told(found)
    if isinstance(value, str) and not told and not is_transcript(value):
        refuse_unparsed(value, field)
        return {"role": "assistant", "content": value}
    turns = turns_in(found if told else value, field)
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
    return turns[0]


def answered(prompt: list[Turn], answers: Iterable[Turn]) -> dict[str, Any]:
    """The columns of `Groups` for a prompt and its responses."""
    turns = list(answers)
    fields = [{k: v for k, v in turn.get("fields", {}).items() if k != "weight"} for turn in turns]
    more = {"response_fields": fields} if any(fields) else {}
    return {"prompt": prompt, "responses": [turn["content"] for turn in turns], **more}


def demonstrated(turns: list[Turn], field: str) -> tuple[list[Turn], Turn]:
    """What comes before the last answer that is to be learned, and that answer.

    Where messages say of themselves whether they are learned (weight 0 or 1), the answers that say nothing are, as in
    the form of OpenAI; what comes after the last learned answer has no bearing on anything.

    Raises:
        BadRow: no answer is to be learned.
    """
    if any(turn.get("fields", {}).get("weight") == 0 or turn.get("trained") for turn in turns):
        weighed = any("weight" in turn.get("fields", {}) for turn in turns)
        left = [i for i, t in enumerate(turns) if t["role"] == "assistant" and "weight" not in t.get("fields", {})]
        if not left:
            raise BadRow("D21", field, "no answer is learned: each has weight 0", remedy="drop the row")
        marked = {**{i: {**turns[i], "trained": True} for i in left}} if weighed else {}
        turns = [marked.get(i, turn) for i, turn in enumerate(turns[: left[-1] + 1])]
    return turns[:-1], turns[-1]


def implicit_pair(
    chosen: Any, rejected: Any, names: tuple[str, str] = ("chosen", "rejected")
) -> tuple[list[Turn], Turn, Turn]:
    """The prompt that two conversations or texts share, and what each goes on with.

    Args:
        chosen: one.
        rejected: the other.
        names: what they are called in errors.

    Raises:
        BadRow: D03 where they share no prompt, or differ before the last turn.
    """
    if isinstance(chosen, str) and isinstance(rejected, str) and not is_transcript(chosen, True):
        return _shared_text(chosen, rejected, names)
    both = [turns_in(value, name, headed=True) for value, name in zip((chosen, rejected), names, strict=True)]
    for turns, field in zip(both, names, strict=True):
        if not turns or turns[-1]["role"] != "assistant":
            raise BadRow("D12", field, "does not end with an assistant turn", remedy="give the response too")
    prompt, other = both[0][:-1], both[1][:-1]
    if not prompt or not _same(prompt, other):
        pairs = list(zip(prompt, other, strict=False))
        shared = next((place for place, (a, b) in enumerate(pairs) if not _same([a], [b])), len(pairs))
        what = f"no common prompt: they share {shared} messages of {len(prompt)} and {len(other)} before the last"
        raise BadRow("D03", names[1], what, "the pair would not answer the same prompt", "repair the row")
    return prompt, both[0][-1], both[1][-1]


def _shared_text(chosen: str, rejected: str, names: tuple[str, str]) -> tuple[list[Turn], Turn, Turn]:
    if chosen == rejected:
        raise BadRow("D02", names[1], "identical pair", "its gradient is exactly zero", "drop the row")
    shared = common = _common_prefix(chosen, rejected)
    if any(text[len(common) :] and not text[len(common)].isspace() for text in (chosen, rejected)):
        # Never inside a word: both responses begin with a whole one.
        shared = re.sub(r"\S*\Z", "", common)
    if not shared.strip():
        what = f"they share only {len(common)} characters: is the prompt missing?"
        raise BadRow("D03", names[0], what, "there is no prompt to learn from", "add a column prompt")
    answers = [{"role": "assistant", "content": text[len(shared) :].strip()} for text in (chosen, rejected)]
    return [{"role": "user", "content": shared.strip()}], answers[0], answers[1]


def _common_prefix(one: str, other: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(character for character, _ in same)


def _same(one: list[Turn], other: list[Turn]) -> bool:
    return [(t["role"], t["content"], _calls(t)) for t in one] == [(t["role"], t["content"], _calls(t)) for t in other]


def _calls(turn: Turn) -> Any:
    return {name: value for name, value in turn.get("fields", {}).items() if name not in ("tools", "weight")}


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
