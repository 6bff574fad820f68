"""The table of data files: each public form in invented rows, what it should become, and what the reader makes of it.

`python tools/formats_table.py` prints the table; it ends with 1 where a form is read wrongly in silence, refused
without a way out, or ends in a traceback. A test holds it to none of these.
"""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit import AlignkitError, read_groups

ASKED, TEA, RAIN = "Name a tea.", "Oolong.", "Rain."
USER, GOOD, WORSE = (
    {"role": role, "content": text} for role, text in (("user", ASKED), ("assistant", TEA), ("assistant", RAIN))
)
SAID = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": TEA}]
PAIR = {"prompt": ASKED, "chosen": TEA, "rejected": RAIN}

DEMONSTRATION = {"prompt": [("user", ASKED)], "responses": [TEA], "ranks": None, "labels": None}
COMPARISON = {"prompt": [("user", ASKED)], "responses": [TEA, RAIN], "ranks": [1, 2]}
WITH_SYSTEM = {"prompt": [("system", "Be brief."), ("user", ASKED)]}
PROMPT = {"prompt": [("user", ASKED)], "responses": []}
TREE = {
    "message_tree_id": "t", "tree_state": "ready_for_export",
    "prompt": {
        "message_id": "a", "text": ASKED, "role": "prompter",
        "replies": [
            {"message_id": "b", "parent_id": "a", "text": RAIN, "role": "assistant", "rank": 1, "replies": []},
            {"message_id": "c", "parent_id": "a", "text": TEA, "role": "assistant", "rank": 0, "replies": []},
        ],
    },
}  # fmt: skip
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALLED = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "3 degrees"},
    GOOD,
]


@dataclass(frozen=True)
class Form:
    """A form of data, and what is right.

    Args:
        source: whose form it is.
        situation: what is special about it.
        rows: rows in memory, or what writes a source into a folder and returns it.
        becomes: what each row of the groups should be, as far as it is named; None: it should be refused.
        says: words that the refusal has to name, or the note where there is one.
        options: of `read_groups`.
    """

    source: str
    situation: str
    rows: Sequence[Mapping[str, Any]] | Callable[[Path], Any]
    becomes: Sequence[Mapping[str, Any]] | None = None
    says: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def reads(source: str, situation: str, row: Any, *becomes: Mapping[str, Any], says: str = "", **options: Any) -> Form:
    return Form(source, situation, [row] if isinstance(row, Mapping) else row, becomes, says, options)


def refused(source: str, situation: str, row: Any, says: str, **options: Any) -> Form:
    return Form(source, situation, [row] if isinstance(row, Mapping) else row, None, says, options)


