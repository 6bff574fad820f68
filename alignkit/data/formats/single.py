"""Formats of one answer, or none: demonstrations, labelled answers, prompts, plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit.data.conversations import (
    answered,
    conversation,
    demonstrated,
    is_transcript,
    response_in,
    transcript_turns,
    turns_in,
)
from alignkit.data.formats.columns import ASK, BEFORE, LABEL, OF_PROMPTS, RESPONSE, TALK, TRUTH, is_good
from alignkit.data.messages import BadRow, Turn, parsed, text_of
from alignkit.data.row_format import Parts, Reading, RowFormat

BESIDE_TALK = ("system|system_prompt|system_message", "tools|functions", "prompt")


def _answer(parts: Parts) -> Reading:
    whole = parts.get("prompt")
    prompt = [] if whole == [] else conversation(parts)
    found = parsed(parts["completion"])
    several = isinstance(found, list) and all(isinstance(text, str) for text in found)
    answers = found if several else [parts["completion"]]
    out = answered(prompt, [response_in(answer, prompt, "completion") for answer in answers])
    return Reading("demonstrations" if not several else "prompts", out)


def _labelled(parts: Parts) -> Reading:
    name = "label" if "label" in parts else "is_safe"
    out = {**_answer(parts).row, "labels": [is_good(parts[name], name)]}
    return Reading("unpaired", out)


def _safety(parts: Parts) -> Reading:
    found = _labelled(parts)
    return found._replace(row={**found.row, "dimension": "safety"})


def _talk(parts: Parts) -> Reading:
    talk = parsed(parts["messages"])
    if isinstance(talk, str):
        if not is_transcript(talk, headed=True):
            raise BadRow("D21", "messages", "is text and no list of messages", remedy="give a list of {role, content}")
        talk = transcript_turns(talk)
        talk = talk[:-1] if talk[-1] == {"role": "assistant", "content": ""} else talk
    before: Parts = {name: parts[name] for name in ("system", "tools") if name in parts}
    turns = conversation({"prompt": talk, **before}, "messages")
    if "prompt" in parts:
        _refuse_another(turns_in(parts["prompt"], "prompt"), turns)
    if not turns or turns[-1]["role"] != "assistant":
        return Reading("prompts", {"prompt": turns})
    prompt, answer = demonstrated(turns, "messages")
    return Reading("demonstrations", answered(prompt, [answer]))


def _refuse_another(prompt: list[Turn], turns: list[Turn]) -> None:
    """The conversation begins with its prompt, where that stands in a column of its own too."""
    said = [[(turn["role"], turn["content"]) for turn in some if turn["role"] != "system"] for some in (turns, prompt)]
    if said[0][: len(said[1])] != said[1]:
        what, effect = "is no beginning of messages", "it would not be learned from"
        raise BadRow("D03", "prompt", what, effect, "columns={'meta': ['prompt']} to put it aside")


def _labelled_talk(parts: Parts) -> Reading:
    found = _talk(parts)
    if found.kind != "demonstrations":
        raise BadRow("D12", "messages", "does not end with an assistant turn", remedy="give the labelled response too")
    return Reading("unpaired", {**found.row, "labels": [is_good(parts["label"], "label")]})


def _message_pair(parts: Parts) -> Reading:
    prompt = turns_in(text_of(parts["message_1"], "message_1"), "message_1")
    return Reading("demonstrations", answered(prompt, [response_in(parts["message_2"], prompt, "message_2")]))


def _plain_text(parts: Parts) -> Reading:
    """Plain text, which no prompt comes before; or the transcript of a conversation."""
    text = text_of(parts["text"], "text")
    if is_transcript(text) and text.lstrip().startswith("Human:"):
        return _talk({"messages": text})
    return Reading("demonstrations", {"prompt": [], "responses": [text]})


def _prompt(parts: Parts) -> Reading:
    turns = conversation(parts)
    if turns and turns[-1]["role"] == "assistant":
        what = "ends with an assistant turn"
        effect = "the last message is of assistant, not of the user: nothing is asked"
        raise BadRow(
            "D12", "prompt", what, effect, "columns={'messages': 'prompt'} if its last answer is to be learned"
        )
    return Reading("prompts", {"prompt": turns})


def _first_turn(parts: Parts) -> Reading:
    """A dialogue whose questions are fixed: the first of them is the prompt, the others are kept in `meta`."""
    turns = parsed(parts["turns"])
    if not isinstance(turns, list) or not turns:
        raise BadRow("D21", "turns", "is no list of texts", remedy="give the questions in order")
    first: list[Turn] = [{"role": "user", "content": text_of(turns[0], "turns[0]")}]
    return Reading("prompts", {"prompt": first, "meta": {"turns": turns}})


def _batch(parts: Parts) -> Reading:
    """A line of a batch of requests: its messages are the prompt."""
    body = parsed(parts["body"])
    if not isinstance(body, Mapping) or "messages" not in body:
        raise BadRow("D21", "body", "has no messages", remedy="give requests of chat completions")
    turns = conversation({"prompt": body["messages"], **({"tools": body["tools"]} if body.get("tools") else {})})
    others = {name: value for name, value in body.items() if name not in ("messages", "tools")}
    meta = {"custom_id": parts["custom_id"], **({"body": others} if others else {})}
    return Reading("prompts", {"prompt": turns, "meta": meta})


_TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Name a tea."},
    {"role": "assistant", "content": "Oolong."},
]

SINGLE = (
    RowFormat(
        "labelled",
        "an answer with a label, true or false; LLaMA-Factory (kto_tag)",
        (ASK, RESPONSE, LABEL),
        _labelled,
        {"prompt": "Name a tea.", "completion": "Oolong.", "label": True},
        BEFORE,
        ("category", "score*"),
    ),
    RowFormat(
        "safety_label",
        "an answer that is safe or not, of the dimension safety: BeaverTails",
        (ASK, RESPONSE, "is_safe"),
        _safety,
        {"prompt": "Name a tea.", "response": "Oolong.", "category": {"theft": False}, "is_safe": True},
        BEFORE,
        ("category", "score*"),
    ),
    RowFormat(
        "labelled_messages",
        "a conversation whose last answer has a label: LLaMA-Factory, ms-swift",
        (TALK, LABEL),
        _labelled_talk,
        {"messages": _TALK, "label": False},
        BESIDE_TALK,
    ),
    RowFormat(
        "demonstration",
        "a prompt with its answer: Alpaca (input, system, history), LLaMA-Factory, ms-swift, Orca, Dolly, LMFlow",
        (ASK, RESPONSE),
        _answer,
        {"instruction": "Which is dark?", "input": "oolong; rain", "output": "Oolong."},
        BEFORE,
        (*TRUTH, "generator", "instruction_*"),
    ),
    RowFormat(
        "messages",
        "a conversation: OpenAI (tools, weights, content parts), ShareGPT, ChatML, axolotl; without an answer a prompt",
        (TALK,),
        _talk,
        {"messages": _TALK},
        BESIDE_TALK,
        (*TRUTH, "chat_template_kwargs", "n_*", "parallel_tool_calls"),
    ),
    RowFormat(
        "messages_1_and_2",
        "two messages, the second answers the first: CAMEL",
        ("message_1", "message_2"),
        _message_pair,
        {"message_1": "Name a tea.", "message_2": "Oolong."},
    ),
    RowFormat(
        "text",
        "plain text, which SFT learns as it stands: pretraining mixes",
        ("text",),
        _plain_text,
        {"text": "Oolong is a tea."},
    ),
    RowFormat(
        "prompts",
        "prompts, with what a reward may ask for: RLVR, verl, ms-swift's environments",
        ("prompt|context_messages",),
        _prompt,
        {"prompt": [_TALK[0]], "data_source": "teas", "reward_model": {"style": "rule", "ground_truth": "Oolong"}},
        ("system|system_prompt|system_message", "history", "tools|functions"),
        (
            *TRUTH,
            *OF_PROMPTS,
            "instruction_*",
            "kwargs",
            "prompt_*",
            "votes",
            "agent_*",
            "tools_kwargs",
            "tool_*",
            "need_tools_kwargs",
        ),
    ),
    RowFormat(
        "questions",
        "questions without an answer",
        ("prompt|question|query|instruction",),
        _prompt,
        {"question": "Name a tea."},
        BEFORE,
        ("instruction_*",),
    ),
    RowFormat(
        "turns",
        "the user's turns of a dialogue, of which the first is the prompt: MT-bench",
        ("turns",),
        _first_turn,
        {"question_id": 81, "category": "writing", "turns": ["Name a tea.", "And another."]},
        (),
        ("reference", "choices"),
    ),
    RowFormat(
        "chat_batch",
        "requests of a batch: their messages are prompts",
        ("custom_id", "body"),
        _batch,
        {
            "custom_id": "1",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": _TALK[:1]},
        },
        (),
        ("method", "url"),
    ),
)
