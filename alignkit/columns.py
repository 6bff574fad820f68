"""The columns of groups: what they hold, and the two ways of keeping them.

A small table is kept as plain lists (`Memory`): adding a column or taking rows costs what is new, and no more. A large
one stays in Arrow (`Table`), on disk where it came from there, and is read a thousand rows at a time. Both hand out
copies, so that nobody changes a table through what it was given, and so tables may share their columns.
"""

from __future__ import annotations

import hashlib
import math
import reprlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from alignkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features

LARGE = 50_000
"""Rows and responses together beyond which a table is kept in Arrow."""

LARGE_BYTES = 64 * 2**20
"""Bytes on disk beyond which it is."""

_AT_ONCE = 1000

_MESSAGE = {"role": "string", "content": "string", "trained": "bool", "fields": "string"}
_REWARD = {"name": "string", "values": ["float64"], "reasons": ["string"]}

FEATURES: dict[str, Any] = {
    "prompt_id": "string",
    "prompt": [_MESSAGE],
    "responses": ["string"],
    "response_fields": ["string"],
    "response_ids": [["int32"]],
    "finished": ["bool"],
    "logprobs": [["float32"]],
    "sampled_logprobs": [["float32"]],
    "ranks": ["int32"],
    "rating": "string",
    "preference_prob": "float64",
    "labels": ["bool"],
    "rewards": [_REWARD],
    "dimension": "string",
    "tags": ["string"],
    "sampled_by": [{"policy": "string", "temperature": "float64"}],
    "tokenizer": "string",
    "iteration": "int32",
    "meta": "string",
}
"""Columns of a `Groups` on disk, and of what they are, in the words of `datasets` (`features` has them as its objects:
it takes half a second to import, and whoever only lists or plans needs none of it). `fields` of a message, and of a
response `response_fields`, are a JSON object with what a chat template reads beside the text (tool_calls, …), or None.
`finished` says whether a sampled
response ended by itself (EOS). `meta` is a JSON object with whatever else is known of the prompt (checks, source …)."""

OF_SAMPLING = ("response_ids", "logprobs", "sampled_logprobs", "tokenizer")
"""Columns that hold only for the very tokens that were sampled."""

META_PER_RESPONSE = ("responses", "safe", "scores")
"""Lists in `meta` with an entry for each response."""

PER_RESPONSE = (
    "response_fields",
    "response_ids",
    "finished",
    "logprobs",
    "sampled_logprobs",
    "ranks",
    "labels",
    "sampled_by",
)

HOLDS: dict[str, str] = {
    **dict.fromkeys(("prompt_id", "rating", "dimension", "tokenizer"), "a text"),
    **dict.fromkeys(("finished", "labels"), "true or false for each response"),
    **dict.fromkeys(("logprobs", "sampled_logprobs"), "a list of numbers for each response"),
    "prompt": "a text, or a list of {role, content}",
    "responses": "a list of texts",
    "response_fields": "a JSON object or None for each response",
    "response_ids": "a list of token ids for each response",
    "ranks": "a whole number for each response",
    "preference_prob": "a number",
    "rewards": "{name: a number or None for each response}",
    "tags": "a list of texts",
    "sampled_by": "{policy, temperature} for each response",
    "iteration": "a whole number",
    "meta": "a JSON object",
}
"""What a value of each column is, in the words of errors."""

Change = Callable[[Any], Any]


def features(names: Iterable[str] = FEATURES) -> Features:
    """Columns of `FEATURES` as `datasets` declares them.

    Args:
        names: which.
    """
    from datasets import Features, Value

    def declared(form: Any) -> Any:
        if isinstance(form, Mapping):
            return {name: declared(inner) for name, inner in form.items()}
        return [declared(form[0])] if isinstance(form, list) else Value(form)

    return Features({name: declared(FEATURES[name]) for name in names})


def _text(value: Any) -> Any:
    if value is not None and type(value) is not str:
        raise TypeError
    if value is not None and not value.isascii():
        value.encode()  # what is no Unicode is refused now, and not when it is written
    return value


def _number(value: Any) -> Any:
    if value is None or type(value) is float:
        return value
    if type(value) is not int:
        raise TypeError
    return float(value)


