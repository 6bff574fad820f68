"""Verifiable rewards: a program compares the answer in a response with the one in the row's `meta`.

`gsm8k` compares numbers (Cobbe et al. 2021, arXiv 2110.14168, whose solutions end in "#### n"); `exact_answer` what
BIG-Bench Hard asks for (Suzgun et al. 2022, arXiv 2210.09261): option letters, words, numbers, lists in order. A
response is right (1) or wrong (0); a row without an answer gives no score, with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from alignkit.plugin import Groups, Reward, Scores, check_values, class_code


class Missing(ValueError):
    """Why a response cannot be scored."""


@dataclass(frozen=True)
class Verified(Reward):
    """A reward that a program works out from the row's `meta` and the response. Subclasses override `judge`.

    Args:
        name: of the column.
    """

    name: str = "verified"

    def __post_init__(self) -> None:
        check_values(self)

    def judge(self, meta: Mapping[str, Any], response: str) -> float:
        """The score.

        Raises:
            Missing: the row lacks what is needed; the score is then missing with this as its reason.
        """
        raise NotImplementedError

    def score(self, groups: Groups) -> Scores:
        scored = [[self._one(meta, r) for r in row["responses"]] for meta, row in _with_meta(groups)]
        return Scores([[value for value, _ in row] for row in scored], [[why for _, why in row] for row in scored])

    def _one(self, meta: Mapping[str, Any], response: str) -> tuple[float | None, str | None]:
        try:
            return self.judge(meta, response), None
        except Missing as why:
            return None, str(why)

    def key(self) -> Any:
        return {**vars(self), **class_code(type(self))}


def _with_meta(groups: Groups) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(json.loads(row["meta"]) if row["meta"] else {}, row) for row in groups]


def answer_of(meta: Mapping[str, Any]) -> str:
    """The answer that a row carries.

    Raises:
        Missing: it carries none.
    """
    if meta.get("answer") in (None, ""):
        raise Missing("the row has no answer in its meta")
    return str(meta["answer"]).strip()


# -- numbers -----------------------------------------------------------------------------------------------------------

# A sign belongs to the number unless it stands between two (3-4, 10 - 2); commas may part groups of three digits.
_NUMBER = re.compile(r"(?<![\w.])(?:(?<!\d )[-+])?[$€£]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_CUE = re.compile(r"\banswer(?:\s+is|\s*:|\s*=)[\s:*$]*|\\boxed\{", re.IGNORECASE)


def numbers_in(text: str) -> list[Decimal]:
    """Every number of a text in order: `-3`, `$1,234.50`, `.5`; the `-` of `10-2` is no sign."""
    plain = text.replace("\N{MINUS SIGN}", "-").replace("*", " ").replace("$-", "-$")
    return [Decimal(re.sub(r"[,$€£+]", "", match.group())) for match in _NUMBER.finditer(plain)]


def final_number(text: str) -> Decimal | None:
    """The number that a solution ends in: after the last `####`, else after the last "answer is", else the last one.

    Where the words after the cue are a calculation (`answer is 3 + 4 = 7`), what follows the `=` counts.
    """
    marked = text.rpartition("####")
    if marked[1]:
        return next(iter(numbers_in(marked[2].split("\n")[0])), None)
    cues = list(_CUE.finditer(text))
    if cues:
        rest = re.split(r"\n|\.(?!\d)", text[cues[-1].end() :])[0]
        said = numbers_in(rest.rpartition("=")[2])
        if said:
            return said[0]
    return next(iter(reversed(numbers_in(text))), None)


@dataclass(frozen=True)
class GSM8K(Verified):
    """1 where the response ends in the number that `meta["answer"]` ends in, else 0.

    Args:
        name: of the column.
    """

    name: str = "gsm8k"

    def judge(self, meta: Mapping[str, Any], response: str) -> float:
        wanted = final_number(answer_of(meta))
        if wanted is None:
            raise Missing("the answer of the row holds no number")
        return float(final_number(response) == wanted)


# -- other answers -----------------------------------------------------------------------------------------------------

_LETTER = re.compile(r"\(([A-Za-z])\)")
_LEADING_LETTER = re.compile(r"\W*(?:[Oo]ption\s+)?\(?([A-Z])(?:[).:,]|\s*$|\s*\n)")
_NEXT_LETTER = re.compile(
    r"[\s,;:/&|).]*(?:\b(?:and|or)\b\s*)?(?:\(([A-Za-z])\)|([A-Z])(?=[).:,;/?]|\s*$|\s*\n|\s+(?:and|or)\b))"
)
_WORDS = ({"true", "false"}, {"yes", "no"}, {"valid", "invalid"})


def said_after_cue(text: str) -> str:
    """What follows the last "answer is" of a text; all of it where there is none."""
    cues = list(_CUE.finditer(text))
    return text[cues[-1].end() :].strip() if cues else text.strip()


def chosen_option(text: str, options: Mapping[str, str] | None = None) -> str | None:
    """The option letter that a response settles on, or None where it names none or lists several.

    Args:
        text: the response.
        options: letter -> wording, where known: repeating one wording alone counts as choosing it.
    """
    said = said_after_cue(text)
    leading = _LEADING_LETTER.match(said)
    if leading:
        wording = re.escape((options or {}).get(leading[1], ""))
        rest = re.sub(rf"^[\s).:,]*{wording}", "", said[leading.end(1) :], count=1, flags=re.IGNORECASE)
        further = _NEXT_LETTER.match(rest)
        several = further is not None and (further[1] or further[2]).upper() != leading[1]
        return None if several else leading[1]
    letters = {letter.upper() for letter in _LETTER.findall(said)}
    if len(letters) == 1:
        return letters.pop()
    named = {letter for letter, wording in (options or {}).items() if squeezed(wording) == squeezed(said)}
    return named.pop() if len(named) == 1 and not letters else None


def chosen_word(text: str, words: set[str]) -> str | None:
    """The one of `words` that a response begins with, or else the only one that it names; "not valid" names none."""
    either = "|".join(sorted(words))
    plain = re.sub(r"n['\N{RIGHT SINGLE QUOTATION MARK}]t\b", " not", said_after_cue(text).lower())
    negations = "|".join(sorted({"not", "never", "no"} - words))
    plain = re.sub(rf"\b(?:{negations})(?:\s+[a-z]+){{0,2}}?\s+(?:{either})\b", " ", plain)
    if re.match(rf"\W*(?:{either})(?:\W+(?:and|or)\W+(?:{either})\b|\W+(?:{either})\W*$)", plain):
        return None
    said = re.findall(r"[a-z]+", plain)
    if said[:1] and said[0] in words:
        return said[0]
    named = words & set(said)
    return named.pop() if len(named) == 1 else None


def squeezed(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return re.sub(r"[\W_]+", "", text.lower())


def _bare(text: str) -> str:
    return "".join(text.split())


def listed(text: str) -> list[str]:
    """The items of a list written with spaces, commas, bullets or numbers."""
    bare = re.sub(r"^\s*(?:\d+[.)]|[-*•])\s", " ", text.lower(), flags=re.MULTILINE)
    return re.sub(r"[*\"'`.,;]", " ", bare).split()


def same_answer(answer: str, response: str, options: Mapping[str, str] | None = None) -> bool:
    """Whether a response gives this answer: an option `(B)`, True or Yes, a number, words in order, or any text."""
    letter = re.fullmatch(r"\(([A-Z])\)", answer)
    if letter:
        return chosen_option(response, options) == letter[1]
    words = next((kind for kind in _WORDS if answer.lower() in kind), None)
    if words:
        return chosen_word(response, words) == answer.lower()
    if re.fullmatch(r"-?\d+(\.\d+)?", answer):
        return final_number(response) == Decimal(answer)
    said = said_after_cue(response)
    given = (said, said.rpartition(":")[2])
    if not squeezed(answer):  # brackets alone: their letters and digits are none, as those of any other such text
        return any(_bare(text) in (_bare(answer), _bare(answer) + ".") for text in given)
    return any(squeezed(text) == squeezed(answer) or listed(text) == listed(answer) for text in given)


def options_of(meta: Mapping[str, Any]) -> Mapping[str, str] | None:
    """The wordings of the options that a row carries, by letter.

    Raises:
        Missing: they are no such mapping.
    """
    options = meta.get("options")
    if options is None or (isinstance(options, Mapping) and all(isinstance(w, str) for w in options.values())):
        return options
    raise Missing("the options in the row's meta are no mapping of letters to wordings")


@dataclass(frozen=True)
class ExactAnswer(Verified):
    """1 where the response gives `meta["answer"]`, else 0.

    Args:
        name: of the column.
        task: score the rows of this `meta["task"]` alone; None: all.
    """

    name: str = "exact_answer"
    task: str | None = None

    def judge(self, meta: Mapping[str, Any], response: str) -> float:
        if self.task is not None and meta.get("task") != self.task:
            raise Missing(f"a row of another task than {self.task}")
        return float(same_answer(answer_of(meta), response, options_of(meta)))
