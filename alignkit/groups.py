"""What flows through the house: groups of responses to prompts.

`Groups` is the one record of preference learning: each row is a prompt (a conversation) with K >= 1 responses and
what is known of them, in the fixed columns of `FEATURES`; every row has every column, and what is not known is None.
Nothing in this module needs torch, nor `datasets` before rows are read or written: listing and planning stay light.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.columns import (
    FEATURES,
    META_PER_RESPONSE,
    NEWER,
    OF_SAMPLING,
    PER_RESPONSE,
    Columns,
    gathered,
    joined,
    opened,
    quiet,
)
from alignkit.errors import DataError
from alignkit.identity import canonical_json
from alignkit.rows import (
    RATINGS,
    ROLES,
    Message,
    check_lengths,
    normal_row,
    normal_value,
    prompt_id,
    refuse_unknown,
)

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["FEATURES", "PER_RESPONSE", "RATINGS", "ROLES", "Groups", "Message", "normal_row", "prompt_id"]


class Groups:
    """Prompts, each with its K >= 0 responses and what is known of them (K = 0: a prompt that waits for responses).

    Immutable: every method returns a new `Groups`, and rows and columns are copies. Rows are plain dicts with the
    columns of `FEATURES`. A small table is kept in lists, a large one in Arrow (see `alignkit.columns`).
    """

    def __init__(self, dataset: Dataset) -> None:
        missing = set(FEATURES) - set(NEWER) - set(dataset.column_names)
        if missing:
            raise DataError(f"columns {sorted(missing)} are missing", where="Groups", remedy="use Groups.from_rows")
        self._columns: Columns = opened(dataset)

    @classmethod
    def _of(cls, columns: Columns) -> Groups:
        made = cls.__new__(cls)
        made._columns = columns
        return made

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Groups:
        """Build from dicts; see `normal_row` for what a row may leave out.

        Raises:
            DataError: with the index of the first row at fault.
        """
        normal = [normal_row(row, f"row {index}") for index, row in enumerate(rows)]
        return cls._of(gathered({name: [row[name] for row in normal] for name in FEATURES}, len(normal)))

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
        from datasets import Dataset

        return cls(Dataset.load_from_disk(str(folder)))

    def save(self, folder: str | Path) -> None:
        """Write as a `datasets` folder (Arrow)."""
        with quiet():
            # A data set without rows would be written without a file, and then not be read.
            self.dataset.save_to_disk(str(folder), num_shards=None if len(self) else 1)

    @staticmethod
    def concat(parts: Sequence[Groups]) -> Groups:
        """One after another; no parts give an empty `Groups`."""
        return Groups._of(joined([part._columns for part in parts])) if parts else Groups.from_rows([])

    @property
    def dataset(self) -> Dataset:
        """The rows as a `datasets.Dataset`; of a small table it is made when it is first asked for."""
        return self._columns.dataset

    def __len__(self) -> int:
        return self._columns.rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(FEATURES, values, strict=True)) for values in self.each(*FEATURES))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._columns.row(index)

    def __repr__(self) -> str:
        return f"Groups({len(self)} prompts, {self.num_responses} responses)"

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self)

    @cached_property
    def num_responses(self) -> int:
        return sum(self.sizes())

    def sizes(self) -> list[int]:
        """How many responses each row has, [groups]."""
        return self._columns.sizes()

    def column(self, name: str) -> list[Any]:
        """One column of `FEATURES`, a value for each row.

        Raises:
            DataError: there is no such column.
        """
        refuse_unknown([name], "column")
        return self._columns.column(name)

    def each(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Row by row the values of these columns; cheaper than whole rows.

        Raises:
            DataError: there is no such column.
        """
        refuse_unknown(names, "each")
        return self._columns.each(names)

    def select(self, indices: Iterable[int]) -> Groups:
        """The rows at these places, in this order."""
        return Groups._of(self._columns.take([int(i) for i in indices]))

    def filter(self, keep: Callable[[dict[str, Any]], bool]) -> Groups:
        return self.select(i for i, row in enumerate(self) if keep(row))

    def map_rows(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Groups:
        """Each row replaced by `{**row, **change(row)}`."""
        changes = [change(row) for row in self]
        columns = {}
        for name in dict.fromkeys(name for changed in changes for name in changed):
            own = self.column(name) if name in FEATURES else [None] * len(self)
            columns[name] = [changed.get(name, value) for changed, value in zip(changes, own, strict=True)]
        return self.with_columns(columns)

    def with_columns(self, columns: Mapping[str, Sequence[Any]]) -> Groups:
        """The same with these columns in the place of its own; the others are not built again.

        Args:
            columns: name -> a value for each row, as `normal_row` takes them; None is what is not known.

        What was sampled goes where the text of a response is another one than before: the ids and log-probs of the row,
        and whether that response ended by itself, unless they are given too.

        Raises:
            DataError: unknown columns, another number of values than rows, or what `normal_row` refuses.
        """
        refuse_unknown(columns, "row 0")
        normal = {}
        for name, values in columns.items():
            if len(values) != len(self):
                raise DataError(f"{len(values)} values of {name} for {len(self)} rows", where="Groups.with_columns")
            normal[name] = [normal_value(name, value, f"row {index}") for index, value in enumerate(values)]
        if "prompt_id" in normal:
            prompts = normal["prompt"] if "prompt" in normal else self.column("prompt")
            normal["prompt_id"] = [i or prompt_id(p) for i, p in zip(normal["prompt_id"], prompts, strict=True)]
        if "responses" in normal:
            normal |= self._unsampled(normal)
        self._check_columns(normal)
        return Groups._of(self._columns.replaced(normal))

    def _unsampled(self, new: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """The columns that say how responses were sampled, without what was said of texts that are others now."""
        if "response_ids" in new:
            return {}
        edited: dict[int, list[bool]] = {}
        for index, (before, after) in enumerate(zip(self.column("responses"), new["responses"], strict=True)):
            if before != after and len(before) == len(after):
                edited[index] = [old != text for old, text in zip(before, after, strict=True)]
        if not edited:
            return {}
        found: dict[str, list[Any]] = {}
        for name in (name for name in OF_SAMPLING if name not in new):
            found[name] = [None if index in edited else value for index, value in enumerate(self.column(name))]
        if "finished" not in new:
            found["finished"] = self.column("finished")
            for index, changed in edited.items():
                flags = found["finished"][index]
                found["finished"][index] = flags and [None if c else f for c, f in zip(changed, flags, strict=True)]
        return found

    def _check_columns(self, new: Mapping[str, list[Any]]) -> None:
        """Refuse new columns that do not have a value for each response."""
        counted = [name for name in (*PER_RESPONSE, "rewards") if name in new]
        others = [name for name in (*PER_RESPONSE, "rewards") if name not in new] if "responses" in new else []
        if not counted and not others:
            return
        sizes = [len(responses) for responses in new["responses"]] if others or "responses" in new else self.sizes()
        for index, (count, own) in enumerate(zip(sizes, self.each(*others), strict=True)):
            row = dict(zip(others, own, strict=True)) | {name: new[name][index] for name in counted}
            check_lengths(row, count, f"row {index}")

    def without_responses(self) -> Groups:
        """The prompts alone, with tags and what `meta` knows of them."""
        keep = ("prompt_id", "prompt", "tags", "meta", "iteration")
        unknown: list[Any] = [None] * len(self)
        empty = {name: unknown for name in FEATURES if name not in keep}
        pairs = zip(self._columns.kept("meta"), self.sizes(), strict=True)
        empty["meta"] = [_of_prompt(meta) if size else meta for meta, size in pairs]
        return Groups._of(self._columns.replaced({**empty, "responses": [[]] * len(self)}))

    def with_rewards(
        self, name: str, values: Sequence[Sequence[float | None]], reasons: Sequence[Sequence[str | None]] | None = None
    ) -> Groups:
        """Add (or replace) the reward `name`: values [groups][K], None where it is missing."""
        why = reasons or [[None] * len(v) for v in values]
        column = []
        for rewards, row_values, row_reasons in zip(self._columns.kept("rewards"), values, why, strict=True):
            others = [r for r in rewards or [] if r["name"] != name]
            column.append([*others, {"name": name, "values": list(row_values), "reasons": list(row_reasons)}])
        return self.with_columns({"rewards": column})

    def reward_names(self) -> list[str]:
        return sorted({r["name"] for rewards in self._columns.kept("rewards") for r in rewards or []})

    def rewards(self, name: str) -> tuple[list[list[float]], list[list[bool]]]:
        """The reward `name` as (values, present), each [groups][K]; a value that is not present is 0.0 and means
        nothing.

        Raises:
            DataError: no row has a reward of that name.
        """
        known = self.reward_names()
        if name not in known:
            raise DataError(f"no reward {name!r}", where="Groups", remedy=f"known: {known}")
        values, present = [], []
        for rewards, size in zip(self._columns.kept("rewards"), self.sizes(), strict=True):
            found = next((r["values"] for r in rewards or [] if r["name"] == name), [None] * size)
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
        for index, row in enumerate(self):
            try:
                said = canonical_json(_said(row))
            except ValueError as error:  # JSON has no infinity, and nothing is learned from one
                raise _not_finite(row, index) from error
            state.update(said.encode("utf-8", "surrogatepass"))
            state.update(b"\n")
        return state.hexdigest()


def _not_finite(row: Mapping[str, Any], index: int) -> DataError:
    """Which column of a row holds what is no finite number."""
    name = next((name for name, value in row.items() if not _is_json(value)), "a value")
    return DataError(
        f"AK-D17 {name} holds a number that is not finite",
        where=f"row {index}",
        effect="every gradient would be NaN",
        remedy="leave what is not known empty (None)",
    )


def _is_json(value: Any) -> bool:
    try:
        canonical_json(value)
    except ValueError:
        return False
    return True


def _said(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what later versions added and it says nothing of, so that its digest outlives them."""
    turns = [{k: v for k, v in turn.items() if k != "fields" or v is not None} for turn in row["prompt"] or []]
    gone = {name for name in NEWER if row[name] is None}
    return {name: turns if name == "prompt" else value for name, value in row.items() if name not in gone}


def _of_prompt(meta: str | None) -> str | None:
    """Without what is said of responses: lists with an entry for each, and the margin of a comparison."""
    if not meta or not any(f'"{name}"' in meta for name in (*META_PER_RESPONSE, "margin")):
        return meta
    known = json.loads(meta)
    gone = {name for name in META_PER_RESPONSE if isinstance(known.get(name), list)} | {"margin"}
    kept = {name: value for name, value in known.items() if name not in gone}
    return canonical_json(kept) if kept else None