def _whole(value: Any) -> Any:
    return value if value is None else array("i", (value,))[0]


def _flag(value: Any) -> Any:
    if value is not None and type(value) is not bool:
        raise TypeError
    return value


_SCALARS: dict[str, Change] = {"string": _text, "float64": _number, "int32": _whole, "bool": _flag}
_PACKED = {"int32": "i", "float32": "f"}


def _keeping(form: Any) -> Change:
    """How a value of this form is taken into memory: checked, copied, and as precise as on disk.

    The change raises TypeError, ValueError or OverflowError for what only `datasets` may know to convert.
    """
    if isinstance(form, Mapping):
        parts = {name: _keeping(inner) for name, inner in form.items()}

        def struct(value: Any) -> Any:
            if value is None:
                return None
            if not value.keys() <= parts.keys():
                raise TypeError
            return {name: keep(value.get(name)) for name, keep in parts.items()}

        return struct
    if not isinstance(form, list):
        return _SCALARS[form]
    inner = form[0]
    packed = _PACKED.get(inner) if isinstance(inner, str) else None
    each = None if packed else _keeping(inner)

    def items(value: Any) -> Any:
        if value is None:
            return None
        if type(value) not in (list, tuple):
            raise TypeError
        return array(packed, value) if packed else [each(item) for item in value]  # type: ignore[misc]

    return items


def _handing(form: Any) -> Change | None:
    """How a kept value of this form is copied for whoever asks; None where nobody could change it."""
    if isinstance(form, Mapping):
        parts = {name: _handing(inner) for name, inner in form.items()}
        deep = {name: copy for name, copy in parts.items() if copy}

        def struct(value: Any) -> Any:
            if value is None or not deep:
                return None if value is None else dict(value)
            return {name: deep[name](kept) if name in deep else kept for name, kept in value.items()}

        return struct
    if not isinstance(form, list):
        return None
    each = _handing(form[0])

    def items(value: Any) -> Any:
        if value is None:
            return None
        return list(value) if each is None else [each(item) for item in value]

    return items


_KEEP = {name: _keeping(form) for name, form in FEATURES.items()}
_HAND = {name: _handing(form) for name, form in FEATURES.items()}


def kept(name: str, values: Sequence[Any]) -> list[Any]:
    """Values of a column [rows] as they are kept in memory; of what is odd (numbers of NumPy, arrays, tensors),
    `datasets` converts what means the same afterwards.

    Raises:
        DataError: naming the first row whose value is of another type.
    """
    keep = _KEEP[name]
    try:
        return [keep(value) for value in values]
    except (TypeError, ValueError, AttributeError, OverflowError):
        found = _converted(name, list(values))
        if found is not None:
            return found
    for index, value in enumerate(values):
        if _converted(name, [value]) is None:
            raise ill_typed(name, value, f"row {index}")
    raise ill_typed(name, values, "rows")  # pragma: no cover - each alone is fine, and all together are not


def _converted(name: str, values: list[Any]) -> list[Any] | None:
    """Values as `datasets` makes them those of a column, or None where they would not mean the same any more."""
    import pyarrow
    from datasets import Dataset

    try:
        found = list(Dataset.from_dict({name: values}, features=features([name]))[:][name])
    except (TypeError, ValueError, AttributeError, OverflowError, pyarrow.ArrowException):
        return None
    return found if all(map(_same, values, found)) else None


def _same(given: Any, found: Any) -> bool:
    """Whether a value means what it did before it was converted: "1" is no number, 1.5 is not 1, a text is no list."""
    if given is None or found is None:
        return given is None and found is None
    if isinstance(found, str) or isinstance(given, str | bytes):
        # A number is written out as a text; nothing else that is none is one.
        return isinstance(given, str | int | float) and not isinstance(given, bool) and str(given) == found
    if isinstance(found, Mapping):
        return isinstance(given, Mapping) and all(_same(given.get(name), inner) for name, inner in found.items())
    if isinstance(found, list):
        return not isinstance(given, Mapping) and len(given) == len(found) and all(map(_same, given, found))
    if isinstance(found, float):
        number = float(given)
        return number != number or math.isclose(number, found, rel_tol=1e-6, abs_tol=1e-30)  # float32 rounds
    return bool(given == found)


