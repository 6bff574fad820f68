"""What makes rows of preference data useless, found before training starts.

| code | an error (the row is refused) | code | a note (said, not refused) |
|---|---|---|---|
| D01 | a response is empty, or holds nothing that is seen | D03 | the prompt is what two texts begin with |
| D02 | the responses to compare are identical | D08 | control tokens written inside text |
| D03 | the prompt is no prefix (of chosen, of rejected) | D09 | a doubled BOS (one is left out) |
| D05 | prompt or response is too long | D11 | a system turn folded into the user's |
| D12 | roles that do not alternate, an empty prompt | D16 | chosen looks like the worse one, all labels alike |
| D13 | the chat template rewrites, hides or refuses what is said | D18 | ratings or margins in some rows only |
| D16 | a response labelled bad among demonstrations | D19 | scores that contradict the ranks, ties alone |
| D17 | a rating, margin or probability outside its scale | D20 | duplicates, pairs judged both ways, leaks |
| D19 | ranks with gaps, below 1, or of another number | D21 | what messages have beside their text |
| D21 | columns or responses unlike what was asked for | D24 | left-overs of a template ("{{prompt}}", "nan") |
| D22 | bytes that are no text, lines that are no JSON | D25 | text that the tokenizer gives back otherwise |
| D23 | a row beyond all measure | D27 | prompts that another data set has too |
| D28 | no rows | | |

What the other codes stand for cannot come about: a prompt's tokens always begin the row's (D04), a response is never
cut and always ends with its end token (D06, D07), padding is told by the mask (D10), ids beyond the model's table (D14)
and another tokenizer than the policy's (D15) are refused or tokenised anew where a model is loaded, and who makes
dialogues checks them (D26).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignkit.data.across_rows import check_wholes, meta_of
from alignkit.data.encode import encode_groups, is_plain_text
from alignkit.data.problems import Problem, refuse_or_drop
from alignkit.errors import DataError
from alignkit.groups import RATINGS, ROLES, Groups

if TYPE_CHECKING:
    from alignkit.data.chat import ChatFormat

__all__ = ["Kind", "Problem", "check_given", "check_groups", "check_row", "refuse_or_drop"]

Kind = Literal["prompts", "demonstrations", "comparisons", "rankings", "unpaired", "rated"]

MAX_CHARACTERS = 4_000_000
"""Characters of a row beyond which it is not even tokenised."""

_LEFT_OVER = re.compile(r"\{\{\s*\w+\s*\}\}|\{%.*?%\}|^\s*(nan|None|null|NaN|undefined)\s*$")


class Finding(NamedTuple):
    """A problem that does not know yet in which row it is."""

    code: str
    field: str
    what: str
    effect: str = ""
    remedy: str = ""
    note: bool = False


Rule = Callable[[Mapping[str, Any], str], Iterator[Finding]]


def check_groups(
    groups: Groups,
    kind: Kind = "prompts",
    chat: ChatFormat | None = None,
    *,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
) -> list[Problem]:
    """Find what cannot be learned from, and what is worth knowing.

    Args:
        groups: the rows.
        kind: what they are to be used as: `prompts` (K is free), `demonstrations` (K = 1; those without a prompt are
            plain text), `comparisons` (K = 2 with
            ranks), `rankings` (K >= 2 with ranks), `unpaired` (labels), `rated` (rewards; K is free).
        chat: tokenizer and template; with it, lengths and templates are checked too.
        max_prompt_tokens: limit in tokens (None: none).
        max_response_tokens: limit in tokens (None: none).

    Returns:
        Problems in the order of the rows, those of the whole last. Nothing is raised, whatever the rows hold.
    """
    rows = list(groups)
    if not rows:
        return [
            Problem(
                "D28", None, "", "", "there are no rows", "nothing can be learned", "check the file and the filters"
            )
        ]
    problems = [
        _at(finding, index, row["prompt_id"]) for index, row in enumerate(rows) for finding in check_row(row, kind)
    ]
    if chat is not None:
        refused = {p.row for p in problems if not p.note}
        fine = [index for index in range(len(rows)) if index not in refused]
        plain = {index for index in fine if kind == "demonstrations" and is_plain_text(rows[index])}
        problems += [_at(f, i, rows[i]["prompt_id"]) for i in sorted(plain) for f in _plain_text(rows[i], chat)]
        talks = [index for index in fine if index not in plain]
        problems += _check_tokens(groups, talks, chat, max_prompt_tokens, max_response_tokens) if talks else []
    problems.sort(key=lambda problem: len(rows) if problem.row is None else problem.row)
    return [*problems, *check_wholes(rows, kind)]


def check_given(groups: Groups) -> list[Problem]:
    """The same of rows that a method learns from as they are given: whatever a row holds must make sense.

    Comparisons and rankings are those rows that are ranked; of the others nothing is asked that they do not have.
    """
    rows = list(groups)
    kinds = [_kind_of(row) for row in rows]
    found = [
        _at(finding, index, row["prompt_id"])
        for index, (row, kind) in enumerate(zip(rows, kinds, strict=True))
        for finding in check_row(row, kind)
    ]
    return [*found, *check_wholes(rows, "comparisons" if set(kinds) == {"comparisons"} else "prompts")]


def _kind_of(row: Mapping[str, Any]) -> Kind:
    if row["ranks"] is None or len(row["responses"] or []) < 2:
        return "prompts"
    return "comparisons" if len(row["responses"]) == 2 else "rankings"


def check_row(row: Mapping[str, Any], kind: str) -> list[Finding]:
    """The findings of one row; a row with more than one error keeps them all."""
    size = sum(len(m["content"] or "") for m in row["prompt"] or []) + sum(len(r or "") for r in row["responses"] or [])
    if size > MAX_CHARACTERS:
        return [Finding("D23", "", f"has {size} characters, more than {MAX_CHARACTERS}", remedy="split or drop it")]
    return [finding for rule in RULES for finding in rule(row, kind)]


def _at(finding: Finding, index: int, prompt_id: str) -> Problem:
    code, field, what, effect, remedy, note = finding
    return Problem(code, index, prompt_id or "", field, what, effect, remedy, note=note)


def _prompt_turns(row: Mapping[str, Any], kind: str) -> Iterator[Finding]:
    if kind == "demonstrations" and is_plain_text(row):
        return  # which SFT learns as it stands
    turns = [turn["role"] for turn in row["prompt"] or []]
    remedy = "let user and assistant alternate, system first, user last"
    unknown = [role for role in turns if role not in ROLES]
    body = turns[1:] if turns[:1] == ["system"] else turns
    if unknown:
        yield Finding("D12", "prompt", f"unknown role {unknown[0]!r}", remedy=f"use {', '.join(ROLES)}")
    elif not body:
        yield Finding("D12", "prompt", "has no user turn", "there is nothing to answer", remedy)
    elif "system" in body:
        yield Finding("D12", "prompt", f"message {turns.index('system', 1)} is a later system turn", remedy=remedy)
    elif "tool" not in body:
        wanted = [("user", "assistant")[i % 2] for i in range(len(body))]
        wrong = next((i for i, (is_, ought) in enumerate(zip(body, wanted, strict=True)) if is_ != ought), None)
        if wrong is not None:
            place = wrong + len(turns) - len(body)
            yield Finding(
                "D12", "prompt", f"roles do not alternate: message {place} is of {body[wrong]}", remedy=remedy
            )
        elif body[-1] != "user":
            yield Finding("D12", "prompt", f"the last message is of {body[-1]}, not of the user", remedy=remedy)
    if body and not any((turn["content"] or "").strip() for turn in row["prompt"] if turn["role"] != "system"):
        yield Finding("D12", "prompt", "all messages are empty", "there is nothing to answer", "drop the row")


def _count(row: Mapping[str, Any], kind: str) -> Iterator[Finding]:
    count = len(row["responses"] or [])
    wanted = {"demonstrations": (1, 1), "comparisons": (2, 2), "rankings": (2, math.inf), "unpaired": (1, math.inf)}
    least, most = wanted.get(kind, (0, math.inf))
    if not least <= count <= most:
        ask = str(least) if least == most else f"{least} or more"
        yield Finding(
            "D21", "responses", f"{count} responses where {kind} have {ask}", remedy=f"give rows that are {kind}"
        )
    elif kind in ("comparisons", "rankings") and row["ranks"] is None:
        yield Finding(
            "D19", "ranks", "no ranks: nobody knows which response is better", remedy="annotate the rows first"
        )
    elif kind == "unpaired" and (row["labels"] is None or None in row["labels"]):
        yield Finding("D21", "labels", "no labels: nobody knows whether it is good", remedy="annotate the rows first")


def _texts(row: Mapping[str, Any], kind: str) -> Iterator[Finding]:
    for place, (name, text) in enumerate(_named_responses(row)):
        sampled = row["response_ids"] is not None
        if not seen(text) and not has_fields(row, place):
            effect = "the only token to learn from would be the one that ends the turn"
            # A model may end its turn at once: that is a response, and its ids say so.
            yield Finding("D01", name, "is empty", effect, "drop the row", note=sampled)
        elif _LEFT_OVER.search(text):
            yield Finding("D24", name, f"looks like a left-over: {text.strip()[:30]!r}", note=True)
    for place, turn in enumerate(row["prompt"] or []):
        if _LEFT_OVER.search(turn["content"] or ""):
            yield Finding("D24", f"prompt[{place}]", "looks like a left-over of a template", note=True)


def _identical(row: Mapping[str, Any], kind: str) -> Iterator[Finding]:
    texts = [seen(text) + has_fields(row, place) for place, text in enumerate(row["responses"] or [])]
    if kind == "comparisons" and len(texts) == 2 and texts[0] == texts[1] and texts[0]:
        yield Finding("D02", "responses", "identical pair", "its gradient is exactly zero", "drop the row")
    elif kind == "rankings" and len(texts) > 1 and len(set(texts)) == 1 and texts[0]:
        yield Finding("D02", "responses", "all responses are identical", "its gradient is exactly zero", "drop the row")


def seen(text: str | None) -> str:
    """What of a text is seen: composed as Unicode says (NFC), white space as one space, without what has no width."""
    composed = unicodedata.normalize("NFC", text or "")
    visible = "".join(c for c in composed if unicodedata.category(c) != "Cf") if not composed.isascii() else composed
    return " ".join(visible.split())


def has_fields(row: Mapping[str, Any], place: int) -> str:
    """What a response has beside its text, "" where there is nothing."""
    fields = row.get("response_fields")
    return (fields[place] or "") if fields and place < len(fields) else ""


def _bytes(row: Mapping[str, Any], kind: str) -> Iterator[Finding]:
    """Text that no UTF-8 file could hold, or with a NUL; but what was sampled may hold whatever the model wrote."""
    sampled = row["response_ids"] is not None
    texts = [
        (f"prompt[{i}]", turn["content"]) for i, turn in enumerate(row["prompt"] or []) if turn["role"] != "assistant"
    ]
    texts += [] if sampled else _named_responses(row)
    for name, text in texts:
        if "\0" in (text or ""):
            yield Finding("D22", name, f"a NUL at character {text.index(chr(0))}", remedy="remove it")


def _labels(row: Mapping[str, Any], kind: str) -> Iterator[Finding]:
    if kind == "demonstrations" and False in (row["labels"] or []):
        effect = "it would be imitated"
        yield Finding("D16", "labels", "the response is labelled bad", effect, "drop the row, or learn from labels")


def _ranks(row: Mapping[str, Any], kind: str) -> Iterator[Finding]:
    ranks = row["ranks"]
    if ranks is None:
        return
    remedy = "number them from 1 (the best), equal ranks tie"
    if len(ranks) != len(row["responses"] or []):
        yield Finding("D19", "ranks", f"{len(ranks)} ranks of {len(row['responses'] or [])} responses", remedy=remedy)
    elif None in ranks or min(ranks, default=1) < 1:
        yield Finding("D19", "ranks", f"{ranks}: ranks start at 1", "the order would be misread", remedy)
    elif sorted(ranks) not in (_dense(ranks), _competition(ranks)):
        yield Finding("D19", "ranks", f"{ranks}: ranks with gaps", "a response seems to be missing", remedy)


def _dense(ranks: list[int]) -> list[int]:
    """1 2 2 3: the next rank after a tie."""
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    return sorted(places[rank] for rank in ranks)


def _competition(ranks: list[int]) -> list[int]:
    """1 2 2 4: one more than the number of better ones."""
    return sorted(1 + sum(other < rank for other in ranks) for rank in ranks)


def _scales(row: Mapping[str, Any], kind: str) -> Iterator[Finding]:
    if row["rating"] is not None and row["rating"] not in RATINGS:
        yield Finding("D17", "rating", f"{row['rating']!r} is outside the scale", remedy=f"use {', '.join(RATINGS)}")
    chance = row["preference_prob"]
    if chance is not None and not 0 <= chance <= 1:
        yield Finding("D17", "preference_prob", f"{chance} is no probability", remedy="give a number from 0 to 1")
    margin = meta_of(row).get("margin")
    if margin is not None and not (isinstance(margin, int | float) and math.isfinite(margin) and margin >= 0):
        yield Finding(
            "D17", "margin", f"{margin!r} is no margin", "the loss would push the wrong way", "give a number >= 0"
        )
    for reward in row["rewards"] or []:
        if any(value is not None and not math.isfinite(value) for value in reward["values"]):
            remedy = "leave a reward that is missing empty (null)"
            yield Finding("D17", f"rewards[{reward['name']}]", "is not finite", "every gradient would be NaN", remedy)


RULES: tuple[Rule, ...] = (_prompt_turns, _count, _texts, _identical, _bytes, _labels, _ranks, _scales)


def _named_responses(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Responses with the names that people know them by."""
    texts = row["responses"] or []
    if len(texts) == 2 and row["ranks"] == [1, 2]:
        return list(zip(("chosen", "rejected"), texts, strict=True))
    return [(f"responses[{place}]", text) for place, text in enumerate(texts)]


