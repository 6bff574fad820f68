"""A constitution: principles in words, in a JSON file that a user can replace.

    {"name": "…",
     "critique_revision": [{"id": "…", "critique": "…", "revision": "…"}, …],
     "preference": [{"id": "…", "text": "…"}, …],
     "examples": [{"prompt": "…", "response": "…", "critique_request": "…", "critique": "…",
                   "revision_request": "…", "revision": "…"}, …]}

`critique_revision` drives the supervised stage, `preference` the comparisons; `examples` (which may be missing) are
conversations that show the form, for few-shot prompting. `name`, `note` and `licence` are free text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from alignkit.plugin import ConfigError, bad_text, canonical_json, did_you_mean, strict_json

MAX_BYTES = 1_000_000
"""Size of a file beyond which it is no constitution."""

LISTS = {
    "critique_revision": ("id", "critique", "revision"),
    "preference": ("id", "text"),
    "examples": ("prompt", "response", "critique_request", "critique", "revision_request", "revision"),
}
"""Each list of the file, and the texts that each of its entries has."""
REQUIRED = ("critique_revision", "preference")
FREE = ("name", "note", "licence")

Entry = Mapping[str, str]


@dataclass(frozen=True)
class Constitution:
    """Principles that have been checked.

    Args:
        name: of the set.
        critique_revision: {id, critique, revision}: what the model is asked about its response.
        preference: {id, text}: what makes one response better than another.
        examples: conversations of the form response, critique, revision; may be empty.
    """

    name: str
    critique_revision: tuple[Entry, ...]
    preference: tuple[Entry, ...]
    examples: tuple[Entry, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The words of the preference principles, as a judge takes them."""
        return tuple(entry["text"] for entry in self.preference)

    def digest(self) -> str:
        """16 hex digits that change with any word of it."""
        lists = {name: [dict(entry) for entry in getattr(self, name)] for name in LISTS}
        return hashlib.sha256(canonical_json(lists).encode()).hexdigest()[:16]


def read_constitution(path: str | Path | None = None) -> Constitution:
    """Read and check a constitution.

    Args:
        path: a JSON file as above; None or "" takes the one that comes with this distribution.

    Raises:
        ConfigError: no such file, no JSON, missing or unknown keys, an empty list, an entry without its texts, an id or
            a principle that occurs twice.
    """
    if not path:
        text = files("alignkit_constitutional").joinpath("constitution.json").read_text(encoding="utf-8")
        return _checked(text, "the shipped constitution")
    file = Path(path)
    if not file.is_file():
        raise _wrong("there is no such file", str(path))
    if file.stat().st_size > MAX_BYTES:
        raise _wrong(f"the file is longer than {MAX_BYTES} bytes", str(path))
    try:
        return _checked(file.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise _wrong(f"no UTF-8 at byte {error.start}", str(path)) from error


def _wrong(what: str, where: str) -> ConfigError:
    return ConfigError(what, where=where, remedy="see the README of alignkit-constitutional for the form")


def _checked(text: str, where: str) -> Constitution:
    try:
        found = strict_json(text)
    except ValueError as error:
        raise _wrong(f"not JSON: {error}", where) from error
    if not isinstance(found, dict):
        raise _wrong(f"a {type(found).__name__} where an object is expected", where)
    for key in found:
        if key not in (*LISTS, *FREE):
            raise _wrong(f"unknown key {key!r}{did_you_mean(key, [*LISTS, *FREE])}", where)
    lists = {name: _entries(found, name, fields, where) for name, fields in LISTS.items()}
    return Constitution(str(found.get("name", "")), **lists)


def _entries(found: Mapping[str, Any], name: str, fields: tuple[str, ...], where: str) -> tuple[Entry, ...]:
    """One of the lists, each of its entries checked."""
    entries = found.get(name, None if name in REQUIRED else [])
    if entries is None:
        raise _wrong(f"the key {name!r} is missing", where)
    if not isinstance(entries, list) or (not entries and name in REQUIRED):
        raise _wrong(f"{name!r} is not a list with at least one entry", where)
    for number, entry in enumerate(entries):
        for what in _faults(entry, fields):
            raise _wrong(what, f"{where}: {name}[{number}]")
    for field in (field for field in fields if name in REQUIRED and field in ("id", "critique", "text")):
        text, count = Counter(" ".join(entry[field].split()).casefold() for entry in entries).most_common(1)[0]
        if count > 1:
            effect = "It would be drawn more often than the others, and figures by principle would mix two."
            raise ConfigError(
                f"{name}: the {field} {text!r} occurs {count} times", where=where, effect=effect, remedy="keep one"
            )
    return tuple(entries)


def _faults(entry: Any, fields: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with one entry."""
    if not isinstance(entry, dict):
        yield f"a {type(entry).__name__} where an object with {', '.join(fields)} is expected"
        return
    for field in fields:
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            yield f"{field!r} is missing" if field not in entry else f"{field!r} is no text"
    for field in entry:
        if field not in fields:
            yield f"unknown key {field!r}{did_you_mean(field, fields)}"
    finding = bad_text(entry)
    if finding:
        yield f"{finding.field}: {finding.what}"
