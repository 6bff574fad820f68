"""One row of somebody's file to one row of `Groups`, by the columns it has.

| columns | becomes |
|---|---|
| `prompt`, `chosen`, `rejected` (text, messages; `prompt` may be the common beginning) | a comparison |
| `chosen`, `rejected` as `\\n\\nHuman: … \\n\\nAssistant: …` | a comparison |
| `prompt`, `output_1`, `output_2`, `label` (1, 2, 0: tie) | a comparison |
| `prompt`, `responses`: [{text, label: preferred or disliked}] | a comparison, or labels |
| `prompt`, `responses`: [{text, rank or score}] | a ranking |
| `prompt`, `responses`: [text] and columns of `Groups` | as it says |
| `prompt`, `completion` or `response`, and `label` or `safe` | a labelled response |
| `prompt`, `completion` or `response`; `messages` that end with the assistant | a demonstration |
| `text`, or an empty `prompt` with `completion` or `response` | a demonstration without a prompt: plain text |
| `prompt`; `turns`; `messages` that end with the user | a prompt |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from alignkit.data.conversations import (
    BadRow,
    Turn,
    columns_hint,
    implicit_pair,
    is_transcript,
    response_in,
    text_of,
    turns_in,
)
from alignkit.groups import FEATURES, RATINGS

COLUMNS = (
    "prompt", "chosen", "rejected", "responses", "messages", "completion", "response", "label", "safe", "rating",
    "margin", "tie", "dimension", "tags", "meta", "preference_prob", "iteration",
    "output_1", "output_2", "strength", "turns", "text",
)  # fmt: skip

_GOOD = ("preferred", "chosen", "good", "safe", "positive", "desirable", "true")
_BAD = ("disliked", "rejected", "bad", "unsafe", "negative", "undesirable", "false")


class Shaped(NamedTuple):
    """A row of `Groups` in the making.

    Args:
        shape: which of the table above, so that a file can be held to one.
        kind: what it can be used as.
        row: columns of `Groups`; `meta` is a dict.
        raw_ranks: ranks as they stood in the file, of a base yet unknown.
        used: the columns that were understood; the others belong into `meta`.
    """

    shape: str
    kind: str
    row: dict[str, Any]
    used: tuple[str, ...]
    raw_ranks: list[int] | None = None


_SAYS_MORE = frozenset(COLUMNS) - {"text", "tags", "meta"} | {
    "labels", "score", "scores", "rank", "ranks", "role", "is_safe", "parent_id",
}  # fmt: skip
"""Columns beside `text` that say something of it which a demonstration would not have."""


def shaped(row: Mapping[str, Any]) -> Shaped:
    """Read one row.

    Raises:
        BadRow: what is wrong with it.
    """
    for needed, read in _SHAPES:
        if all(name in row for name in needed) and not (needed == ("text",) and _SAYS_MORE & set(row)):
            result = read(row)
            break
    else:
        known = COLUMNS[: COLUMNS.index("output_1")]
        what = f"cannot tell what the columns {sorted(map(str, row))} mean"
        raise BadRow("D21", "", what, remedy=columns_hint([str(name) for name in row], known))
    return result._replace(row={**_common(row, result), **result.row})


def _common(row: Mapping[str, Any], result: Shaped) -> dict[str, Any]:
    """The columns that any row may have; what nobody asked for goes into `meta`."""
    out: dict[str, Any] = {}
    used = {*result.used, "meta"}
    if isinstance(row.get("dimension"), str):
        out["dimension"] = row["dimension"]
        used.add("dimension")
    tags = row.get("tags")
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        out["tags"] = tags
        used.add("tags")
    if isinstance(row.get("iteration"), int):
        out["iteration"] = row["iteration"]
        used.add("iteration")
    given = row.get("meta")
    meta = dict(given) if isinstance(given, Mapping) else {} if given is None else {"meta": given}
    meta |= {name: value for name, value in row.items() if name not in used and value is not None}
    meta |= result.row.pop("meta", {})
    out["meta"] = jsonable(meta) or None
    return out


def jsonable(value: Any) -> Any:
    """The value as strict JSON can hold it: numbers that are not finite become null, other types their text."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


# ---- comparisons ------------------------------------------------------------------------------------------------


def _pair(row: Mapping[str, Any]) -> Shaped:
    for field in ("chosen", "rejected"):
        if row.get(field) is None:
            raise BadRow("D21", field, "is missing", "there is nothing to compare", "complete or drop the row")
    if row.get("prompt") is None:
        prompt, chosen, rejected = implicit_pair(row["chosen"], row["rejected"])
    else:
        prompt = turns_in(row["prompt"], "prompt")
        chosen, rejected = (response_in(row[field], prompt, field) for field in ("chosen", "rejected"))
    used = ("prompt", "chosen", "rejected", "rating", "tie", "margin", "preference_prob")
    out = {"prompt": prompt, "responses": [chosen, rejected], **_grading(row, bool(row.get("tie")))}
    return Shaped("chosen and rejected", "comparisons", out, used)


