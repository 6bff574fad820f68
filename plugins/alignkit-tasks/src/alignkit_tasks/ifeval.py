"""IFEval's 25 kinds of instruction that a program can verify (Zhou et al. 2023, arXiv 2311.07911), and their reward.

Written from the paper's table 1 and the arguments in its data. Two checks differ in their means: sentences and words
are split by rule here (the authors use NLTK's trained splitter), and the language is told by script and by common words
(they use langdetect, which draws at random). A kind or an argument that is not known gives no score.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from alignkit_tasks.verifiable import Missing, Verified

Check = Callable[..., bool]


def related(count: int, relation: str, threshold: int) -> bool:
    """`count` "at least" or "less than" `threshold`, the two relations there are.

    Raises:
        Missing: another relation.
    """
    if relation not in ("at least", "less than"):
        raise Missing(f"the relation {relation!r} is not known")
    return count >= threshold if relation == "at least" else count < threshold


# -- texts -------------------------------------------------------------------------------------------------------------

# A dot that ends no sentence: after a title or an initial, after an abbreviation in mid-sentence, after a list number.
_NO_END = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|[A-Z])\.(?=\s)|\b(?:etc|e\.g|i\.e|Inc|Jr|Sr)\.(?=\s+[a-z0-9])|^\s*\d+\.(?=\s)",
    re.MULTILINE,
)


def sentences(text: str) -> int:
    """How many sentences: runs that end in . ! or ? before a space or the end, and lines without such an end."""
    parts = re.split(r"[.!?]+[\"')\]]*(?:\s+|$)|\n+", _NO_END.sub(" ", text))
    return sum(bool(re.search(r"\w", part)) for part in parts)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _parts(text: str, divider: str) -> list[str] | None:
    """What stands between dividers; None where a part inside is empty. Empty ends do not count."""
    found = [part.strip() for part in re.split(divider, text)]
    inside = found[1:-1]
    return None if not all(inside) else [part for part in found if part]


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = [part for part in re.split(r"\n\n", text) if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    first = paragraphs[nth_paragraph - 1].split()[0].lower().lstrip("'\"")
    return re.split(r"[.,?!'\"]", first)[0] == first_word.lower()


def _is_json(text: str) -> bool:
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(bare)
    except ValueError:
        return False
    return True


def _highlights(text: str) -> int:
    single = [found for found in re.findall(r"\*[^\n*]*\*", text) if found.strip("*").strip()]
    double = [found for found in re.findall(r"\*\*[^\n*]*\*\*", text) if found.strip("*").strip()]
    return len(single) + len(double)


def _postscript(text: str, marker: str) -> bool:
    letters = [re.escape(letter) for letter in re.sub(r"[.\s]", "", marker.lower())]
    pattern = r"\.\s?".join(letters) + r"\b" if "." in marker else re.escape(marker.lower())
    return bool(re.search(pattern, text.lower()))


def _capital_words(text: str) -> int:
    return sum(word.isupper() for word in re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", text))


def _two_responses(text: str) -> bool:
    parts = _parts(text, re.escape("******"))
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


# -- languages ---------------------------------------------------------------------------------------------------------

_SCRIPTS = {
    "LATIN": "en de fr es it pt nl fi sw vi sv pl tr id", "CYRILLIC": "ru bg uk", "DEVANAGARI": "hi mr ne",
    "ARABIC": "ar fa ur", "HANGUL": "ko", "KANNADA": "kn", "TELUGU": "te", "TAMIL": "ta", "THAI": "th",
    "GUJARATI": "gu", "BENGALI": "bn", "GURMUKHI": "pa", "MALAYALAM": "ml", "GREEK": "el", "HEBREW": "he",
    "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh ja",
}  # fmt: skip
_COMMON = {
    "en": "the and of to is in that it for you with are this as be on not have was from your by an at we",
    "de": "der die das und ist nicht ich ein eine zu den mit auf für von dem sich auch es im wir sie wie",
    "fr": "le la les et des est une dans pour que qui pas sur avec ce au du il je nous vous plus",
    "es": "el los las y es una por con para del se no su como más lo que en al está",
    "it": "il di che è un una per non con del della sono le gli ma si questo anche come nel alla",
    "pt": "o os as e é um uma para com não do da que se em por mais dos ao você seu",
    "nl": "het een en van ik je dat niet op te zijn met voor er maar om aan als ook",
    "fi": "ja on ei se että hän oli minä mutta kun niin tämä ovat myös joka voi kuin mitä sen olla",
    "sw": "na ya wa kwa ni katika za la kuwa hii cha yake kama hiyo ambayo pia watu yangu wake lakini",
    "vi": "và của là có không cho một được người với những các trong này đã khi như tôi bạn để",
    "sv": "och att det som är av för den med inte på ett till jag har de om vi",
    "pl": "i w nie na się to jest z do że co jak ale za od czy tak po dla",
    "tr": "ve bir bu için ile de da çok ne gibi daha ama var değil olan olarak",
    "id": "yang dan di ini itu dengan untuk tidak dari dalam akan pada juga ke ada",
    "ru": "и в не на что с как это по но из за он она они мы вы ты я от для",
    "bg": "и в на е се да от за с не че по като са но или към той това са ще",
    "uk": "і в не на що з як це та до за але від він вона ми ви я є для",
    "hi": "है के में की का और से को यह हैं पर एक नहीं भी था कि ने तो हो",
    "mr": "आहे आणि च्या या ते हे की आहेत होते नाही एक मी तो ती करा साठी",
    "ne": "छ र को मा हो छन् लाई यो पनि गर्न भएको एक तर थियो हुन्छ तपाईं",
    "ar": "في من على أن إلى هذا التي هذه ما لا كان عن مع هو هي و الذي",
    "fa": "و در به از که این را با است برای آن یک می های تا خود ما",
    "ur": "کے کی میں ہے اور سے کا کو یہ پر نے ہیں کہ ایک نہیں بھی تھا",
    "zh": "", "ja": "",
}  # fmt: skip


def in_language(text: str, code: str) -> bool:
    """Whether a text is in a language: four fifths of its letters in its script, and no other language that is written
    in it has more of its common words there. Without a common word of any, Latin letters count as English.

    Args:
        text: any; one without a letter is in no language.
        code: ISO 639-1.

    Raises:
        Missing: a language that is not known here.
    """
    scripts = [script for script, codes in _SCRIPTS.items() if code in codes.split()]
    if not scripts:
        raise Missing(f"the language {code!r} is not known")
    names = [unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha()]
    if not names or sum(name in scripts for name in names) < 0.8 * len(names):
        return False
    if code in ("ja", "zh"):
        return (code == "ja") == any(name in ("HIRAGANA", "KATAKANA") for name in names)
    seen = Counter(re.findall(r"[^\s\d.,;:!?()\"।،؟]+", text.lower()))
    rivals = _SCRIPTS[scripts[0]].split()
    common = {rival: sum(seen[word] for word in _COMMON.get(rival, "").split()) for rival in rivals}
    told = common[code] > 0 or code == "en" or len(rivals) == 1
    return told and common[code] == max(common.values())


# -- the 25 kinds ------------------------------------------------------------------------------------------------------

_YES_NO_MAYBE = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

CHECKS: dict[str, Check] = {
    "keywords:existence": lambda r, keywords: all(k.lower() in r.lower() for k in keywords),
    "keywords:frequency": lambda r, keyword, frequency, relation: related(
        r.lower().count(keyword.strip().lower()), relation, frequency
    ),
    "keywords:forbidden_words": lambda r, forbidden_words: (
        not any(re.search(rf"\b{re.escape(w)}\b", r, re.IGNORECASE) for w in forbidden_words)
    ),
    "keywords:letter_frequency": lambda r, letter, let_frequency, let_relation: related(
        r.lower().count(letter.lower()), let_relation, let_frequency
    ),
    "language:response_language": lambda r, language: in_language(r, language),
    "length_constraints:number_sentences": lambda r, num_sentences, relation: related(
        sentences(r), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": lambda r, num_paragraphs: (
        len(_parts(r, r"\s?\*\*\*\s?") or ()) == num_paragraphs
    ),
    "length_constraints:number_words": lambda r, num_words, relation: related(len(words(r)), relation, num_words),
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": lambda r, num_placeholders: (
        len(re.findall(r"\[.*?\]", r)) >= num_placeholders
    ),
    "detectable_content:postscript": lambda r, postscript_marker: _postscript(r, postscript_marker),
    "detectable_format:number_bullet_lists": lambda r, num_bullets: (
        len(re.findall(r"^\s*(?:\*[^*].*|-.*)$", r, re.MULTILINE)) == num_bullets
    ),
    "detectable_format:constrained_response": lambda r: any(option in r for option in _YES_NO_MAYBE),
    "detectable_format:number_highlighted_sections": lambda r, num_highlights: _highlights(r) >= num_highlights,
    "detectable_format:multiple_sections": lambda r, section_spliter, num_sections: (
        len(re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", r)) >= num_sections
    ),
    "detectable_format:json_format": _is_json,
    "detectable_format:title": lambda r: any(t.strip("<> ") for t in re.findall(r"<<[^\n]+>>", r)),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda r, prompt_to_repeat: (
        r.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "startend:end_checker": lambda r, end_phrase: r.strip().strip('"').lower().endswith(end_phrase.strip().lower()),
    "startend:quotation": lambda r: len(r.strip()) > 1 and r.strip()[0] == r.strip()[-1] == '"',
    "change_case:capital_word_frequency": lambda r, capital_frequency, capital_relation: related(
        _capital_words(r), capital_relation, capital_frequency
    ),
    "change_case:english_capital": lambda r: r.isupper() and in_language(r, "en"),
    "change_case:english_lowercase": lambda r: r.islower() and in_language(r, "en"),
    "punctuation:no_comma": lambda r: "," not in r,
}


_LISTS = ("keywords", "forbidden_words")
_COUNTS = ("frequency", "let_frequency", "capital_frequency", "num_", "nth_")


def _readable(name: str, value: Any) -> bool:
    """Whether an argument is of the type that its check takes: texts, a list of them, or a whole number."""
    if name in _LISTS:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)
    if name.startswith(_COUNTS):
        return isinstance(value, (int, float)) and value == int(value)
    return True


def follows(kind: str, arguments: Mapping[str, Any], response: str) -> bool:
    """Whether a response follows one instruction; an empty response follows none.

    Args:
        kind: of `CHECKS`.
        arguments: of the check; those that are None are left out, as the published file has them.
        response: the text.

    Raises:
        Missing: a kind, an argument or a relation that is not known.
    """
    if not isinstance(kind, str) or kind not in CHECKS:
        raise Missing(f"the instruction {kind!r} is not known")
    if not isinstance(arguments, Mapping):
        raise Missing(f"the arguments of {kind} are no mapping but {arguments!r}")
    given = {name: value for name, value in arguments.items() if value is not None}
    if unreadable := sorted(name for name, value in given.items() if not _readable(name, value)):
        raise Missing(f"{kind} with {given}: {', '.join(unreadable)} cannot be read")
    try:
        return bool(response.strip()) and CHECKS[kind](response, **given)
    except (TypeError, AttributeError) as error:
        raise Missing(f"{kind} with {given}: {error}") from error


def relaxed(response: str) -> list[str]:
    """The eight readings of the paper's loose accuracy: with and without first line, last line and asterisks."""
    lines = response.split("\n")
    cut = [lines[first : len(lines) - last] for first, last in product((0, 1), (0, 1))]
    texts = ["\n".join(part).strip() if part != lines else response for part in cut]
    return [reading for text in texts for reading in (text, text.replace("*", ""))]


@dataclass(frozen=True)
class IFEval(Verified):
    """The share of a row's instructions that a response follows, from `meta`'s `instruction_id_list` and `kwargs`.

    Args:
        name: of the column.
        every: 1 where all are followed, else 0 (the paper's prompt-level accuracy), in place of the share.
        loose: follow in any of the eight readings of `relaxed` (the paper's loose accuracy).
    """

    name: str = "ifeval"
    every: bool = False
    loose: bool = False

    def judge(self, meta: Mapping[str, Any], response: str) -> float:
        kinds, arguments = meta.get("instruction_id_list"), meta.get("kwargs")
        if not isinstance(kinds, list) or not isinstance(arguments, list) or not 0 < len(kinds) == len(arguments):
            raise Missing("the row has no instruction_id_list with as many kwargs in its meta")
        readings = relaxed(response) if self.loose else [response]
        asked = list(zip(kinds, arguments, strict=True))
        done = [any(follows(kind, {} if given is None else given, text) for text in readings) for kind, given in asked]
        return float(all(done)) if self.every else sum(done) / len(done)
