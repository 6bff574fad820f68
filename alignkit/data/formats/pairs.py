"""Formats of comparisons: two answers, and which is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit.data.conversations import (
    answered,
    conversation,
    demonstrated,
    implicit_pair,
    is_transcript,
    response_in,
    turns_in,
)
from alignkit.data.formats.columns import (
    ASK,
    BEFORE,
    CHOSEN,
    GRADES,
    REJECTED,
    RESPONSE,
    TALK,
    VERDICT,
    flag,
    graded,
    grading,
    number,
    rating_of,
    texts_in,
)
from alignkit.data.messages import BadRow, Turn, parsed, text_of
from alignkit.data.row_format import Parts, Reading, RowFormat, beside

SCORES = (
    "score_chosen|chosen_score|chosen_rating|rating_chosen|chosen_avg_rating",
    "score_rejected|rejected_score|rejected_rating|rating_rejected|rejected_avg_rating",
)

SAID_OF_ONE = ("annotation", "critique", "feedback", "judge", "reward", "score")
"""What is said of one of the answers and is no answer; a second text of it could be the one that was meant."""

HINT = "the words that both answers begin with are the prompt"


def compared(prompt: list[Turn], better: Turn, worse: Turn, grades: Mapping[str, Any]) -> Reading:
    """A comparison."""
    return Reading("comparisons", {**answered(prompt, [better, worse]), **grades})


def _graded_pair(parts: Parts) -> dict[str, Any]:
    """What a row says of its pair; from two scores the margin, where the better one has the higher."""
    tie = "tie" in parts and flag(parts["tie"], "tie")
    out = grading(parts, tie)
    if "score_chosen" in parts and "score_rejected" in parts:
        scores = [number(parts[name], name) for name in ("score_chosen", "score_rejected")]
        out["meta"] = {"scores": scores, **out.get("meta", {})}
        if scores[0] >= scores[1]:
            out["meta"].setdefault("margin", scores[0] - scores[1])
    else:
        alone = {name: parts[name] for name in ("score_chosen", "score_rejected") if name in parts}
        out["meta"] = {**alone, **out.get("meta", {})}
    return out


def _pair(parts: Parts) -> Reading:
    """The prompt stands in a column of its own, in `messages` that wait for an answer, or inside both answers."""
    talk = turns_in(parts["messages"], "messages") if "messages" in parts else []
    asks = bool(talk) and talk[-1]["role"] != "assistant"
    if parts.get("prompt") is None and not asks:
        found = _implicit(parts)
    else:
        prompt = conversation(parts if parts.get("prompt") is not None else {**parts, "prompt": parts["messages"]})
        chosen, rejected = (response_in(parts[name], prompt, name) for name in ("chosen", "rejected"))
        found = compared(prompt, chosen, rejected, _graded_pair(parts))
    asked = [turn for turn in found.row["prompt"] if turn["role"] != "system"]
    if talk and [turn for turn in talk if turn["role"] != "system"][: len(asked)] != asked and not asks:
        raise BadRow("D03", "messages", "is another conversation than the prompt", remedy="leave one of them out")
    return found


def _implicit(parts: Parts) -> Reading:
    """Two conversations or texts whose common beginning is the prompt."""
    both = [parsed(parts["chosen"]), parsed(parts["rejected"])]
    text = all(isinstance(one, str) for one in both) and not is_transcript(both[0], headed=True)
    left = [name for name, value in parts["*"].items() if isinstance(value, str) and not beside(name)]
    if text and left:
        what, effect = "stands beside two texts without a prompt", "the words that both begin with would be the prompt"
        remedy = (
            f"columns={{'prompt': {left[0]!r}}} if that is what it is, or columns={{'meta': {left}}} to put it aside"
        )
        raise BadRow("D03", str(left[0]), what, effect, remedy)
    prompt, chosen, rejected = implicit_pair(*both)
    before: Parts = {name: parts[name] for name in ("system", "tools") if name in parts}
    found = compared(conversation({"prompt": prompt, **before}), chosen, rejected, _graded_pair(parts))
    return found._replace(note=HINT if text else "")


def _other_answer(parts: Parts) -> Reading:
    """A demonstration with a worse answer beside it."""
    before: Parts = {name: parts[name] for name in ("system", "tools") if name in parts}
    turns = conversation({"prompt": parts["messages"], **before}, "messages")
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRow("D12", "messages", "does not end with an assistant turn", remedy="give the better answer too")
    prompt, chosen = demonstrated(turns, "messages")
    bare = [{k: v for k, v in turn.items() if k != "trained"} for turn in prompt]
    rejected = response_in(parts["rejected"], bare, "rejected")
    return compared(prompt, chosen, rejected, _graded_pair(parts))


def _response_and_rejected(parts: Parts) -> Reading:
    return _pair({**parts, "chosen": parts["completion"]})


WINNERS = {
    **dict.fromkeys(("1", "a", "model_a", "response_a", "output_1", "first", "left", "response_1", "model_1"), 0),
    **dict.fromkeys(("2", "b", "model_b", "response_b", "output_2", "second", "right", "response_2", "model_2"), 1),
    **dict.fromkeys(
        ("0", "tie", "tie (bothbad)", "tie (both bad)", "both_bad", "bothbad", "both", "draw", "same"), None
    ),
}


def _winner(value: Any, field: str) -> int | None:
    """Which answer is better, 0 or 1, or None for a tie."""
    word = str(value).strip().lower().removesuffix(".0")
    if isinstance(value, bool) or not isinstance(value, int | float | str) or word not in WINNERS:
        raise BadRow("D17", field, f"{value!r} is outside the scale", remedy="1, 2, or 0 for a tie")
    return WINNERS[word]


def _verdict(prompt: list[Turn], one: Turn, two: Turn, winner: int | None, grades: Parts | None = None) -> Reading:
    order = (two, one) if winner == 1 else (one, two)
    return compared(prompt, *order, grading(grades or {}, winner is None))


def _judged(parts: Parts) -> Reading:
    prompt = conversation(parts)
    one, two = (response_in(parts[name], prompt, name) for name in ("output_1", "output_2"))
    grades = {"rating": rating_of(parts.get("strength"), "strength")}
    return _verdict(prompt, one, two, _winner(parts["label"], "label"), grades)


def _strength(parts: Parts) -> Reading:
    prompt = conversation(parts)
    answers = [response_in(parts[name], prompt, name) for name in ("output_1", "output_2")]
    better, grades = graded(parts["preference_strength"], "preference_strength")
    return compared(prompt, answers[better], answers[1 - better], grades)


def _safe_rlhf(parts: Parts) -> list[Reading]:
    """Helpfulness and safety apart: which is better, and which is safer, need not be the same answer."""
    prompt = conversation(parts)
    answers = [response_in(parts[name], prompt, name) for name in ("response_0", "response_1")]
    safe = [flag(parts[n], n) for n in ("is_response_0_safe", "is_response_1_safe") if n in parts]
    found = []
    for name, dimension in (("better_response_id", "helpfulness"), ("safer_response_id", "safety")):
        if name not in parts:
            continue
        which = number(parts[name], name)
        if which not in (0, 1):
            raise BadRow("D17", name, f"{parts[name]!r} is neither 0 nor 1", remedy="give the number of the answer")
        order = [int(which), 1 - int(which)]
        one = compared(prompt, answers[order[0]], answers[order[1]], grading({}, False))
        meta = {"safe": [safe[i] for i in order]} if len(safe) == 2 else {}
        found.append(one._replace(row={**one.row, "dimension": dimension, "meta": meta}))
    if not found:
        raise BadRow("D21", "better_response_id", "is missing, as is safer_response_id", remedy="complete or drop it")
    return found


def _shp(parts: Parts) -> Reading:
    prompt = turns_in(parts["history"], "history")
    answers = [response_in(parts[name], prompt, name) for name in ("human_ref_a", "human_ref_b")]
    first = flag(parts["labels"], "labels")
    order = answers if first else answers[::-1]
    return compared(prompt, order[0], order[1], grading({}, False))


def _webgpt(parts: Parts) -> Reading:
    question = parts["question"]
    asked = question.get("full_text") if isinstance(question, Mapping) else question
    prompt = turns_in(text_of(asked, "question"), "question")
    answers = [response_in(parts[name], prompt, name) for name in ("answer_0", "answer_1")]
    scores = [number(parts[name], name) for name in ("score_0", "score_1")]
    order = [0, 1] if scores[0] >= scores[1] else [1, 0]
    one = compared(prompt, answers[order[0]], answers[order[1]], grading({}, scores[0] == scores[1]))
    meta = {"scores": [scores[i] for i in order], "margin": abs(scores[0] - scores[1])}
    quotes = [parts.get(f"quotes_{i}") for i in order]
    return one._replace(row={**one.row, "meta": {**meta, **({"quotes": quotes} if any(quotes) else {})}})


def _arena(parts: Parts) -> Reading:
    names = ("conversation_a", "conversation_b")
    prompt, one, two = implicit_pair(parts[names[0]], parts[names[1]], names)
    return _verdict(conversation({"prompt": prompt}), one, two, _winner(parts["winner"], "winner"))


def _votes(parts: Parts) -> Reading:
    """The form of the arena's competition: lists of turns, and a column for each verdict."""
    turns = [texts_in(parts[name], name) for name in ("prompt", "response_a", "response_b")]
    if len({len(side) for side in turns}) != 1 or turns[1][:-1] != turns[2][:-1]:
        what = "answer different conversations from their first turn on"
        raise BadRow("D03", "response_b", what, "the pair would not answer the same prompt", "drop the row")
    asked, answers = turns[0], turns[1]
    prompt = conversation(
        {"prompt": asked[-1], "history": [list(pair) for pair in zip(asked, answers, strict=True)][:-1]}
    )
    one, two = (
        response_in(side[-1], prompt, name) for side, name in zip(turns[1:], ("response_a", "response_b"), strict=True)
    )
    votes = [flag(parts[name], name) for name in ("winner_model_a", "winner_model_b", "winner_tie")]
    if sum(votes) != 1:
        raise BadRow("D17", "winner_tie", f"{votes}: not one verdict", remedy="exactly one of the three is 1")
    return _verdict(prompt, one, two, (0, 1, None)[votes.index(True)])


