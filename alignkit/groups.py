"""What flows through the house: messages, and groups of responses.

`Groups` is the one record of preference learning: each row is a prompt (a conversation) with K >= 1 responses and
what is known of them. It wraps a `datasets.Dataset` with the fixed columns of `FEATURES`; every row has every column,
and what is not known is None. Nothing in this module needs torch, so that listing and reading stay light.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value

from alignkit.errors import DataError
from alignkit.identity import canonical_json

RATINGS = ("significantly_better", "better", "slightly_better", "negligibly_better_or_unsure")
"""Llama 2's four levels of preference (Touvron et al. 2023, section 3.2.1), from the most to the least distinct."""

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: one of `ROLES`.
        content: the text, kept as it is.
        trained: for an assistant turn inside a prompt: whether its tokens are learned from.
    """

    role: str
    content: str
    trained: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, "trained": self.trained}


_MESSAGE = {"role": Value("string"), "content": Value("string"), "trained": Value("bool")}
_REWARD = {"name": Value("string"), "values": [Value("float64")], "reasons": [Value("string")]}

FEATURES = Features(
    {
        "prompt_id": Value("string"),
        "prompt": [_MESSAGE],
        "responses": [Value("string")],
        "response_ids": [[Value("int32")]],
        "finished": [Value("bool")],
        "logprobs": [[Value("float32")]],
        "sampled_logprobs": [[Value("float32")]],
        "ranks": [Value("int32")],
        "rating": Value("string"),
        "preference_prob": Value("float64"),
        "labels": [Value("bool")],
        "rewards": [_REWARD],
        "dimension": Value("string"),
        "tags": [Value("string")],
        "sampled_by": [{"policy": Value("string"), "temperature": Value("float64")}],
        "tokenizer": Value("string"),
        "iteration": Value("int32"),
        "meta": Value("string"),
    }
)
"""Columns of a `Groups` on disk. `finished` says whether a sampled response ended by itself (EOS). `meta` is a JSON
object with whatever else is known of the prompt (checks, source …)."""

PER_RESPONSE = ("response_ids", "finished", "logprobs", "sampled_logprobs", "ranks", "labels", "sampled_by")


def prompt_id(messages: Sequence[Mapping[str, Any] | Message]) -> str:
    """Content hash (16 hex digits) of a conversation: roles and NFC-normalised text, nothing else."""
    turns = [message.to_dict() if isinstance(message, Message) else message for message in messages]
    text = canonical_json([[turn["role"], unicodedata.normalize("NFC", turn["content"])] for turn in turns])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _normal_prompt(prompt: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    turns = [turn.to_dict() if isinstance(turn, Message) else dict(turn) for turn in prompt]
    for turn in turns:
        if turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise DataError(
                f"a message has role {turn.get('role')!r} and content of type {type(turn.get('content')).__name__}",
                where=where,
                remedy=f"use roles {', '.join(ROLES)} and text content",
            )
    return [{"role": t["role"], "content": t["content"], "trained": bool(t.get("trained"))} for t in turns]


def _normal_rewards(rewards: Any) -> list[dict[str, Any]] | None:
    """Accept {name: values} or the stored list of {name, values, reasons}."""
    if not rewards:
        return None
    if isinstance(rewards, Mapping):
        rewards = [{"name": name, "values": list(values)} for name, values in rewards.items()]
    return [
        {"name": r["name"], "values": list(r["values"]), "reasons": list(r.get("reasons") or [None] * len(r["values"]))}
        for r in sorted(rewards, key=lambda r: r["name"])
    ]


def normal_row(row: Mapping[str, Any], where: str = "row") -> dict[str, Any]:
    """Fill in what is missing and check what is there, so that every row has every column.

    Args:
        row: `prompt` (text, messages or `Message`s) and, where known, the other columns of `FEATURES`; `meta` may be
            a dict.
        where: named in errors.

    Raises:
        DataError: unknown columns, wrong roles, a per-response column whose length is not K, a rating outside
        `RATINGS`.
    """
    unknown = set(row) - set(FEATURES)
    if unknown:
        raise DataError(f"unknown columns {sorted(unknown)}", where=where, remedy=f"use {', '.join(FEATURES)}")
    out: dict[str, Any] = {name: row.get(name) for name in FEATURES}
    out["prompt"] = _normal_prompt(row["prompt"], where)
    out["prompt_id"] = row.get("prompt_id") or prompt_id(out["prompt"])
    out["responses"] = list(row.get("responses") or [])
    out["tags"] = list(row.get("tags") or [])
    out["rewards"] = _normal_rewards(row.get("rewards"))
    meta = row.get("meta")
    out["meta"] = meta if meta is None or isinstance(meta, str) else canonical_json(meta)
    count = len(out["responses"])
    lengths = {name: len(out[name]) for name in PER_RESPONSE if out[name] is not None}
    lengths |= {f"rewards[{r['name']}]": len(r["values"]) for r in out["rewards"] or []}
    wrong = {name: length for name, length in lengths.items() if length != count}
    if wrong:
        raise DataError(f"{wrong} where there are {count} responses", where=where)
    if out["rating"] is not None and out["rating"] not in RATINGS:
        raise DataError(
            f"rating {out['rating']!r} is outside the scale", where=where, remedy=f"use {', '.join(RATINGS)}"
        )
    return out


class Groups:
    """Prompts, each with its K >= 0 responses and what is known of them (K = 0: a prompt that waits for responses).

    Immutable: every method returns a new `Groups`. Rows are plain dicts with the columns of `FEATURES`.
    """

    def __init__(self, dataset: Dataset) -> None:
        missing = set(FEATURES) - set(dataset.column_names)
        if missing:
            raise DataError(f"columns {sorted(missing)} are missing", where="Groups", remedy="use Groups.from_rows")
        self.dataset = dataset

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Groups:
        """Build from dicts; see `normal_row` for what a row may leave out.

        Raises:
            DataError: with the index of the first row at fault.
        """
        normal = [normal_row(row, f"row {index}") for index, row in enumerate(rows)]
        columns = {name: [row[name] for row in normal] for name in FEATURES}
        return cls(Dataset.from_dict(columns, features=FEATURES))

    @classmethod
    def from_prompts(cls, prompts: Iterable[Any], tags: Sequence[str] = ()) -> Groups:
        """Prompts without responses: text, lists of messages, or dicts with `prompt`/`messages`, `tags`, `meta`."""
        rows = []
        for prompt in prompts:
            if isinstance(prompt, Mapping):
                row = {k: v for k, v in prompt.items() if k in FEATURES}
                row.setdefault("prompt", prompt.get("messages"))
                rows.append({**row, "tags": [*row.get("tags", []), *tags]})
            else:
                rows.append({"prompt": prompt, "tags": list(tags)})
        return cls.from_rows(rows)

    @classmethod
    def load(cls, folder: str | Path) -> Groups:
        """Read what `save` wrote."""
        return cls(Dataset.load_from_disk(str(folder)))

    def save(self, folder: str | Path) -> None:
        """Write as a `datasets` folder (Arrow)."""
        was_on = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            # A data set without rows would be written without a file, and then not be read.
            self.dataset.save_to_disk(str(folder), num_shards=None if len(self) else 1)
        finally:
            if was_on:
                datasets.enable_progress_bars()

    @staticmethod
    def concat(parts: Sequence[Groups]) -> Groups:
        """One after another; no parts give an empty `Groups`."""
        if not parts:
            return Groups.from_rows([])
        return Groups.from_rows([row for part in parts for row in part])

    def __len__(self) -> int:
        return self.dataset.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index]

    def __repr__(self) -> str:
        return f"Groups({len(self)} prompts, {self.num_responses} responses)"

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.dataset.to_list()

    @property
    def num_responses(self) -> int:
        return sum(len(responses) for responses in self.dataset["responses"])

    def select(self, indices: Iterable[int]) -> Groups:
        """The rows at these places, in this order."""
        return Groups.from_rows([self[int(i)] for i in indices])

    def filter(self, keep: Callable[[dict[str, Any]], bool]) -> Groups:
        return Groups.from_rows([row for row in self if keep(row)])

    def map_rows(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Groups:
        """Each row replaced by `{**row, **change(row)}`."""
        return Groups.from_rows([{**row, **change(row)} for row in self])

    def without_responses(self) -> Groups:
        """The prompts alone, with tags and meta."""
        keep = ("prompt_id", "prompt", "tags", "meta", "iteration")
        return Groups.from_rows([{name: row[name] for name in keep} for row in self])

    def with_rewards(
        self, name: str, values: Sequence[Sequence[float | None]], reasons: Sequence[Sequence[str | None]] | None = None
    ) -> Groups:
        """Add (or replace) the reward `name`: values [groups][K], None where it is missing."""
        why = reasons or [[None] * len(v) for v in values]
        rows = []
        for row, row_values, row_reasons in zip(self, values, why, strict=True):
            others = [r for r in row["rewards"] or [] if r["name"] != name]
            entry = {"name": name, "values": list(row_values), "reasons": list(row_reasons)}
            rows.append({**row, "rewards": [*others, entry]})
        return Groups.from_rows(rows)

    def reward_names(self) -> list[str]:
        return sorted({r["name"] for row in self for r in row["rewards"] or []})

    def rewards(self, name: str) -> tuple[list[list[float]], list[list[bool]]]:
        """The reward `name` as (values, present), each [groups][K]; a value that is not present is 0.0 and means
        nothing.

        Raises:
            DataError: no row has a reward of that name.
        """
        if name not in self.reward_names():
            raise DataError(f"no reward {name!r}", where="Groups", remedy=f"known: {self.reward_names()}")
        values, present = [], []
        for row in self:
            found = next(
                (r["values"] for r in row["rewards"] or [] if r["name"] == name), [None] * len(row["responses"])
            )
            values.append([0.0 if v is None else float(v) for v in found])
            present.append([v is not None for v in found])
        return values, present

    def meta(self, index: int) -> dict[str, Any]:
        """The JSON object kept in `meta` of one row ({} where there is none)."""
        text = self[index]["meta"]
        return json.loads(text) if text else {}

    def key(self) -> dict[str, str]:
        """How the groups count in the key of what is made from them."""
        return {"groups": self.digest()}

    def digest(self) -> str:
        """SHA-256 over the canonical rows: equal for equal content, whatever the files look like."""
        state = hashlib.sha256()
        for row in self:
            state.update(canonical_json(row).encode("utf-8", "surrogatepass"))
            state.update(b"\n")
        return state.hexdigest()