def _grading(row: Mapping[str, Any], tie: bool) -> dict[str, Any]:
    """Ranks, rating, margin and soft label of a comparison whose better response comes first."""
    out: dict[str, Any] = {"ranks": [1, 1] if tie else [1, 2], "rating": _rating(row.get("rating"), "rating")}
    if tie:
        if out["rating"] not in (None, RATINGS[-1]):
            raise BadRow("D17", "rating", f"{out['rating']!r} of a tie", "they contradict", f"use {RATINGS[-1]}")
        out["rating"] = RATINGS[-1]
    margin = row.get("margin")
    if margin is not None:
        out["meta"] = {"margin": _number(margin, "margin", math.inf)}
    chance = row.get("preference_prob")
    if chance is not None:
        out["preference_prob"] = _number(chance, "preference_prob", 1)
    return out


def _rating(value: Any, field: str) -> str | None:
    if value is not None and value not in RATINGS:
        remedy = f"use {', '.join(RATINGS)}; numbers belong into the column margin"
        raise BadRow("D17", field, f"{value!r} is outside the scale", remedy=remedy)
    return value


def _number(value: Any, field: str, most: float) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not 0 <= value <= most
    ):
        scale = "a finite number >= 0" if most == math.inf else f"a number from 0 to {most}"
        raise BadRow(
            "D17", field, f"{value!r} is outside the scale", "the loss would push the wrong way", f"give {scale}"
        )
    return float(value)


def _judged_pair(row: Mapping[str, Any]) -> Shaped:
    prompt = turns_in(row["prompt"], "prompt")
    one, two = (response_in(row[field], prompt, field) for field in ("output_1", "output_2"))
    label = row["label"]
    if isinstance(label, bool) or label not in (0, 1, 2):
        raise BadRow("D17", "label", f"{label!r} is outside the scale", remedy="1, 2, or 0 for a tie")
    responses = [two, one] if label == 2 else [one, two]
    out = {"prompt": prompt, "responses": responses, **_grading({"rating": row.get("strength")}, label == 0)}
    used = ("prompt", "output_1", "output_2", "strength")
    return Shaped("output_1 and output_2", "comparisons", out, used)


# ---- several responses ------------------------------------------------------------------------------------------


def _listed(row: Mapping[str, Any]) -> Shaped:
    responses = row["responses"]
    if not isinstance(responses, list) or not responses:
        raise BadRow(
            "D21", "responses", "is no list of responses", remedy="give [{text, rank}], [{text, label}] or texts"
        )
    if all(isinstance(response, str) for response in responses):
        return _grouped(row)
    if not all(isinstance(response, Mapping) and "text" in response for response in responses):
        raise BadRow("D21", "responses", "some have no text", remedy="give [{text, rank}], [{text, label}] or texts")
    texts = [text_of(response["text"], f"responses[{place}].text") for place, response in enumerate(responses)]
    out: dict[str, Any] = {"prompt": turns_in(row["prompt"], "prompt"), "responses": texts}
    kept = [{k: v for k, v in r.items() if k not in ("text", "label", "rank", "score")} for r in responses]
    meta: dict[str, Any] = {"responses": kept} if any(kept) else {}
    if all(response.get("score") is not None for response in responses):
        meta["scores"] = [response["score"] for response in responses]
    out["meta"] = meta
    for field, read in (("rank", _by_rank), ("score", _by_score), ("label", _by_label)):
        known = [response.get(field) is not None for response in responses]
        if all(known):
            return read(out, [response[field] for response in responses])
        if any(known) and field != "score":
            raise BadRow(
                "D19", "responses", f"{known.count(False)} of {len(known)} have no {field}", remedy="complete them"
            )
    raise BadRow("D21", "responses", "have neither rank nor score nor label", remedy="give one of them for each")


def _by_rank(out: dict[str, Any], ranks: list[Any]) -> Shaped:
    if not all(isinstance(rank, int | float) and not isinstance(rank, bool) and rank == int(rank) for rank in ranks):
        raise BadRow("D19", "ranks", f"{ranks} are no whole numbers", remedy="number them from 1 (the best)")
    return Shaped("ranked responses", "rankings", out, ("prompt", "responses"), [int(rank) for rank in ranks])


def _by_score(out: dict[str, Any], scores: list[Any]) -> Shaped:
    """A higher score is better; equal scores tie."""
    if not all(isinstance(s, int | float) and not isinstance(s, bool) and math.isfinite(s) for s in scores):
        raise BadRow("D17", "responses", f"the scores {scores} are no finite numbers", remedy="repair or drop the row")
    places = {score: place for place, score in enumerate(sorted(set(scores), reverse=True), start=1)}
    out["ranks"] = [places[score] for score in scores]
    return Shaped("scored responses", "rankings", out, ("prompt", "responses"))