def ill_typed(name: str, value: Any, where: str) -> DataError:
    """A value that a column cannot hold.

    Args:
        name: of the column.
        value: what was given.
        where: the row.
    """
    what = f"AK-D21 {name} is {reprlib.repr(value)} where {HOLDS[name]} is expected"
    return DataError(what, where=where, effect="Converted, it would say something else.", remedy="mend or leave it out")


def _handed(name: str, values: list[Any]) -> list[Any]:
    copy = _HAND[name]
    return list(values) if copy is None else [copy(value) for value in values]


class Memory:
    """Columns as lists; those of a small table on disk are read when they are asked for.

    Args:
        columns: values by name, as `kept` gives them; nobody else may change them.
        rows: how many.
        source: the same rows in Arrow, where they are there already.
    """

    def __init__(self, columns: dict[str, list[Any]], rows: int, source: Dataset | None = None) -> None:
        self._columns, self.rows, self._source = columns, rows, source

    def kept(self, name: str) -> list[Any]:
        """The column itself, which is not to be changed."""
        if name not in self._columns:
            assert self._source is not None
            self._columns[name] = kept(name, self._source[name][:] if self.rows else [])
        return self._columns[name]

    def column(self, name: str) -> list[Any]:
        """A copy of the column."""
        return _handed(name, self.kept(name))

    def row(self, index: int) -> dict[str, Any]:
        """A copy of one row.

        Raises:
            IndexError: there is none.
        """
        out = {}
        for name, copy in _HAND.items():
            value = self.kept(name)[index]
            out[name] = value if copy is None else copy(value)
        return out

    def each(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Row by row, copies of the values of these columns."""
        copies = [(self.kept(name), _HAND[name]) for name in names]
        for index in range(self.rows):
            yield tuple(values[index] if copy is None else copy(values[index]) for values, copy in copies)

    def sizes(self) -> list[int]:
        """How many responses each row has."""
        return [len(responses) for responses in self.kept("responses")]

    def take(self, places: Sequence[int]) -> Memory:
        """The rows at these places.

        Raises:
            IndexError: there is none at one of them.
        """
        return Memory({name: [self.kept(name)[i] for i in places] for name in FEATURES}, len(places))

    def replaced(self, columns: Mapping[str, Sequence[Any]]) -> Memory:
        """The same with these columns, plain values [rows] each, in the place of its own."""
        new = {name: kept(name, values) for name, values in columns.items()}
        return Memory({name: new[name] if name in new else self.kept(name) for name in FEATURES}, self.rows)

    @property
    def dataset(self) -> Dataset:
        """The rows in Arrow, made when they are first asked for."""
        if self._source is None:
            self._source = arrow({name: self.column(name) for name in FEATURES})
        return self._source


class Table:
    """Columns in Arrow, read a part at a time.

    Args:
        dataset: with the columns of `FEATURES`, be they of other types.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.rows = dataset, dataset.num_rows

    def kept(self, name: str) -> Iterator[Any]:
        """The values of a column, one after another."""
        return (value for (value,) in self.each([name]))

    def column(self, name: str) -> list[Any]:
        return list(self.kept(name))

    def row(self, index: int) -> dict[str, Any]:
        found: dict[str, Any] = self.dataset[index]
        return found

    def each(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        if not names:
            yield from [()] * self.rows
            return
        chosen = self.dataset.select_columns(list(names))
        for start in range(0, self.rows, _AT_ONCE):
            part = chosen[start : start + _AT_ONCE]
            yield from zip(*(part[name] for name in names), strict=True)

    def sizes(self) -> list[int]:
        return list(chain.from_iterable(sizes.to_pylist() for sizes in self._sizes()))

    def _sizes(self) -> Iterator[Any]:
        import pyarrow.compute as pc

        chosen = self.dataset.select_columns(["responses"]).with_format("arrow")
        for start in range(0, self.rows, _AT_ONCE):
            yield pc.list_value_length(chosen[start : start + _AT_ONCE]["responses"])

    @property
    def small(self) -> bool:
        """Whether lists will do."""
        import pyarrow.compute as pc

        if self.rows > LARGE or self.dataset.data.nbytes > LARGE_BYTES or self.dataset.features != features():
            return False
        return self.rows + sum(pc.sum(sizes).as_py() or 0 for sizes in self._sizes()) <= LARGE

    @cached_property
    def typed(self) -> Dataset:
        """The rows with the types of `FEATURES`."""
        ours, typed = self.dataset.select_columns(list(FEATURES)), features()
        with quiet():
            return ours if ours.features == typed else ours.cast(typed)

    def take(self, places: Sequence[int]) -> Memory | Table:
        there = range(self.rows)
        return opened(self.typed.select([there[i] for i in places]))

    def replaced(self, columns: Mapping[str, Sequence[Any]]) -> Memory | Table:
        with quiet():
            others = self.typed.remove_columns(list(columns)).flatten_indices()
        for name, values in columns.items():
            made = arrow({name: _handed(name, kept(name, values))}).data.column(name)
            others = others.add_column(name, made.combine_chunks(), feature=features([name])[name])
        return opened(others.select_columns(list(FEATURES)))


Columns = Memory | Table


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`, which would stand between the lines of a run."""
    import datasets

    was_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.enable_progress_bars()


def opened(dataset: Dataset) -> Columns:
    """The columns of a data set, in the way that suits its size; what was saved before a column was there has none."""
    dataset = _with_fields(dataset)
    table = Table(dataset.with_format(None) if dataset.format["type"] is not None else dataset)
    return Memory({}, table.rows, table.dataset) if table.small else table


NEWER = ("response_fields",)
"""Columns that folders of earlier versions do not have, nor the `fields` of messages."""


def _with_fields(dataset: Dataset) -> Dataset:
    """A data set of an earlier version with the columns that there are now."""
    from datasets import List

    missing = [name for name in NEWER if name not in dataset.column_names]
    prompt = dataset.features["prompt"]
    known = isinstance(prompt, List) and isinstance(prompt.feature, Mapping) and "fields" in prompt.feature
    if not missing and (known or dataset.num_rows == 0):
        return dataset
    new: dict[str, list[Any]] = {name: [None] * dataset.num_rows for name in missing}
    if not known:
        turns = dataset.with_format(None)["prompt"]
        new["prompt"] = [[{**turn, "fields": turn.get("fields")} for turn in prompt or []] for prompt in turns]
    with quiet():
        others = dataset.remove_columns([name for name in new if name in dataset.column_names])
        for name, values in new.items():
            others = others.add_column(
                name, arrow({name: values}).data.column(name).combine_chunks(), feature=features([name])[name]
            )
        return others.select_columns(list(FEATURES))


def gathered(columns: Mapping[str, Sequence[Any]], rows: int) -> Columns:
    """Columns from plain values, [rows] for every name of `FEATURES`."""
    store = Memory({name: kept(name, columns[name]) for name in FEATURES}, rows)
    return store if rows + sum(store.sizes()) <= LARGE else Table(store.dataset)


def joined(parts: Sequence[Columns]) -> Columns:
    """One after another; at least one."""
    small = [part for part in parts if isinstance(part, Memory)]
    if len(small) == len(parts) and sum(part.rows + sum(part.sizes()) for part in small) <= LARGE:
        whole = {name: list(chain.from_iterable(part.kept(name) for part in small)) for name in FEATURES}
        return Memory(whole, sum(part.rows for part in small))
    from datasets import concatenate_datasets

    return opened(concatenate_datasets([part.typed if isinstance(part, Table) else part.dataset for part in parts]))


def arrow(columns: Mapping[str, list[Any]]) -> Dataset:
    """A data set of plain values, of those columns of `FEATURES` that are given.

    Its fingerprint is a digest of the Arrow buffers: `datasets` would make one by pickling every row.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo
    from datasets.table import InMemoryTable

    declared = features(columns)
    schema = declared.arrow_schema
    table = pa.table([pa.array(columns[name], type=schema.field(name).type) for name in columns], schema=schema)
    state = hashlib.blake2b(str(declared).encode(), digest_size=8)
    for column in table.columns:
        for buffer in chain.from_iterable(chunk.buffers() for chunk in column.chunks):
            state.update(b"-" if buffer is None else memoryview(buffer))
    return Dataset(InMemoryTable(table), info=DatasetInfo(features=declared), fingerprint=state.hexdigest())
