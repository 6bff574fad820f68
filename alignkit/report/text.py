"""Text made safe to look at, and numbers made easy to read: used by the page, the charts and the terminal alike."""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

from alignkit.meter import short

LIMIT = 4000
"""Characters of one text shown; what is longer is cut, and the page says by how much."""

_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks that show nothing, outside the category of format characters."""


def visible(text: str) -> str:
    """The text with everything that hides or reorders it spelled out, such as `⟦U+202E⟧`.

    Line feeds, tabs and the emoji presentation selector are kept. The result can be encoded as UTF-8 whatever went in.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if _is_plain(character) else f"⟦U+{ord(character):04X}⟧" for character in text)


def clipped(text: str, limit: int = LIMIT) -> str:
    """At most `limit` characters, with a note of how many are not shown."""
    return text if len(text) <= limit else f"{text[:limit]}\n… and {len(text) - limit:,} more characters, not shown"


def brief(label: str, limit: int = 40) -> str:
    """A name as one short line."""
    line = " ".join(label.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def conversation(prompt: Any) -> str:
    """A prompt as text: a single user turn as it is, several turns with their roles."""
    if not isinstance(prompt, list):
        return str(prompt)
    turns = [turn if isinstance(turn, dict) else {"content": turn} for turn in prompt]
    if len(turns) == 1 and turns[0].get("role", "user") == "user":
        return str(turns[0].get("content", ""))
    return "\n\n".join(f"{turn.get('role', 'user')}: {turn.get('content', '')}" for turn in turns)


def number(value: Any) -> str:
    """Three figures or so, a true minus sign; `–` for what is missing or not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    size = abs(value)
    if isinstance(value, int) or size >= 1000:
        text = f"{value:,.0f}"
    elif size == 0 or size >= 0.001:
        text = f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3}f}"
    else:
        text = f"{value:.1e}"
    return text.replace("-", "−")


def signed(value: Any) -> str:
    """As `number`, with a plus sign where it is above zero."""
    return f"+{number(value)}" if isinstance(value, (int, float)) and value > 0 else number(value)


def percent(value: Any) -> str:
    return f"{100 * value:.0f}%" if isinstance(value, (int, float)) and math.isfinite(value) else "–"


def duration(seconds: Any) -> str:
    """`4.2 s`, `3 min 10 s`, `2 h 05 min`."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def amount(value: Any) -> str:
    """A count in three figures, such as `1.25 M`; `–` for what is missing."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return short(value) if known else "–"


def compact(value: Any) -> str:
    """A hyper-parameter as one line of text, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return clipped(text, 600)


def _is_plain(character: str) -> bool:
    if character in "\n\t\ufe0f":
        return True
    if character in _BLANK or _is_selector(ord(character)):
        return False
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")


def _is_selector(code: int) -> bool:
    """Variation selectors: marks that show nothing and can carry hidden bytes."""
    return 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or 0x180B <= code <= 0x180F
