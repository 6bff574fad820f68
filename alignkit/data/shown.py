"""What data hold, shown before anything is learned from them: counts, lengths, a row as the model reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.data.encode import EncodedGroup, encode_groups, encode_texts, is_plain_text
from alignkit.data.problems import Problem
from alignkit.errors import DataError
from alignkit.groups import Groups

if TYPE_CHECKING:
    from alignkit.data.chat import ChatFormat

LEARNED = ("⟦", "⟧")
"""What stands around the tokens that are learned from."""

SAMPLE = 1000
"""Rows of which lengths are measured, spread over the whole."""

SHOWN = 1200
"""Characters of the row that is shown, from its beginning and its end."""

NO_LIMIT = 2**62


@dataclass(frozen=True)
class Overview:
    """What a data set holds.

    Args:
        rows: how many.
        responses: of all rows.
        kinds: how many rows can be used as what.
        dimensions: how many rows are of which.
        lengths: name -> (least, median, most), in `unit`.
        unit: "tokens", or "characters" where no tokenizer is at hand.
        measured: of how many rows the lengths are.
        example: (what it is, the text) of the parts of a row, the learned tokens marked.
        problems: all of them.
    """

    rows: int
    responses: int
    kinds: Mapping[str, int]
    dimensions: Mapping[str, int]
    lengths: Mapping[str, tuple[int, float, int]]
    unit: str
    measured: int
    example: Sequence[tuple[str, str]]
    problems: Sequence[Problem] = field(default=())

    def lines(self) -> list[str]:
        """The overview as text, without the problems."""
        counted = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items()) or "nothing"
        out = [f"rows       {self.rows} ({counted}; {self.responses} responses)"]
        if self.dimensions:
            out.append("dimension  " + ", ".join(f"{name} {count}" for name, count in self.dimensions.items()))
        some = f" of {self.measured} rows" if self.measured < self.rows else ""
        spans = (f"{name} {low} to {high}, median {mid:g}" for name, (low, mid, high) in self.lengths.items())
        if self.lengths:
            out.append(f"lengths    {'; '.join(spans)} {self.unit}{some}")
        if self.example:
            seen = "as the model reads it" if self.unit == "tokens" else "as text"
            out.append(f"a row      {seen}; {LEARNED[0]}…{LEARNED[1]} is learned from")
            out += [f"  {name}: {text}" for name, text in self.example]
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        own = ("rows", "responses", "unit", "measured")
        return {
            **{name: getattr(self, name) for name in own},
            "kinds": dict(self.kinds),
            "dimensions": dict(self.dimensions),
            "lengths": {
                name: dict(zip(("least", "median", "most"), v, strict=True)) for name, v in self.lengths.items()
            },
            "example": [{"part": name, "text": text} for name, text in self.example],
            "problems": [{**vars(problem), "code": f"AK-{problem.code}"} for problem in self.problems],
        }


def overview(
    groups: Groups,
    chat: ChatFormat | None = None,
    *,
    kinds: Sequence[str] = (),
    problems: Sequence[Problem] = (),
    train: Any = "last",
    max_prompt_tokens: int = NO_LIMIT,
    max_response_tokens: int = NO_LIMIT,
) -> Overview:
    """What groups hold.

    Args:
        groups: the rows.
        chat: tokenizer and template; without, lengths are in characters and the row is shown as text.
        kinds: what each row can be used as; by default as its columns say.
        problems: what is wrong with them.
        train: which answers of a prompt are learned from, see `ChatFormat.encode_conversation`.
        max_prompt_tokens, max_response_tokens: of whoever reads the rows next, who then finds the prompts remembered.
    """
    read = _Way(train, max_prompt_tokens, max_response_tokens)
    named = Counter(kinds or map(kind_of, groups))
    dimensions = Counter(name for name in groups.column("dimension") if name is not None)
    step = max(1, len(groups) // SAMPLE)
    part = groups if step == 1 else groups.select(range(0, len(groups), step))
    lengths = _in_tokens(part, chat, read) if chat is not None else _in_characters(part)
    bad = {p.row for p in problems if not p.note and p.row is not None}
    first = next((i for i in range(len(groups)) if i not in bad), None)
    example = [] if first is None else _example(groups.select([first]), chat, read)
    unit = "characters" if chat is None else "tokens"
    spans = {name: (min(found), median(found), max(found)) for name, found in lengths.items() if found}
    return Overview(
        len(groups), groups.num_responses, dict(named.most_common()), dict(dimensions.most_common()), spans, unit,
        len(part), example, tuple(problems),
    )  # fmt: skip


class _Way(NamedTuple):
    """How rows are encoded, see `encode_groups`."""

    train: Any
    max_prompt_tokens: int
    max_response_tokens: int

    def encoded(self, groups: Groups, chat: ChatFormat) -> tuple[list[EncodedGroup], list[Problem]]:
        """The groups that can be, and why the others cannot."""
        return encode_groups(groups, chat, **self._asdict())


def kind_of(row: Mapping[str, Any]) -> str:
    """What a row can be used as, by what is known of its responses."""
    count = len(row["responses"] or [])
    if row["ranks"] is not None and count > 1:
        return "comparisons" if count == 2 else "rankings"
    if row["labels"] is not None and None not in row["labels"]:
        return "unpaired"
    if not count:
        return "prompts"
    return "rated" if row["rewards"] else "demonstrations" if count == 1 else "unranked"


def _in_characters(groups: Groups) -> dict[str, list[int]]:
    prompts = [sum(len(turn["content"] or "") for turn in prompt or []) for (prompt,) in groups.each("prompt")]
    texts = [len(text or "") for (responses,) in groups.each("responses") for text in responses]
    return {"prompts": prompts, "responses": texts}


def _in_tokens(groups: Groups, chat: ChatFormat, read: _Way) -> dict[str, list[int]]:
    plain = [i for i, row in enumerate(groups) if is_plain_text(row)]
    others = [i for i in range(len(groups)) if i not in set(plain)]
    found: dict[str, list[int]] = {"prompts": [], "responses": [], "texts": []}
    if others:
        encoded, _ = read.encoded(groups.select(others), chat)
        found["prompts"] = [len(group.prompt_ids) for group in encoded]
        found["responses"] = [len(ids) for group in encoded for ids in group.responses]
    for i in plain:
        try:
            found["texts"].append(len(chat.encode_text(groups[i]["responses"][0])))
        except DataError:  # it is among the problems
            continue
    return found


def _example(one: Groups, chat: ChatFormat | None, read: _Way) -> list[tuple[str, str]]:
    row = one[0]
    names = _names(row)
    learned = bool(row["responses"])
    if chat is None:
        turns = "\n".join(f"[{turn['role']}] {turn['content']}{_fields(turn)}" for turn in row["prompt"] or [])
        texts = [f"{LEARNED[0]}{_cut(text)}{LEARNED[1]}" for text in row["responses"]]
        return (
            [("prompt", _cut(turns)), *zip(names, texts, strict=True)]
            if turns
            else list(zip(names, texts, strict=True))
        )
    if is_plain_text(row):
        pieces = encode_texts(one, chat, 2**31)
        shown = [
            _marked(chat, [*g.prompt_ids, *g.responses[0]], [False] + [True] * len(g.responses[0])) for g in pieces
        ]
        return list(zip(names, shown, strict=False))
    encoded, problems = read.encoded(one, chat)
    if not encoded:
        return [("refused", str(problems[0]))]
    group = encoded[0]
    prompt = _marked(chat, group.prompt_ids, group.prompt_trained or [False] * len(group.prompt_ids))
    answers = [_marked(chat, ids, [learned] * len(ids)) for ids in group.responses]
    return [("prompt", prompt), *zip(names, answers, strict=True)]


def _fields(turn: Mapping[str, Any]) -> str:
    return f" {turn['fields']}" if turn.get("fields") else ""


def _names(row: Mapping[str, Any]) -> list[str]:
    """What the responses of a row are to be called."""
    if row["ranks"] == [1, 2]:
        return ["chosen", "rejected"]
    said = [f"rank {rank}" for rank in row["ranks"]] if row["ranks"] else [""] * len(row["responses"])
    if row["labels"] is not None:
        labels = [f"label {str(label).lower()}" for label in row["labels"]]
        said = [" ".join(filter(None, both)) for both in zip(said, labels, strict=True)]
    return [f"response ({own})" if own else "response" for own in said]


def _marked(chat: ChatFormat, ids: Sequence[int], learned: Sequence[bool]) -> str:
    """The text of ids, special tokens and all, with marks around what is learned."""
    parts: list[str] = []
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or learned[place] != learned[start]:
            run = [int(i) for i in ids[start:place]]
            text = chat.tokenizer.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            parts.append(f"{LEARNED[0]}{text}{LEARNED[1]}" if learned[start] else text)
            start = place
    return _cut("".join(parts))


def _cut(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN // 2]} … ({len(text) - SHOWN} characters left out) … {text[-SHOWN // 2 :]}"


def counted(problems: Sequence[Problem]) -> list[tuple[str, int, Problem]]:
    """(code, how many, the first) of each kind of problem, errors first."""
    first: dict[tuple[bool, str], Problem] = {}
    counts: Counter[tuple[bool, str]] = Counter()
    for problem in problems:
        key = (problem.note, problem.code)
        counts[key] += 1
        first.setdefault(key, problem)
    return [(key[1], counts[key], first[key]) for key in sorted(first)]