def written(name: str, text: str | bytes) -> Callable[[Path], Path]:
    """What writes a file of this content."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def chat_forms() -> Iterator[Form]:
    yield reads("ShareGPT", "from, value", {"conversations": SAID}, DEMONSTRATION)
    yield reads(
        "ShareGPT", "a system column", {"conversations": SAID, "system": "Be brief."}, {**DEMONSTRATION, **WITH_SYSTEM}
    )
    yield reads(
        "ShareGPT",
        "roles user, assistant",
        {"conversations": [{"from": "user", "value": ASKED}, {"from": "assistant", "value": TEA}]},
        DEMONSTRATION,
    )
    yield reads("FastChat", "an id beside it", {"id": "i0", "conversations": SAID}, DEMONSTRATION)
    yield reads(
        "LLaMA-Factory",
        "function_call and observation",
        {
            "conversations": [
                {"from": "human", "value": ASKED},
                {"from": "function_call", "value": '{"name": "teas", "arguments": {}}'},
                {"from": "observation", "value": "[]"},
                {"from": "gpt", "value": TEA},
            ],
            "tools": '[{"name": "teas", "parameters": {}}]',
        },
        {
            "prompt": [("user", ASKED), ("assistant", ""), ("tool", "[]")],
            "responses": [TEA],
            "beside": {"tools", "tool_calls"},
        },
        says="tool_calls",
    )
    yield reads(
        "LLaMA-Factory",
        "parts {type, value}, loss_weight",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": ASKED}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": TEA}], "loss_weight": 1.0},
            ]
        },
        DEMONSTRATION,
    )
    yield reads(
        "LLaMA-Factory",
        "a part of reasoning",
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": TEA}],
                },
            ]
        },
        {**DEMONSTRATION, "beside": {"reasoning_content"}},
        says="reasoning_content",
    )
    yield reads(
        "LLaMA-Factory",
        "chosen_messages, rejected_messages",
        {"chosen_messages": [USER, GOOD], "rejected_messages": [USER, WORSE]},
        COMPARISON,
    )
    yield reads(
        "LLaMA-Factory",
        "KTO: messages, label",
        {"messages": [USER, GOOD], "label": False},
        {**DEMONSTRATION, "labels": [False]},
    )
    yield reads(
        "LLaMA-Factory",
        "KTO: Alpaca with kto_tag",
        {"instruction": ASKED, "input": "", "output": TEA, "kto_tag": True},
        {**DEMONSTRATION, "labels": [True]},
    )
    yield reads(
        "LLaMA-Factory",
        "pairs in ShareGPT's form",
        {"conversations": SAID[:1], "chosen": SAID[1], "rejected": {"from": "gpt", "value": RAIN}},
        COMPARISON,
    )
    yield reads(
        "LLaMA-Factory", "plain text", {"text": "Oolong is a tea."}, {"prompt": [], "responses": ["Oolong is a tea."]}
    )
    yield refused(
        "LLaMA-Factory",
        "images",
        {"messages": [{**USER, "content": "<image>What is it?"}, GOOD], "images": ["a.jpg"]},
        "images",
    )
    yield refused(
        "OpenAI",
        "a part with an image",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, GOOD]},
        "image_url",
    )
    yield reads(
        "OpenAI",
        "content parts",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}, GOOD]},
        DEMONSTRATION,
    )
    yield reads(
        "OpenAI",
        "developer role",
        {"messages": [{"role": "developer", "content": "Be brief."}, USER, GOOD]},
        {**DEMONSTRATION, **WITH_SYSTEM},
    )
    yield reads(
        "OpenAI",
        "tool_calls with null content",
        {"messages": CALLED, "tools": TOOLS},
        {"responses": [TEA], "beside": {"tools", "tool_calls", "tool_call_id"}},
        says="tool_calls",
    )
    yield reads(
        "OpenAI",
        "the last answer is a call",
        {"messages": CALLED[:2], "tools": TOOLS},
        {"responses": [""], "beside": {"tools", "tool_calls"}},
        says="tool_calls",
    )
    yield refused(
        "OpenAI", "null content without a call", {"messages": [USER, {"role": "assistant", "content": None}]}, "content"
    )
    yield reads(
        "OpenAI",
        "weight 0 in the middle",
        {"messages": [USER, {**WORSE, "weight": 0}, USER, {**GOOD, "weight": 1}]},
        {"responses": [TEA], "beside": {"weight"}},
        says="weight",
    )
    yield reads(
        "OpenAI",
        "weight 0 at the end",
        {"messages": [USER, {**GOOD, "weight": 1}, USER, {**WORSE, "weight": 0}]},
        DEMONSTRATION,
    )
    yield refused("OpenAI", "every weight 0", {"messages": [USER, {**GOOD, "weight": 0}]}, "weight")
    yield reads(
        "ms-swift",
        "loss per message",
        {"messages": [USER, {**WORSE, "loss": False}, USER, {**GOOD, "loss": True}]},
        {"responses": [TEA], "beside": {"weight"}},
        says="weight",
    )
    yield reads(
        "axolotl",
        "train per message",
        {"messages": [USER, {**GOOD, "train": True}, USER, {**WORSE, "train": False}]},
        DEMONSTRATION,
    )
    yield refused("Mistral", "a weight between 0 and 1", {"messages": [USER, {**GOOD, "weight": 0.5}]}, "weight")
    yield reads(
        "reasoning models",
        "reasoning_content",
        {"messages": [USER, {**GOOD, "reasoning_content": "Hm."}]},
        {**DEMONSTRATION, "beside": {"reasoning_content"}},
        says="reasoning_content",
    )
    yield refused(
        "anybody", "a message field that nobody knows", {"messages": [USER, {**GOOD, "mood": "sour"}]}, "mood"
    )
    yield reads(
        "OpenAI",
        "preferences",
        {"input": {"messages": [USER], "tools": []}, "preferred_output": [GOOD], "non_preferred_output": [WORSE]},
        COMPARISON,
    )
    yield reads(
        "OpenAI",
        "requests of a batch",
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [USER]}},
        PROMPT,
    )
    yield refused(
        "OpenAI",
        "replies of a batch",
        {"id": "r", "custom_id": "1", "response": {"status_code": 200, "body": {"choices": []}}},
        "custom_id",
    )
    yield reads(
        "ms-swift",
        "system, query, response, history",
        {"system": "Be brief.", "query": ASKED, "response": TEA, "history": [["Hi", "Hello."]]},
        {
            "prompt": [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", ASKED)],
            "responses": [TEA],
        },
    )
    yield reads(
        "ms-swift",
        "conversation of {human, assistant}",
        {"system": "Be brief.", "conversation": [{"human": ASKED, "assistant": TEA}]},
        {**DEMONSTRATION, **WITH_SYSTEM},
    )
    yield reads("ms-swift", "rejected_response", {"messages": [USER, GOOD], "rejected_response": RAIN}, COMPARISON)
    yield reads(
        "ms-swift", "rejected_messages", {"messages": [USER, GOOD], "rejected_messages": [USER, WORSE]}, COMPARISON
    )
    yield reads(
        "ms-swift",
        "query, response, rejected_response",
        {"query": ASKED, "response": TEA, "rejected_response": RAIN},
        COMPARISON,
    )
    yield reads("ms-swift", "environments", {"messages": [USER], "env_config": {"name": "lake"}}, PROMPT)
    yield reads("anybody", "messages as JSON text", {"messages": json.dumps([USER, GOOD])}, DEMONSTRATION)
    yield reads(
        "TRL",
        "tools as JSON text",
        {"messages": CALLED, "tools": json.dumps(TOOLS)},
        {"beside": {"tools", "tool_calls", "tool_call_id"}},
        says="tools",
    )
    yield refused("anybody", "two user turns", {"messages": [USER, USER, GOOD]}, "alternate")


def popular_forms() -> Iterator[Form]:
    """Forms of sets that many people start with."""
    talk = {"prompt": [("user", ASKED), ("assistant", TEA), ("user", ASKED)], "responses": [TEA]}
    yield reads(
        "UltraChat",
        "the prompt beside messages",
        {"prompt": ASKED, "prompt_id": "x", "messages": [USER, GOOD] * 2},
        talk,
    )
    yield refused("UltraChat", "another prompt beside them", {"prompt": RAIN, "messages": [USER, GOOD]}, "prompt")
    yield reads(
        "Capybara",
        "exchanges of input and output",
        {"source": "x", "conversation": [{"input": ASKED, "output": TEA}, {"input": ASKED, "output": TEA}]},
        talk,
    )
    yield reads(
        "axolotl", "messages, chosen, rejected", {"messages": [USER], "chosen": GOOD, "rejected": WORSE}, COMPARISON
    )
    yield reads(
        "axolotl",
        "conversation, chosen, rejected",
        {"conversation": [USER], "chosen": TEA, "rejected": RAIN},
        COMPARISON,
    )
    yield refused("axolotl", "reflection", {"instruction": ASKED, "output": RAIN, "corrected": TEA}, "corrected")
    yield refused("Metharme", "prompt, generation", {"prompt": ASKED, "generation": TEA}, "generation")
    yield refused("anybody", "an answer of a model", {"prompt": ASKED, "model_output": TEA}, "model_output")
    yield refused("anybody", "samples", {"prompt": ASKED, "samples": [TEA, RAIN]}, "samples")
    yield refused("anybody", "a rating by users", {"prompt": ASKED, "completion": TEA, "user_rating": 1}, "user_rating")
    yield refused("anybody", "a wrong answer", {"prompt": ASKED, "completion": TEA, "is_correct": False}, "is_correct")
    yield refused("LLaVA", "image_path", {"conversations": SAID, "image_path": "a.jpg"}, "image_path")
    yield reads("anybody", "a message as JSON text", {"prompt": json.dumps(USER), "completion": TEA}, DEMONSTRATION)
    yield refused("pandas", "messages as Python text", {**PAIR, "chosen": str([USER, GOOD])}, "json.dumps")
    yield refused("pandas", "messages as NumPy text", {**PAIR, "chosen": f"[{USER}\n {GOOD}]"}, "json.dumps")


def single_forms() -> Iterator[Form]:
    alpaca = {"instruction": "Which is larger?", "input": "an ant; a whale", "output": "The whale."}
    both = {"prompt": [("user", "Which is larger?\nan ant; a whale")], "responses": ["The whale."]}
    yield reads("Alpaca", "instruction, input, output", alpaca, both)
    yield reads(
        "Alpaca",
        "with columns= for the instruction",
        alpaca,
        both,
        columns={"prompt": "instruction", "completion": "output"},
    )
    yield refused(
        "Alpaca",
        "the input taken for the prompt",
        alpaca,
        "instruction",
        columns={"prompt": "input", "completion": "output"},
    )
    yield reads(
        "Alpaca",
        "system and history",
        {"instruction": ASKED, "output": TEA, "system": "Be brief.", "history": []},
        {**DEMONSTRATION, **WITH_SYSTEM},
    )
    yield reads(
        "AlpacaFarm",
        "output: several texts",
        {"instruction": ASKED, "input": "", "output": [TEA, RAIN]},
        {"prompt": [("user", ASKED)], "responses": [TEA, RAIN], "ranks": None},
    )
    yield reads(
        "Dolly",
        "context and category",
        {"instruction": "Which?", "context": "an ant", "response": "It.", "category": "qa"},
        {"prompt": [("user", "Which?\nan ant")], "responses": ["It."]},
    )
    yield reads(
        "OpenOrca",
        "system_prompt, question, response",
        {"id": "1", "system_prompt": "Be brief.", "question": ASKED, "response": TEA},
        {**DEMONSTRATION, **WITH_SYSTEM},
    )
    yield reads("CAMEL", "message_1, message_2", {"message_1": ASKED, "message_2": TEA}, DEMONSTRATION)
    yield reads("LMFlow", "input, output", {"input": ASKED, "output": TEA}, DEMONSTRATION)
    yield reads("TRL", "prompt, completion", {"prompt": ASKED, "completion": TEA}, DEMONSTRATION)
    yield reads(
        "KTO",
        "prompt, completion, label",
        {"prompt": ASKED, "completion": TEA, "label": True},
        {**DEMONSTRATION, "labels": [True]},
    )
    yield reads(
        "BeaverTails",
        "is_safe",
        {"prompt": ASKED, "response": TEA, "category": {"theft": False}, "is_safe": False},
        {**DEMONSTRATION, "labels": [False], "dimension": "safety"},
    )
    yield reads(
        "TRL",
        "steps with labels",
        {"prompt": ASKED, "completions": ["One.", "Two."], "labels": [True, False]},
        {"responses": ["One.\nTwo."], "labels": [False]},
        says="steps",
    )
    yield refused(
        "anybody", "question and answer", {"question": ASKED, "answer": TEA}, "columns={'completion': 'answer'}"
    )
    yield reads(
        "anybody",
        "question and answer, mapped",
        {"question": ASKED, "answer": TEA},
        DEMONSTRATION,
        columns={"completion": "answer"},
    )
    yield reads(
        "anybody",
        "question, the answer for a reward",
        {"question": ASKED, "answer": TEA},
        {**PROMPT, "meta": {"answer": TEA}},
        columns={"meta": ["answer"]},
    )
    yield reads(
        "RLVR",
        "messages, ground_truth, dataset",
        {"messages": [USER], "ground_truth": "3", "dataset": "gsm8k"},
        {**PROMPT, "meta": {"ground_truth": "3", "dataset": "gsm8k"}},
    )
    yield reads(
        "verl",
        "prompt, reward_model, extra_info",
        {
            "data_source": "x",
            "prompt": [USER],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "3"},
            "extra_info": {"index": 0},
        },
        PROMPT,
    )
    yield reads("OpenRLHF", "context_messages", {"context_messages": [USER]}, PROMPT)
    yield reads("MT-bench", "turns", {"question_id": 81, "category": "writing", "turns": [ASKED, "Another."]}, PROMPT)
    yield refused(
        "MT-bench",
        "answers of a model",
        {"question_id": 81, "answer_id": "x", "choices": [{"turns": ["a"]}]},
        "choices",
    )
    yield refused("ms-swift", "an object of names and numbers", {"a": 1.0, "b": 2.0}, "'a', 'b'")
    yield refused("anybody", "prompt and label alone", {"prompt": ASKED, "label": True}, "label")
    yield refused("anybody", "text with a label", {"text": TEA, "label": 1}, "label")


def pair_forms() -> Iterator[Form]:
    both = {"prompt": [("user", "Which?\nan ant; a whale")], "responses": ["A whale.", "An ant."], "ranks": [1, 2]}
    yield reads("TRL", "prompt, chosen, rejected", PAIR, COMPARISON)
    yield reads(
        "TRL",
        "the prompt inside texts",
        {"chosen": f"{ASKED} {TEA}", "rejected": f"{ASKED} {RAIN}"},
        COMPARISON,
        says="begin with",
    )
    yield reads(
        "hh-rlhf",
        "transcripts",
        {"chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {TEA}", "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {RAIN}"},
        COMPARISON,
    )
    yield reads(
        "hh-rlhf",
        "a system line before the first Human",
        {
            "chosen": f"Be brief.\n\nHuman: {ASKED}\n\nAssistant: {TEA}",
            "rejected": f"Be brief.\n\nHuman: {ASKED}\n\nAssistant: {RAIN}",
        },
        {**COMPARISON, **WITH_SYSTEM},
    )
    yield reads(
        "orca pairs",
        "system, question, chosen, rejected",
        {"system": "Be brief.", "question": ASKED, "chosen": TEA, "rejected": RAIN},
        {**COMPARISON, **WITH_SYSTEM},
    )
    yield reads(
        "orca pairs",
        "columns= for the question",
        {"system": "Be brief.", "question": ASKED, "chosen": TEA, "rejected": RAIN},
        {**COMPARISON, **WITH_SYSTEM},
        columns={"prompt": "question"},
    )
    yield reads(
        "argilla",
        "instruction, chosen_response, rejected_response",
        {"instruction": ASKED, "chosen_response": TEA, "rejected_response": RAIN},
        COMPARISON,
    )
    yield refused(
        "anybody",
        "answers beside a text nobody knows",
        {"ask": ASKED, "chosen": "The tea is dark.", "rejected": "The rain is wet."},
        "ask",
    )
    yield reads(
        "Alpaca",
        "instruction, input, chosen, rejected",
        {"instruction": "Which?", "input": "an ant; a whale", "chosen": "A whale.", "rejected": "An ant."},
        both,
    )
    yield reads(
        "AlpacaFarm",
        "output_1, output_2, preference",
        {
            "instruction": "Which?",
            "input": "an ant; a whale",
            "output_1": "An ant.",
            "output_2": "A whale.",
            "preference": 2,
        },
        both,
    )
    yield reads(
        "UltraFeedback binarized",
        "scores",
        {
            "prompt": ASKED,
            "prompt_id": "x",
            "chosen": [USER, GOOD],
            "rejected": [USER, WORSE],
            "messages": [USER, GOOD],
            "score_chosen": 8.0,
            "score_rejected": 3.5,
        },
        {**COMPARISON, "meta": {"margin": 4.5, "scores": [8.0, 3.5]}},
    )
    yield reads(
        "argilla",
        "chosen-rating",
        {
            "prompt": ASKED,
            "chosen": TEA,
            "rejected": RAIN,
            "chosen-rating": 5,
            "rejected-rating": 2,
            "chosen-model": "a",
        },
        {**COMPARISON, "meta": {"margin": 3, "scores": [5, 2]}},
    )
    yield reads(
        "RewardBench",
        "models and subset",
        {**PAIR, "chosen_model": "a", "rejected_model": "b", "subset": "x", "id": 1},
        COMPARISON,
    )
    yield reads(
        "PKU-SafeRLHF",
        "two dimensions",
        {
            "prompt": ASKED,
            "response_0": RAIN,
            "response_1": TEA,
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "better_response_id": 1,
            "safer_response_id": 0,
        },
        {**COMPARISON, "dimension": "helpfulness"},
        {"responses": [RAIN, TEA], "ranks": [1, 2], "dimension": "safety"},
    )
    yield reads(
        "PKU-SafeRLHF",
        "one of its dimensions",
        {"prompt": ASKED, "response_0": RAIN, "response_1": TEA, "better_response_id": 1, "safer_response_id": 0},
        {"responses": [RAIN, TEA], "dimension": "safety"},
        dimension="safety",
    )
    yield reads(
        "HelpSteer 3",
        "overall_preference",
        {
            "domain": "general",
            "language": "english",
            "context": [USER],
            "response1": RAIN,
            "response2": TEA,
            "overall_preference": 3,
            "individual_preference": [],
        },
        {**COMPARISON, "rating": "significantly_better"},
    )
    yield reads(
        "HelpSteer 2",
        "preference_strength",
        {
            "prompt": ASKED,
            "response_1": TEA,
            "response_2": RAIN,
            "preference_strength": -1,
            "preference_statement": "s",
        },
        {**COMPARISON, "rating": "slightly_better"},
    )
    yield reads(
        "SHP",
        "labels 0",
        {
            "post_id": "x",
            "history": ASKED,
            "human_ref_A": RAIN,
            "human_ref_B": TEA,
            "labels": 0,
            "score_A": 1,
            "score_B": 9,
            "score_ratio": 9.0,
            "seconds_difference": 5.0,
            "upvote_ratio": 0.9,
            "c_root_id_A": "a",
            "created_at_utc_A": 1,
        },
        COMPARISON,
    )
    yield reads(
        "WebGPT",
        "scores",
        {
            "question": {"dataset": "x", "id": "1", "full_text": ASKED},
            "quotes_0": {"title": [], "extract": []},
            "answer_0": RAIN,
            "tokens_0": {"prefix": []},
            "score_0": -1.0,
            "quotes_1": {"title": [], "extract": []},
            "answer_1": TEA,
            "tokens_1": {"prefix": []},
            "score_1": 1.0,
        },
        COMPARISON,
    )
    yield reads(
        "arena",
        "conversation_a, conversation_b",
        {
            "question_id": "x",
            "model_a": "a",
            "model_b": "b",
            "winner": "model_b",
            "judge": "u",
            "conversation_a": [USER, WORSE],
            "conversation_b": [USER, GOOD],
            "turn": 1,
            "anony": True,
            "language": "English",
            "tstamp": 1.0,
            "openai_moderation": {},
            "toxic_chat_tag": {},
        },
        COMPARISON,
    )
    yield reads(
        "arena",
        "a tie",
        {
            "model_a": "a",
            "model_b": "b",
            "winner": "tie (bothbad)",
            "conversation_a": [USER, WORSE],
            "conversation_b": [USER, GOOD],
        },
        {"responses": [RAIN, TEA], "ranks": [1, 1]},
    )
    yield reads(
        "arena as a table",
        "lists as JSON text",
        {
            "id": 1,
            "model_a": "a",
            "model_b": "b",
            "prompt": json.dumps([ASKED]),
            "response_a": json.dumps([RAIN]),
            "response_b": json.dumps([TEA]),
            "winner_model_a": 0,
            "winner_model_b": 1,
            "winner_tie": 0,
        },
        COMPARISON,
    )
    yield reads(
        "stack-exchange-paired",
        "response_j, response_k",
        {"qid": 1, "question": ASKED, "date": "d", "metadata": [], "response_j": TEA, "response_k": RAIN},
        COMPARISON,
    )
    yield reads("anybody", "tie as text", {**PAIR, "tie": "false"}, COMPARISON)
    yield refused("anybody", "a tie that is neither", {**PAIR, "tie": "perhaps"}, "tie")
    yield refused("anybody", "is_safe beside a pair", {**PAIR, "is_safe": False}, "is_safe")
    yield refused("anybody", "a weight of the row", {**PAIR, "weight": 0.2}, "weight")
    yield refused("anybody", "margin as text", {**PAIR, "margin": "1"}, "margin")
    yield refused("anybody", "rating as a list", {**PAIR, "rating": [5, 1]}, "rating")
    yield refused(
        "anybody",
        "two answers without a verdict",
        {"prompt": ASKED, "response_0": TEA, "response_1": RAIN},
        "better_response_id",
    )


def list_forms() -> Iterator[Form]:
    ranked = {"responses": [TEA, RAIN], "ranks": [1, 2]}
    yield reads(
        "Nectar",
        "answers with ranks",
        {
            "prompt": f"\n\nHuman: {ASKED}\n\nAssistant: ",
            "answers": [{"answer": TEA, "model": "a", "rank": 1.0}, {"answer": RAIN, "model": "b", "rank": 2.0}],
            "turns": 1,
            "num_responses": 2,
            "source": [],
            "good_natured": True,
        },
        {**COMPARISON},
    )
    yield reads(
        "UltraFeedback",
        "graded by four aspects",
        {
            "source": "x",
            "instruction": ASKED,
            "models": ["a", "b"],
            "completions": [
                {
                    "model": "a",
                    "response": RAIN,
                    "annotations": {"helpfulness": {"Rating": "1"}, "honesty": {"Rating": "N/A"}},
                    "overall_score": 3.0,
                },
                {
                    "model": "b",
                    "response": TEA,
                    "annotations": {"helpfulness": {"Rating": "5"}, "honesty": {"Rating": "4"}},
                    "overall_score": 9.0,
                },
            ],
            "correct_answers": [],
            "incorrect_answers": [],
        },
        {"responses": [RAIN, TEA], "ranks": [2, 1], "rewards": {"helpfulness": [1.0, 5.0], "honesty": [None, 4.0]}},
    )
    yield reads(
        "HelpSteer 1 and 2",
        "two answers follow one another",
        [
            {
                "prompt": ASKED,
                "response": text,
                "helpfulness": score,
                "correctness": 3,
                "coherence": 4,
                "complexity": 1,
                "verbosity": 1,
            }
            for text, score in ((RAIN, 1), (TEA, 4))
        ],
        {"responses": [RAIN, TEA], "ranks": [2, 1], "dimension": "helpfulness"},
    )
    yield reads(
        "HelpSteer 1 and 2",
        "one answer",
        {
            "prompt": ASKED,
            "response": TEA,
            "helpfulness": 4,
            "correctness": 4,
            "coherence": 4,
            "complexity": 1,
            "verbosity": 1,
        },
        {
            "responses": [TEA],
            "rewards": {
                "helpfulness": [4.0],
                "correctness": [4.0],
                "coherence": [4.0],
                "complexity": [1.0],
                "verbosity": [1.0],
            },
        },
    )
    yield reads("OASST", "a tree", TREE, {"prompt": [("user", ASKED)], "responses": [RAIN, TEA], "ranks": [2, 1]})
    yield reads(
        "OASST",
        "single messages",
        [
            {k: v for k, v in {**node, "parent_id": node.get("parent_id"), "lang": "en"}.items() if k != "replies"}
            for node in (TREE["prompt"], *TREE["prompt"]["replies"])
        ],
        {"responses": [RAIN, TEA], "ranks": [2, 1]},
    )  # type: ignore[index, misc]
    yield reads(
        "OASST", "sampled answers", {"prompt": ASKED, "outputs": [TEA, RAIN]}, {"responses": [TEA, RAIN], "ranks": None}
    )
    yield reads(
        "open-instruct",
        "completions of models",
        {
            "prompt": ASKED,
            "completions": [
                {"model": "a", "completion": TEA, "rank": 1},
                {"model": "b", "completion": RAIN, "rank": 2},
            ],
        },
        ranked,
    )
    yield refused(
        "open-instruct",
        "completions without a verdict",
        {"prompt": ASKED, "completions": [{"model": "a", "completion": TEA}, {"model": "b", "completion": RAIN}]},
        "rank",
    )
    yield reads(
        "anybody",
        "texts with scores",
        {"prompt": ASKED, "responses": [RAIN, TEA], "scores": [0.1, 0.9]},
        {"responses": [RAIN, TEA], "ranks": [2, 1]},
    )
    yield reads(
        "Groups",
        "ranks from 0, declared",
        {"prompt": ASKED, "responses": [TEA, RAIN, "Mint."], "ranks": [0, 2, 1]},
        {"ranks": [1, 3, 2]},
        rank_base=0,
    )
    yield reads(
        "Groups",
        "ranks from 0, seen",
        {"prompt": ASKED, "responses": [TEA, RAIN, "Mint."], "ranks": [0, 2, 1]},
        {"ranks": [1, 3, 2]},
    )
    yield refused(
        "anybody",
        "scores as text",
        {"prompt": ASKED, "responses": [{"text": TEA, "score": "high"}, {"text": RAIN, "score": "low"}]},
        "scores",
    )
    yield refused("anybody", "labels -1 and 1", {"prompt": ASKED, "completion": TEA, "label": -1}, "label")
    yield reads(
        "anybody",
        "one answer with a score",
        {"prompt": ASKED, "completion": TEA, "score": 0.5},
        {"responses": [TEA], "rewards": {"score": [0.5]}},
    )


def file_forms() -> Iterator[Form]:
    lines = "".join(json.dumps(row) + "\n" for row in (PAIR, {**PAIR, "prompt": "And a bird?"}))
    two = (COMPARISON, {**COMPARISON, "prompt": [("user", "And a bird?")]})
    rows = [json.loads(line) for line in lines.splitlines()]
    table = "prompt,chosen,rejected\n" + "".join(f"{row['prompt']},{TEA},{RAIN}\n" for row in rows)
    files: dict[str, str | bytes] = {
        "lines.jsonl": lines,
        "no suffix": lines,
        "UPPER.JSONL": lines,
        "byte order mark.jsonl": "\ufeff" + lines,
        "carriage returns.jsonl": lines.replace("\n", "\r\n"),
        "array.json": json.dumps(rows),
        "array over lines.json": json.dumps(rows, indent=2),
        "array.jsonl": json.dumps(rows, indent=1),
        "wrapped.json": json.dumps({"data": rows}, indent=1),
        "wrapped in a line.json": json.dumps({"type": "x", "instances": rows}),
        "indented.json": "\n".join(json.dumps(row, indent=2) for row in rows),
        "columns.json": json.dumps({name: [row[name] for row in rows] for name in PAIR}),
        "array.json.gz": gzip.compress(json.dumps(rows).encode()),
        "gzip under another name.jsonl": gzip.compress(lines.encode()),
        "lines.jsonl.bz2": bz2.compress(lines.encode()),
        "lines.jsonl.xz": lzma.compress(lines.encode()),
        "utf-16.jsonl": lines.encode("utf-16"),
        "table.csv": table,
        "semicolons.csv": table.replace(",", ";"),
        "table.tsv": table.replace(",", "\t"),
        "table in utf-16.csv": table.encode("utf-16"),
        "row numbers of pandas.csv": "".join(
            f"{n},{line}\n" for n, line in zip(["", 0, 1], table.split("\n"), strict=False)
        ),
    }
    for name, content in files.items():
        yield Form("file", name, written(name, content), two)
    yield Form("file", "lines.jsonl.zst", _zst(lines), two)
    yield Form("file", "Parquet", _arrow(rows, "parquet"), two)
    yield Form("file", "Arrow, a stream", _arrow(rows, "stream"), two)
    yield Form("file", "Arrow, a file", _arrow(rows, "feather"), two)
    yield Form("file", "a folder of Parquet files", _folder(rows), two)
    yield Form("file", "a pattern", lambda folder: f"{_folder(rows)(folder)}/*.parquet", two)
    yield Form("file", "a list of files", lambda folder: sorted(_folder(rows)(folder).glob("*.parquet")), two)
    yield Form(
        "file",
        "plain text",
        written("a.txt", "One line.\nAnother.\n"),
        ({"prompt": [], "responses": ["One line."]}, {"responses": ["Another."]}),
    )
    yield Form("file", "Latin-1", written("l.jsonl", '{"prompt": "caf\xe9"}'.encode("latin-1")), None, "not UTF-8")
    yield Form("file", "a zip archive", written("a.zip", b"PK\x03\x04rest"), None, "unpack")
    yield Form("file", "a tar archive", written("a.tar", bytes(257) + b"ustar"), None, "unpack")
    yield Form("file", "a pickle", written("a.pkl", b"\x80\x04}."), None, "a pickle")
    yield Form("file", "train and test in a folder", _splits(lines), None, "split=")
    yield Form("file", "train of a folder", _splits(lines), two, options={"split": "train"})
    yield Form(
        "file",
        "an array that is cut off",
        written("cut.json", json.dumps(rows, indent=1)[:-30]),
        None,
        "one JSON value over several lines",
    )
    yield Form(
        "file",
        "messages as JSON text in a table",
        written("m.csv", 'messages\n"' + json.dumps([USER, GOOD]).replace('"', '""') + '"\n'),
        (DEMONSTRATION,),
    )
    yield Form("file", "a table with a line too long", written("b.csv", table + "a,b,c,d\n"), None, "4 cells")


def _splits(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for name in ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"):
            written(name, text)(folder)
        return folder

    return write


def _zst(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import pyarrow

        path = folder / "lines.jsonl.zst"
        with pyarrow.CompressedOutputStream(str(path), "zstd") as out:
            out.write(text.encode())
        return path

    return write


def _arrow(rows: Sequence[Mapping[str, Any]], kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import pyarrow
        from pyarrow import feather, parquet

        table = pyarrow.Table.from_pylist(list(rows))
        path = folder / f"rows.{'parquet' if kind == 'parquet' else 'arrow'}"
        if kind == "parquet":
            parquet.write_table(table, path)
        elif kind == "feather":
            feather.write_feather(table, path)
        else:
            with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as stream:
                stream.write_table(table)
        return path

    return write


def _folder(rows: Sequence[Mapping[str, Any]]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for place, row in enumerate(rows):
            (folder / f"part{place}").mkdir()
            moved = _arrow([row], "parquet")(folder / f"part{place}").rename(folder / f"{place}.parquet")
            moved.parent.joinpath(f"part{place}").rmdir()
        return folder

    return write


def python_forms() -> Iterator[Form]:
    def made(make: Callable[[], Any]) -> Callable[[Path], Any]:
        return lambda folder: make()

    def frame() -> Any:
        import pandas

        return pandas.DataFrame([PAIR, {**PAIR, "rating": None}])

    def dataset(split: bool = False) -> Any:
        import datasets

        one = datasets.Dataset.from_list([PAIR])
        return datasets.DatasetDict({"train": one, "test": one}) if split else one

    yield Form("Python", "pandas.DataFrame", made(frame), (COMPARISON, COMPARISON))
    yield Form("Python", "Dataset", made(dataset), (COMPARISON,))
    yield Form("Python", "IterableDataset", made(lambda: dataset().to_iterable_dataset()), (COMPARISON,))
    yield Form(
        "Python", "DatasetDict with split=", made(lambda: dataset(True)), (COMPARISON,), options={"split": "test"}
    )
    yield Form("Python", "DatasetDict of two splits", made(lambda: dataset(True)), None, "choose one with split=")
    yield Form(
        "Python", "a dict of columns", made(lambda: {name: [value] for name, value in PAIR.items()}), (COMPARISON,)
    )
    yield Form("Python", "one row", made(lambda: PAIR), None, "list of rows")
    yield Form("Python", "a generator", made(lambda: iter([PAIR])), (COMPARISON,))
    yield Form("Python", "a list of texts", made(lambda: [ASKED, TEA]), None, "is no file")
    yield Form("Python", "a number", made(lambda: 3), None, "holds no rows")


def forms() -> list[Form]:
    """All of them."""
    parts = (chat_forms, popular_forms, single_forms, pair_forms, list_forms, file_forms, python_forms)
    return [form for part in parts for form in part()]


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def verdict(form: Form) -> tuple[str, str]:
    """(right, silently wrong, wrong (said), refused clearly, refused badly or traceback; what was found)."""
    said, log = Said(), logging.getLogger("alignkit")
    log.addHandler(said)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = form.rows(Path(folder)) if callable(form.rows) else form.rows
            rows = read_groups(source, **form.options).rows
    except AlignkitError as error:
        clear = form.becomes is None and form.says in str(error) and "Remedy" in str(error)
        return ("refused clearly" if clear else "refused badly"), str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        log.removeHandler(said)
    notes = " ".join(said.texts)
    wrong = _difference(form, [_plain(row) for row in rows])
    if not wrong and form.says not in notes:
        wrong = f"nothing said of {form.says}"
    if wrong:
        return ("wrong (said)" if form.says and form.says in notes else "silently wrong"), wrong
    return "right", notes


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as forms write it."""
    fields = [turn["fields"] for turn in row["prompt"]] + list(row["response_fields"] or [])
    return {
        **row,
        "prompt": [(turn["role"], turn["content"]) for turn in row["prompt"]],
        "meta": json.loads(row["meta"] or "{}"),
        "rewards": {reward["name"]: reward["values"] for reward in row["rewards"] or []},
        "beside": {name for text in fields if text for name in json.loads(text)},
    }


def _difference(form: Form, rows: list[dict[str, Any]]) -> str:
    if form.becomes is None:
        return f"read as {rows[0]['prompt']} -> {rows[0]['responses']}"
    if len(rows) != len(form.becomes):
        return f"{len(rows)} rows where {len(form.becomes)} are right"
    for row, right in zip(rows, form.becomes, strict=True):
        for name, value in {"beside": set(), **right}.items():
            if not (row[name].items() >= value.items() if name == "meta" else row[name] == value):
                return f"{name} is {row[name]} where {value} is right"
    return ""


WRONG = ("silently wrong", "wrong (said)", "refused badly", "traceback")


def main() -> int:
    print("| source | situation | verdict |\n|---|---|---|")
    counts: dict[str, int] = {}
    for form in forms():
        found, why = verdict(form)
        counts[found] = counts.get(found, 0) + 1
        shown = f"{found}: {' '.join(why.split())[:300]}" if found in WRONG else found
        print(f"| {form.source} | {form.situation} | {shown.replace('|', '/')} |")
    print("\n" + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    return int(any(name in counts for name in WRONG))


if __name__ == "__main__":
    sys.exit(main())
