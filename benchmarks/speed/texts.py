"""What both sides learn from: rows of ../shared/data where it is, else made-up text of about the same lengths."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[3] / "shared" / "data"
WORDS = ("time", "people", "water", "could", "which", "their", "about", "would", "there", "after", "small", "house")


def _rows(name: str) -> list[dict[str, Any]]:
    file = DATA / f"{name}.train.jsonl.gz"
    if not file.is_file():
        return []
    with gzip.open(file, "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def _made(count: int, place: int) -> str:
    return " ".join(random.Random(place).choices(WORDS, k=count))


def comparisons(count: int) -> list[dict[str, Any]]:
    """{"prompt": messages, "chosen": text, "rejected": text}, of people's comparisons."""
    found = _rows("pref_hh_harmless")
    if not found:
        turns = [[{"role": "user", "content": _made(120, 3 * i)}] for i in range(count)]
        return [
            {"prompt": turn, "chosen": _made(45, 3 * i + 1), "rejected": _made(45, 3 * i + 2)}
            for i, turn in enumerate(turns)
        ]
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in found[:count]]


def demonstrations(count: int) -> list[dict[str, Any]]:
    """{"prompt": messages, "response": text}, none longer than 1600 characters a side."""
    talks = [(row["messages"][:-1], row["messages"][-1]["content"]) for row in _rows("sft")]
    short = [(p, r) for p, r in talks if len(r) < 1600 and sum(len(each["content"]) for each in p) < 1600]
    short = short or [([{"role": "user", "content": _made(60, i)}], _made(120, -i)) for i in range(count)]
    return [{"prompt": prompt, "response": response} for prompt, response in short[:count]]


def questions(count: int) -> list[list[dict[str, str]]]:
    """Prompts of a conversation's first turn."""
    found = [row["prompt"] for row in _rows("prompts_rollout") if len(row["prompt"]) == 1]
    return found[:count] or [[{"role": "user", "content": _made(30, i)}] for i in range(count)]