def _by_label(out: dict[str, Any], labels: list[Any]) -> Shaped:
    good = [is_good(label, "responses") for label in labels]
    used = ("prompt", "responses")
    if len(set(good)) == 1:
        return Shaped("labelled responses", "unpaired", {**out, "labels": good}, used)
    if len(good) == 2:
        order = sorted(range(2), key=lambda place: not good[place])
        out["responses"] = [out["responses"][place] for place in order]
        for name, values in out["meta"].items():
            out["meta"][name] = [values[place] for place in order]
        return Shaped("labelled responses", "comparisons", {**out, "ranks": [1, 2]}, used)
    ranks = [1 if is_ else 2 for is_ in good]
    return Shaped("labelled responses", "rankings", {**out, "labels": good, "ranks": ranks}, used)


def is_good(label: Any, field: str) -> bool:
    """True or false of a label in any usual spelling.

    Raises:
        BadRow: another spelling.
    """
    if isinstance(label, bool) or label in (0, 1):
        return bool(label)
    if isinstance(label, str) and label.lower() in (*_GOOD, *_BAD):
        return label.lower() in _GOOD
    raise BadRow(
        "D17", field, f"the label {label!r} is not known", remedy="use true and false, or preferred and disliked"
    )


def _grouped(row: Mapping[str, Any]) -> Shaped:
    """Rows as `Groups` writes them; its own columns are taken over."""
    kept = {name: row[name] for name in FEATURES if row.get(name) is not None and name not in ("meta", "prompt_id")}
    out = {**kept, "prompt": turns_in(row["prompt"], "prompt")}
    if row.get("rating") is not None:
        _rating(row["rating"], "rating")
    kind = "prompts"
    if kept.get("ranks") is not None:
        kind = "comparisons" if len(row["responses"]) == 2 else "rankings"
    return Shaped("groups", kind, out, (*FEATURES, "meta"))


# ---- one response, or none --------------------------------------------------------------------------------------


def _single(name: str) -> Callable[[Mapping[str, Any]], Shaped]:
    def read(row: Mapping[str, Any]) -> Shaped:
        prompt = [] if row["prompt"] == [] else turns_in(row["prompt"], "prompt")
        out = {"prompt": prompt, "responses": [response_in(row[name], prompt, name)]}
        return _judged(row, out, ("prompt", name))

    return read


def _judged(row: Mapping[str, Any], out: dict[str, Any], used: tuple[str, ...]) -> Shaped:
    """A response by itself, with the label that some column gives it."""
    for field in ("label", "safe"):
        if field in row:
            if row[field] is None:
                raise BadRow("D21", field, "is missing", "nobody knows whether the response is good", "drop the row")
            out["labels"] = [is_good(row[field], field)]
            return Shaped("a labelled response", "unpaired", out, (*used, field))
    return Shaped("a response", "demonstrations", out, used)


def _conversation(row: Mapping[str, Any]) -> Shaped:
    turns = turns_in(row["messages"], "messages")
    if turns[-1]["role"] != "assistant":
        return Shaped("messages", "prompts", {"prompt": turns}, ("messages",))
    out = {"prompt": turns[:-1], "responses": [turns[-1]["content"]]}
    return _judged(row, out, ("messages",))._replace(shape="messages")


def _text(row: Mapping[str, Any]) -> Shaped:
    """Plain text, which no prompt comes before; or the transcript of a conversation."""
    text = text_of(row["text"], "text")
    if is_transcript(text):
        return _conversation({"messages": text})._replace(used=("text",))
    return Shaped("text", "demonstrations", {"prompt": [], "responses": [text]}, ("text",))


def _prompt(row: Mapping[str, Any]) -> Shaped:
    return Shaped("prompts", "prompts", {"prompt": turns_in(row["prompt"], "prompt")}, ("prompt",))


def _first_turn(row: Mapping[str, Any]) -> Shaped:
    """Questions asked one after another: the first is the prompt, all stay in `meta`."""
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise BadRow("D21", "turns", "is no list of texts", remedy="give the questions in order")
    first: list[Turn] = [{"role": "user", "content": text_of(turns[0], "turns[0]")}]
    return Shaped("turns", "prompts", {"prompt": first}, ())


_SHAPES: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Shaped]], ...] = (
    (("chosen", "rejected"), _pair),
    (("prompt", "output_1", "output_2", "label"), _judged_pair),
    (("prompt", "responses"), _listed),
    (("prompt", "completion"), _single("completion")),
    (("prompt", "response"), _single("response")),
    (("messages",), _conversation),
    (("prompt",), _prompt),
    (("turns",), _first_turn),
    (("text",), _text),
)