def _plain_text(row: Mapping[str, Any], chat: ChatFormat) -> Iterator[Finding]:
    try:
        tokens = len(chat.encode_text(row["responses"][0]))
    except DataError as error:
        yield Finding("D22", "responses[0]", error.what, error.effect, error.remedy)
        return
    if tokens < 2:
        effect = "the first token, which nothing comes before, is not learned"
        yield Finding("D05", "responses[0]", "plain text of one token", effect, "drop the row")


def _check_tokens(
    groups: Groups, fine: list[int], chat: ChatFormat, max_prompt: int | None, max_response: int | None
) -> list[Problem]:
    from alignkit.data.chat import DOUBLE_BOS, FOLDED, SHORTENED

    before = Counter(chat.notes)
    chosen = groups if len(fine) == len(groups) else groups.select(fine)
    no_limit = 2**62
    _, found = encode_groups(
        chosen,
        chat,
        max_prompt_tokens=no_limit if max_prompt is None else max_prompt,
        max_response_tokens=no_limit if max_response is None else max_response,
    )
    problems = [Problem(**{**vars(p), "row": fine[p.row]}) for p in found if p.row is not None]
    for code, note in (("D09", DOUBLE_BOS), ("D11", FOLDED), ("D05", SHORTENED)):
        count = chat.notes[note] - before[note]
        if count:
            problems.append(Problem(code, None, "", "prompt", f"{note} ({count} times)", note=True))
    for index, row in zip(fine, chosen, strict=True):
        texts = [turn["content"] for turn in row["prompt"]] + row["responses"]
        tokens = sorted({token for text in texts for token in chat.control_text(text)})
        if tokens:
            effect = "they stay text, and never become control tokens"
            problems.append(Problem("D08", index, row["prompt_id"], "text", f"holds {tokens}", effect, note=True))
        for place, text in enumerate(row["responses"]):
            if not text.isascii() and chat.decode(chat.encode_response(text, ended=False)).strip() != text.strip():
                what, effect = "comes back from its tokens as another text", "the model learns that one"
                problems.append(Problem("D25", index, row["prompt_id"], f"responses[{place}]", what, effect, note=True))
    return problems
