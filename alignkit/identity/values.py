"""Canonical JSON, digests, and what differs between two keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, no spaces, no NaN. The basis of every digest.

    Raises:
        ValueError: for NaN, infinities and what JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def spelt(text: str) -> Any:
    """A text as plain JSON that can be written: half a character (a lone surrogate, as in some file names) escaped."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return {"escaped": text.encode("unicode_escape").decode()}
    return text


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a plain value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """What changed between two keys, one line each: `config.learning_rate: 0.001 -> 0.0005`."""
    lines = []
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{path}{name}.")
        else:
            lines.append(f"{path}{name}: {_short(a)} -> {_short(b)}")
    return lines


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:18] + "…" + text[-18:]
