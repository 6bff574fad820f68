"""What a format of data files is: the columns it has, an example, and how a row of it becomes rows of `Groups`.

A file is recognised by the whole shape of its rows: of the formats whose columns are all there, the one that
understands most of a row. What it does not understand is put aside into `meta`, unless it could carry meaning: then it
is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alignkit.data.messages import BadRow, nothing

Parts = dict[str, Any]
"""The columns of a row that say something, by the first of the names that the format's declaration gives to each; under
"*" those that it does not declare, by their own names."""

COMMON = ("dimension", "tags", "iteration", "meta")
"""Columns that a row of any format may have."""


class Reading(NamedTuple):
    """A row of `Groups` in the making.

    Args:
        kind: what it can be used as.
        row: columns of `Groups`; `meta` is a dict.
        raw_ranks: ranks as they stood in the file, of a base yet unknown.
        note: what is worth knowing of how it was read.
    """

    kind: str
    row: dict[str, Any]
    raw_ranks: list[int] | None = None
    note: str = ""


Located = tuple[str, dict[str, Any]]
"""(where a row stands, the row)."""


@dataclass(frozen=True)
class RowFormat:
    """A format of data files.

    Args:
        name: what it is called: letters, digits, underscores.
        doc: whose form it is, and what its rows become, in one line.
        needs: the columns that all its rows have; "prompt|question": either, the first that is there.
        read: from the columns of a row that say something, by the first names of `needs` and `may`, to what they
            become.
        example: a row.
        may: columns that it understands where they are there.
        aside: columns that it knows to be no part of what is learned; a * at an end of it stands for anything.
        gather: makes whole rows of rows that only mean something together, such as the messages of a tree.
    """

    name: str
    doc: str
    needs: tuple[str, ...]
    read: Callable[[Parts], Reading | list[Reading]]
    example: Mapping[str, Any]
    may: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    gather: Callable[[list[Located]], Iterator[Located]] | None = field(default=None, repr=False)

    def __call__(self, row: Mapping[str, Any]) -> list[Reading]:
        """What a row becomes; the columns that it leaves aside are in `meta`.

        Args:
            row: as it stands in the file.

        Raises:
            BadRow: what is wrong with it.
        """
        names = self.names(row)
        for need in self.needs:
            if first_name(need) not in names:
                there = [name for name in need.split("|") if name in map(plain, row)]
                what = "is missing" if there else "is not there"
                raise BadRow(
                    "D21", (there or need.split("|"))[0], what, "the row says too little", "complete or drop it"
                )
        self._refuse_others(row, names)
        try:
            others = {
                name: row[name] for name in row if name not in {*names.values(), *COMMON} and not nothing(row[name])
            }
            found = self.read({**{known: row[name] for known, name in names.items()}, "*": others})
        except BadRow as bad:
            raise _in_file_words(bad, names) from None
        readings = found if isinstance(found, list) else [found]
        whole = []
        for one in readings:
            own = {name: value for name, value in one.row.items() if name != "meta"}
            if one.raw_ranks is not None:
                # What this row alone tells; whoever reads the whole file knows better.
                own["ranks"] = [rank + (0 in one.raw_ranks) for rank in one.raw_ranks]
            whole.append(one._replace(row={**_common(row, names.values(), one), **own}))
        return whole

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for listings."""
        lists = {name: list(getattr(self, name)) for name in ("needs", "may", "aside")}
        return {"name": self.name, "doc": self.doc, **lists, "example": jsonable(self.example)}

    def names(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The column of the row for each of the format's, of those that say something."""
        there = {plain(name): name for name, value in row.items() if isinstance(name, str) and value is not None}
        found: dict[str, str] = {}
        for need in (*self.needs, *self.may):
            options = [name for name in need.split("|") if name in there]
            full = [name for name in options if not nothing(row[there[name]])]
            # What is needed and empty is a fault of the row, which is told by what it is; what may be is not there.
            chosen = full or (options if need in self.needs else [])
            if chosen:
                found[first_name(need)] = there.pop(chosen[0])
        return found

    def fits(self, row: Mapping[str, Any], strict: bool = True) -> int:
        """How many columns of a row it understands, or 0 where one that it needs is not there.

        Args:
            row: as it stands in the file.
            strict: a column that says nothing is not there.
        """
        names = self.names(row)
        if strict and any(first_name(need) not in names for need in self.needs):
            return 0
        keys = {plain(name) for name in row if isinstance(name, str)}
        if not all(set(need.split("|")) & keys for need in self.needs):
            return 0
        return max(1, len(names))

    def _refuse_others(self, row: Mapping[str, Any], names: Mapping[str, str]) -> None:
        used = {*names.values(), *COMMON}
        others = [name for name, value in row.items() if name not in used and not nothing(value)]
        meant = [name for name in others if says_more(name) and not self.leaves_aside(name)]
        if not meant:
            return
        guessed = {GUESSES[plain(name)]: name for name in meant if plain(name) in GUESSES}
        mapping = f"columns={guessed} if that is what it is, or " if guessed else ""
        raise BadRow(
            "D21",
            str(meant[0]),
            f"could carry meaning, and the format {self.name} does not read it",
            "it would not be learned from",
            f"{mapping}columns={{'meta': {sorted(map(str, meant))}}} to put it aside (rewards read it there); "
            "alignkit formats lists what is read",
        )

    def leaves_aside(self, name: str) -> bool:
        """Whether the format knows a column to be no part of what is learned; another name of a column that it reads
        never is."""
        known = plain(name)
        if any(known in need.split("|") for need in (*self.needs, *self.may)):
            return False
        return any(_matches(own, known) for own in self.aside)


def _matches(own: str, name: str) -> bool:
    if own.startswith("*"):
        return name.endswith(own[1:])
    return name.startswith(own[:-1]) if own.endswith("*") else name == own


def plain(name: Any) -> str:
    """A column's name as names are compared: case, dashes and spaces make no difference."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def first_name(need: str) -> str:
    """What a need is called: the first of its alternatives."""
    return need.partition("|")[0]


GUESSES = {
    **dict.fromkeys(("question", "query", "instruction", "input", "problem", "ask", "user"), "prompt"),
    **dict.fromkeys(
        ("answer", "output", "response", "completion", "solution", "target", "reply", "assistant"), "completion"
    ),
    **dict.fromkeys(("winner", "better", "preferred", "accepted", "positive"), "chosen"),
    **dict.fromkeys(("loser", "worse", "dispreferred", "negative"), "rejected"),
    **dict.fromkeys(("instructions", "context", "persona"), "system"),
    **dict.fromkeys(("is_correct", "correct", "helpful", "harmless", "good", "quality_label", "toxic"), "label"),
    **dict.fromkeys(("dialog", "dialogue", "chat", "turns"), "messages"),
}
"""What a column of another name may well be."""

_MEANT = frozenset({
    "system", "weight", "weights", "loss", "safe", "unsafe", "tool", "tools", "functions", "function", "image",
    "images", "video", "videos", "audio", "audios", "reasoning", "thinking", "thought", "thoughts", "rejected",
    "chosen", "preferred", "tie", "label", "labels", "rating", "ratings", "rank", "ranks", "score", "scores",
    "reward", "rewards", "history", "instruction", "input", "question", "query", "prompt", "context", "message",
    "messages", "conversation", "conversations", "response", "responses", "answer", "answers", "completion",
    "completions", "output", "outputs", "winner", "loser", "better", "safer", "worse", "preference", "margin",
    "toxic", "harmful", "harmless", "helpful", "helpfulness", "correct", "correctness", "quality", "vote", "votes",
    "verdict", "judgement", "judgment", "feedback", "critique", "segments", "positive", "negative", "role", "roles",
    # of what stands before an answer
    "sys", "persona", "instructions", "inputs", "contexts", "document", "documents", "passage", "passages", "article",
    "knowledge", "evidence", "prefix", "suffix",
    # of answers, thoughts included
    "generation", "generations", "generated", "candidate", "candidates", "samples", "reply", "replies", "choice",
    "choices", "summary", "summaries", "continuation", "corrected", "correction", "revised", "rewritten", "cot",
    "rationale", "rationales", "explanation", "explanations",
    # of which answer is better, or whether one is good
    "tied", "ties", "best", "worst", "preferences", "confidence", "agreement", "good", "bad", "grade", "grades",
    "stars", "upvotes", "downvotes", "thumbs", "passed", "success", "successful", "verified", "deleted", "discarded",
    "flagged", "refusal", "refused", "toxicity", "harm", "harms", "severity", "safety", "hallucination",
    # of what counts
    "mask", "masks", "masked", "importance",
})  # fmt: skip
_MEDIA = frozenset({
    "image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "pixel", "pixels", "video", "videos",
    "audio", "audios",
})  # fmt: skip
"""Of a row with these, part is no text, however the column says it (image_url, video_path, audio_id)."""

_WHETHER = frozenset({"train", "training", "trainable", "trained", "is_train", "train_on", "learn", "learned"})
"""Whole names; within others such words tell of splits (in_train, train_id)."""

_MEASURES = frozenset({
    "num", "number", "n", "count", "length", "len", "tokens", "index", "idx", "id", "hash", "sha",
})  # fmt: skip
_OF_WHICH = frozenset({"chosen", "rejected"})
_BESIDE = frozenset({
    "id", "ids", "idx", "index", "hash", "sha", "uuid", "model", "models", "source", "sources", "type", "types",
    "count", "counts", "num", "number", "length", "len", "tokens", "time", "timestamp", "date", "url", "uri", "link",
    "lang", "language", "version", "name", "names", "category", "topic", "domain", "dataset", "author", "license",
    "annotator", "split", "user", "kind", "root", "file", "path", "tag", "tags", "metadata",
})  # fmt: skip


def says_more(name: Any) -> bool:
    """Whether a column nobody has declared could carry something that is to be learned, by the words of its name."""
    words = {*_words(name)}
    if words & _MEDIA or plain(name) in _WHETHER:
        return True
    return bool(words & _MEANT) and not beside(name)


def beside(name: Any) -> bool:
    """Whether a column tells of the row what no model reads (id, source, model …), by the words of its name.

    The last word says what it is (`label_source` is a source, `model_output` an output), or the first where that is a
    measure (`num_responses`); which answer of a pair it is of does not count (`model_chosen`).
    """
    words = [word for word in _words(name) if len(word) > 1]
    while len(words) > 1 and words[-1] in _OF_WHICH:
        words.pop()
    return bool(words) and (words[-1] in _BESIDE or words[0] in _MEASURES)


def _words(name: Any) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", str(name)).lower())


def _in_file_words(bad: BadRow, names: Mapping[str, str]) -> BadRow:
    """The same, with the column called as the file calls it."""
    code, where, what, effect, remedy, _ = bad.finding
    head = re.match(r"\w*", where)[0]  # type: ignore[index]
    return BadRow(code, names.get(head, head) + where[len(head) :], what, effect, remedy)


def _common(row: Mapping[str, Any], used: Iterable[str], reading: Reading) -> dict[str, Any]:
    """The columns that any row may have; what nobody asked for goes into `meta`."""
    out: dict[str, Any] = {}
    known = {*used, "meta"}
    tags = row.get("tags")
    for name, right in (
        ("dimension", isinstance(row.get("dimension"), str)),
        ("tags", isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)),
        ("iteration", isinstance(row.get("iteration"), int) and not isinstance(row["iteration"], bool)),
    ):
        if right:
            out[name] = row[name]
            known.add(name)
    given = row.get("meta")
    meta = dict(given) if isinstance(given, Mapping) else {} if given is None else {"meta": given}
    meta |= {name: value for name, value in row.items() if name not in known and value is not None}
    meta |= reading.row.get("meta") or {}
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


def recognised(row: Mapping[str, Any], formats: Iterable[RowFormat]) -> RowFormat | None:
    """The format that understands most of a row, or None where none has all that it needs.

    Of two that understand as much, the one that needs more is meant, then the one that comes first.
    """
    known = list(formats)
    for strict in (True, False):
        ranked = [(one.fits(row, strict), len(one.needs), -place) for place, one in enumerate(known)]
        best = max(ranked, default=(0, 0, 0))
        if best[0]:
            return known[-best[2]]
    return None
