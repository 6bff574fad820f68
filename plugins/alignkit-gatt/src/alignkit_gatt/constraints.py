"""What a dialogue is asked to hold to: constraints from a file, combined at random; and whether a reply obeys them.

Llama 2 (arXiv 2307.09288, section 3.3) drew from hobbies, languages and public figures, and combined them at random.
Here the list is data: `constraints.json`, or any file of the same form. A constraint may carry a `check`, with which a
program judges a single reply; what no program can judge (a hobby, a persona) has none.

IFEval's 25 kinds come from alignkit-tasks; `CHECKS` adds what IFEval does not have, such as how a reply begins. (The
library `if-verifiable` 0.1.2 was looked at: IFEval's kinds too, but it tells case and language by `langdetect`, which
guesses on texts this short, and its sentence count needs NLTK data from the network.)
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from alignkit_tasks import ifeval

from alignkit.plugin import DataError, Groups, occurrences, stream_key

UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, re.error)
"""What a check that lacks an argument, or has an unfit one, ends in."""

SHIPPED = Path(__file__).with_name("constraints.json")


@dataclass(frozen=True)
class Constraint:
    """One thing to hold to.

    Args:
        kind: of two constraints of one kind a dialogue gets one at most.
        instruction: its wording.
        short: its less verbose wording.
        check: how a program judges a reply (`type` and arguments), or None where none can.
    """

    kind: str
    instruction: str
    short: str
    check: Mapping[str, Any] | None


# -- the file ----------------------------------------------------------------------------------------------------------


@cache
def read_constraints(path: str | None = None) -> tuple[Constraint, ...]:
    """The constraints of a file.

    Args:
        path: a JSON object whose `instructions` are a list of `{"instruction", "kind", "short", "check", "values"}`.
            All but the first may be left out: one kind for all, the wording itself, no check, no values. Each of
            `values` makes a constraint of its own, in place of `{value}`. None: the shipped file.

    Raises:
        DataError: a file that cannot be read, or an entry at fault, with its place.
    """
    source = Path(path) if path else SHIPPED
    try:
        entries = json.loads(source.read_text(encoding="utf-8"))["instructions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = 'write {"instructions": [{"instruction": "…", "check": {…}}, …]}'
        raise DataError(f"no constraints can be read ({error!r})", where=str(source), remedy=remedy) from error
    found = [c for i, entry in enumerate(entries) for c in _constraints(entry, f"{source.name}, instruction {i}")]
    if not found:
        raise DataError("the file holds no constraint", where=str(source), remedy="add at least one instruction")
    return tuple(found)


def _constraints(entry: Any, where: str) -> list[Constraint]:
    if not isinstance(entry, dict) or not isinstance(entry.get("instruction"), str) or not entry["instruction"].strip():
        raise DataError("an entry without the text of an instruction", where=where, remedy="give it `instruction`")
    wording = {"kind": "instruction", "short": entry["instruction"], "check": None, **entry}
    fields = {name: wording[name] for name in ("kind", "instruction", "short", "check")}
    values = entry.get("values")
    found = [Constraint(**(_filled(fields, v) if values else fields)) for v in values or [None]]
    for constraint in found:
        if constraint.check is not None and (why := _fault(constraint.check)):
            raise DataError(f"check {constraint.check!r}: {why}", where=where, remedy="see alignkit_gatt.constraints")
    return found


def _fault(check: Any) -> str | None:
    """What is wrong with a check, found by trying it."""
    if not isinstance(check, Mapping) or check.get("type") not in (*CHECKS, *ifeval.CHECKS):
        return f"its type is none of {', '.join(CHECKS)}, nor one of IFEval's"
    try:
        for trial in ("a trial", "{}"):  # the second gets as far as the keys of `json_keys`
            passes(check, trial)
    except UNREADABLE as error:
        return f"does not work ({error!r})"
    return None


def check_constraints(groups: Groups) -> None:
    """Refuse rows whose checks no program can run, before anything is sampled for them.

    Args:
        groups: with `constraints` in `meta`, or without.

    Raises:
        DataError: naming the row and its check.
    """
    for i in range(len(groups)):
        checks = groups.meta(i).get("constraints") or []
        if not isinstance(checks, list):
            raise DataError(f"constraints {checks!r}", where=f"row {i}", remedy="give a list of checks")
        for check in checks:
            if why := _fault(check):
                raise DataError(f"check {check!r}: {why}", where=f"row {i}", remedy="see alignkit_gatt.constraints")


def _filled(part: Any, value: Any) -> Any:
    """`{value}` replaced in every text; a text that is nothing else becomes the value itself (a number stays one)."""
    if isinstance(part, Mapping):
        return {key: _filled(inner, value) for key, inner in part.items()}
    if not isinstance(part, str):
        return part
    return value if part == "{value}" else part.replace("{value}", str(value))


# -- the draw ----------------------------------------------------------------------------------------------------------


def draw(pool: Sequence[Constraint], most: int, rng: random.Random) -> list[Constraint]:
    """One to `most` constraints at random, each of another kind, in random order."""
    kinds = sorted({constraint.kind for constraint in pool})
    chosen = rng.sample(kinds, rng.randint(1, min(most, len(kinds))))
    return [rng.choice([c for c in pool if c.kind == kind]) for kind in chosen]


def of_kinds(pool: Sequence[Constraint], kinds: str | None) -> list[Constraint]:
    """Those of the kinds named (separated by commas); None: all.

    Raises:
        DataError: a kind that the pool does not have.
    """
    known = sorted({c.kind for c in pool})
    wanted = [kind.strip() for kind in kinds.split(",")] if kinds else known
    if unknown := sorted(set(wanted) - set(known)):
        raise DataError(f"no constraint of kind {', '.join(unknown)}", where="kinds", remedy=f"use {', '.join(known)}")
    return [c for c in pool if c.kind in wanted]


def with_instructions(groups: Groups, pool: Sequence[Constraint], most: int, shortened: float, seed: int) -> Groups:
    """Each row with what it is asked to hold to in its `meta`; a row that has an `instruction` there keeps it.

    A draw depends on the seed and on the row's own prompt (and how often it came before), not on its neighbours.

    Args:
        groups: dialogues.
        pool: what is drawn from.
        most: constraints that a dialogue gets at most.
        shortened: probability of the short wording.
        seed: of the draw.

    Returns:
        Rows with meta `instruction` (the full wording), `wording` (the one of training: full or short), `constraints`
        (the checks; constraints without one are counted in `unverifiable`).
    """
    rows = []
    for i, (row, time) in enumerate(zip(groups, occurrences(groups), strict=True)):
        meta = groups.meta(i)
        if "instruction" not in meta:
            rng = random.Random(stream_key(seed, "instruction", row["prompt_id"], time))
            meta |= _told(draw(pool, most, rng), rng.random() < shortened)
        rows.append({**row, "meta": {"constraints": [], "wording": meta["instruction"], **meta}})
    return Groups.from_rows(rows)


def _told(chosen: Sequence[Constraint], short: bool) -> dict[str, Any]:
    full = " ".join(c.instruction for c in chosen)
    checks = [dict(c.check) for c in chosen if c.check is not None]
    wording = " ".join(c.short for c in chosen) if short else full
    return {"instruction": full, "wording": wording, "constraints": checks, "unverifiable": len(chosen) - len(checks)}


# -- the judgement -----------------------------------------------------------------------------------------------------


def obeys(meta: Mapping[str, Any], response: str) -> float | None:
    """1 where a reply holds to every constraint that a program can judge, else 0; a plain function reward.

    Args:
        meta: of the row; `constraints` are the checks.
        response: one reply.

    Returns:
        None (missing) where the row has no check.

    Raises:
        DataError: a check that cannot be run.
    """
    checks, text = meta.get("constraints"), response.strip()
    if not checks:
        return None
    try:
        return float(bool(text) and all(passes(check, text) for check in checks))
    except UNREADABLE as error:
        what = f"constraints {checks!r} cannot be checked ({error!r})"
        raise DataError(what, where="constraints", remedy="see alignkit_gatt.constraints") from error


def passes(check: Mapping[str, Any], text: str) -> bool:
    """Whether a reply, stripped and not empty, passes one check: `{"type": …}` with the arguments of that type.

    Raises:
        DataError: a type that is not known.
    """
    kind = check["type"]
    if kind in CHECKS:
        return CHECKS[kind](text, check)
    if kind not in ifeval.CHECKS:
        raise DataError(f"unknown check {kind!r}", where="constraints", remedy=f"use {', '.join(CHECKS)}, or IFEval's")
    return ifeval.follows(kind, {name: value for name, value in check.items() if name != "type"}, text)


def _cased(check: Mapping[str, Any], *texts: str) -> list[str]:
    return [text.casefold() if check.get("ignore_case") else text for text in texts]


def _contains(text: str, check: Mapping[str, Any]) -> bool:
    within, wanted = _cased(check, text, check["text"])
    pattern = rf"(?<!\w){re.escape(wanted)}(?!\w)" if check.get("whole_word") else re.escape(wanted)
    return re.search(pattern, within) is not None


def _starts(text: str, check: Mapping[str, Any]) -> bool:
    within, wanted = _cased(check, text, check["text"])
    whole = not check.get("whole_word") or not within[len(wanted) :][:1].isalnum()
    return within.startswith(wanted) and whole


def _ends(text: str, check: Mapping[str, Any]) -> bool:
    within, wanted = _cased(check, text, check["text"])
    return within.endswith(wanted)


def _json_keys(text: str, check: Mapping[str, Any]) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return isinstance(found, dict) and set(found) == set(check["keys"])


def _letters(text: str) -> str:
    return "".join(c for c in text if c.lower() != c.upper())


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "startswith": _starts,
    "endswith": _ends,
    "contains": _contains,
    "not_contains": lambda text, check: not _contains(text, check),
    "lowercase": lambda text, _: bool(_letters(text)) and text == text.lower(),
    "uppercase": lambda text, _: bool(_letters(text)) and text == text.upper(),
    "max_words": lambda text, check: len(text.split()) <= check["n"],
    "min_words": lambda text, check: len(text.split()) >= check["n"],
    "n_sentences": lambda text, check: ifeval.sentences(text) == int(check["n"]),
    "all_lines_start": lambda text, check: all(line.startswith(check["text"]) for line in _lines(text)),
    "regex": lambda text, check: re.search(check["pattern"], text) is not None,
    "not_regex": lambda text, check: re.search(check["pattern"], text) is None,
    "json_keys": _json_keys,
}
"""type -> whether a reply, stripped and not empty, passes. They take `text`, `n`, `pattern` or `keys`; those with
`text` also `ignore_case`, and `startswith` and the two `contains` also `whole_word`."""
