"""Answers that were paid for, kept in a file: after an interruption or a stop they are not asked for again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignkit.plugin import ConfigError, canonical_json, strict_json
from alignkit_rlaif.answers import Answer
from alignkit_rlaif.endpoint import Endpoint
from alignkit_rlaif.prompts import Question

logger = logging.getLogger("alignkit.rlaif")


class Kept:
    """Answers of one endpoint, one JSON line each, written as they come. Failures are not kept.

    Args:
        folder: made where there is none.
        endpoint: whose answers; another address, model or way of asking has another file.

    Raises:
        ConfigError: the folder cannot be made, or the file cannot be read.
    """

    def __init__(self, folder: str | Path, endpoint: Endpoint) -> None:
        name = hashlib.sha256(canonical_json(endpoint.key()).encode()).hexdigest()[:16]
        self.path = Path(folder) / f"answers-{name}.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._found = dict(self._read()) if self.path.exists() else {}
        except OSError as error:
            raise ConfigError(f"cannot keep answers: {error.strerror}", where=str(folder)) from None

    def answer(self, question: Question, seed: int) -> Answer | None:
        """The answer kept for a question; one that was drawn only for the same seed."""
        for path, by in ((("answer", question.key), "logprobs"), (("answer", question.key, seed), "sampled")):
            probs = self._found.get(canonical_json(list(path)))
            if isinstance(probs, list) and len(probs) == len(question.labels):
                return Answer(tuple(probs), by=by)
        return None

    def keep_answer(self, answer: Answer, question: Question, seed: int) -> None:
        drawn = (seed,) if answer.by == "sampled" else ()
        if answer.probs is not None:
            self._add(list(answer.probs), "answer", question.key, *drawn)

    def text(self, question: Question, max_new_tokens: int) -> str | None:
        """The text kept for a question; it is the likeliest one, so no seed belongs to it."""
        found = self._found.get(canonical_json(["text", question.key, max_new_tokens]))
        return found if isinstance(found, str) else None

    def keep_text(self, text: str, question: Question, max_new_tokens: int) -> None:
        self._add(text, "text", question.key, max_new_tokens)

    def _add(self, value: Any, *path: str | int) -> None:
        name = canonical_json(list(path))
        self._found[name] = value
        with self.path.open("a", encoding="utf-8") as file:
            # the newline before it: a line that an interruption tore must not take this one with it
            file.write("\n" + json.dumps({"name": name, "value": value}) + "\n")

    def _read(self) -> Iterator[tuple[str, Any]]:
        for line in self.path.read_bytes().splitlines():
            try:
                entry = strict_json(line.decode("utf-8")) if line else None
            except ValueError:
                logger.warning("%s: a line that was not written to its end is left out", self.path.name)
                continue
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                yield entry["name"], entry.get("value")