def _example(**columns: Any) -> dict[str, Any]:
    return {"prompt": "Name a tea.", **columns}


_TALK = [{"role": "user", "content": "Name a tea."}, {"role": "assistant", "content": "Oolong."}]
_WORSE = [_TALK[0], {"role": "assistant", "content": "Rain."}]

PAIRS = (
    RowFormat(
        "comparison",
        "a chosen and a rejected answer, the prompt beside or inside: TRL, hh-rlhf, UltraFeedback, orca pairs, OpenAI, "
        "Alpaca, LLaMA-Factory",
        (CHOSEN, REJECTED),
        _pair,
        _example(chosen="Oolong.", rejected="Rain.", rating="better"),
        (f"{ASK}|conversations|conversation|context_messages", *BEFORE, *GRADES, *SCORES, "messages"),
        (
            *(f"{side}_{said}*" for side in ("chosen", "rejected") for said in SAID_OF_ONE),
            "generations",
            "order",
            "original_*",
            "status",
            "raw_*",
            "labelling_*",
            "rationale",
            "critique*",
            # One number judges the row, not which answer is better; `scores` and `ratings` might.
            "score",
            "score_*",
        ),
    ),
    RowFormat(
        "messages_and_rejected",
        "a conversation with its better answer, and a worse one beside it: ms-swift",
        (TALK, "rejected|rejected_response|rejected_messages"),
        _other_answer,
        {"messages": _TALK, "rejected_response": "Rain."},
        ("system", "tools", *GRADES),
    ),
    RowFormat(
        "response_and_rejected",
        "a prompt with its answer, and a worse one beside it: ms-swift",
        (ASK, RESPONSE, "rejected|rejected_response"),
        _response_and_rejected,
        {"query": "Name a tea.", "response": "Oolong.", "rejected_response": "Rain."},
        (*BEFORE, *GRADES),
    ),
    RowFormat(
        "judged",
        "two answers and the better one's number, 0 for a tie: AlpacaFarm, PandaLM, pairwise judges",
        (
            ASK,
            "output_1|response_1|answer_1|completion_1|response1|output_a|response_a|answer_a|completion_a",
            "output_2|response_2|answer_2|completion_2|response2|output_b|response_b|answer_b|completion_b",
            VERDICT,
        ),
        _judged,
        _example(output_1="Rain.", output_2="Oolong.", label=2),
        (*BEFORE, "strength"),
        ("score*", "votes", "judge*", "model_*", "critique*", "rationale"),
    ),
    RowFormat(
        "preference_strength",
        "two answers and how much better one is, from -3 (the first) to 3 (the second): HelpSteer 2 and 3",
        (
            f"{ASK}|context",
            "output_1|response_1|response1",
            "output_2|response_2|response2",
            "preference_strength|overall_preference",
        ),
        _strength,
        {"context": _TALK[:1], "response1": "Rain.", "response2": "Oolong.", "overall_preference": 2},
        BEFORE[:1],
        ("preference_*", "individual_preference", "feedback*", "all_preferences*"),
    ),
    RowFormat(
        "safe_rlhf",
        "two answers, which is better and which is safer, each a comparison of its own: PKU-SafeRLHF",
        (ASK, "response_0", "response_1"),
        _safe_rlhf,
        _example(
            response_0="Rain.",
            response_1="Oolong.",
            better_response_id=1,
            safer_response_id=0,
            is_response_0_safe=True,
            is_response_1_safe=True,
        ),
        ("better_response_id", "safer_response_id", "is_response_0_safe", "is_response_1_safe"),
        ("response_*", "is_response_*"),
    ),
    RowFormat(
        "stanford_human_preferences",
        "two answers to a post, labels 1 where the first has the votes: SHP",
        ("history", "human_ref_a", "human_ref_b", "labels"),
        _shp,
        {"history": "Name a tea.", "human_ref_A": "Oolong.", "human_ref_B": "Rain.", "labels": 1, "score_A": 9},
        (),
        ("score*", "seconds_difference", "upvote_ratio", "post_id", "c_root_id*", "created_at*"),
    ),
    RowFormat(
        "webgpt",
        "two answers of a search with a score each: WebGPT comparisons",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        _webgpt,
        {
            "question": {"full_text": "Which tea is dark?"},
            "answer_0": "Rain.",
            "answer_1": "Oolong.",
            "score_0": -0.5,
            "score_1": 0.5,
        },
        ("quotes_0", "quotes_1"),
        ("tokens_*",),
    ),
    RowFormat(
        "arena",
        "two conversations with one user and who won: arena votes",
        ("conversation_a", "conversation_b", "winner"),
        _arena,
        {"conversation_a": _WORSE, "conversation_b": _TALK, "winner": "model_b", "model_a": "x", "model_b": "y"},
        (),
        (
            *("openai_moderation", "toxic_chat_tag", "judge*", "anony", "turn", "conv_metadata", "tstamp"),
            *("full_conversation", "evaluation_*", "is_refusal", "is_code", "*_tag"),
        ),
    ),
    RowFormat(
        "arena_competition",
        "two lists of answers with a column for each verdict: arena votes as a table",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        _votes,
        {
            "prompt": '["Name a tea."]',
            "response_a": '["Rain."]',
            "response_b": '["Oolong."]',
            "winner_model_a": 0,
            "winner_model_b": 1,
            "winner_tie": 0,
        },
    ),
)
