"""Rows out of files, one at a time, each with the place it came from."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from alignkit.data.checks import Finding
from alignkit.errors import DataError

Format = Literal["auto", "jsonl", "json", "parquet", "datasets", "hub"]

MAX_LINE = 64 * 2**20
"""Bytes of the longest line that is read."""

_GZIP = b"\x1f\x8b"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}


class Located(NamedTuple):
    """A row, or why there is none, and where it stood."""

    where: str
    row: dict[str, Any] | None
    finding: Finding | None = None


def format_of(source: Any, declared: Format) -> Format | Literal["memory"]:
    """What kind of source this is.

    Raises:
        DataError: neither a file nor a folder that can be read, nor a possible name on the hub.
    """
    if not isinstance(source, str | Path):
        return "memory"
    if declared != "auto":
        return declared
    path = Path(source)
    if path.is_dir():
        return "datasets"
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    known = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if path.is_file():
        return known or "jsonl"
    if known or not _HUB_NAME.fullmatch(str(source)):
        raise DataError("no such file", where=str(source), remedy="give a file, a datasets folder or a name on the hub")
    return "hub"


def read_rows(source: Any, form: Format = "auto", split: str | None = None) -> Iterator[Located]:
    """The rows of a file, folder, hub name or list in order, as they stand there, each with its place.

    Args:
        source: what `read_groups` reads.
        form: of the source; "auto" goes by its name.
        split: of a data set.

    Raises:
        DataError: the source as a whole cannot be read; a row that cannot be is yielded with its finding.
    """
    return rows_of(source, format_of(source, form), split)


def rows_of(source: Any, form: str, split: str | None) -> Iterator[Located]:
    """The rows of a source in order.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    if form == "memory":
        return _of_rows(source, "row")
    if form in ("datasets", "hub"):
        return _of_rows(_dataset(str(source), form, split), f"{source}:row")
    if split is not None:
        raise DataError(f"split={split!r} of a file, which has none", where=str(source), remedy="leave split out")
    path = Path(source)
    if not path.is_file():
        raise DataError("no such file", where=str(path), remedy="check the path")
    if form == "parquet":
        return _of_parquet(path)
    return _of_json(path) if form == "json" else _of_lines(path)


def bad_text(value: Any, name: str = "") -> Finding | None:
    """Where a row holds what no UTF-8 file can hold, or a NUL."""
    if isinstance(value, str):
        if "\0" in value:
            return Finding("D22", name, f"a NUL at character {value.index(chr(0))}", remedy="remove it")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return Finding("D22", name, f"a lone surrogate at character {error.start}", remedy="repair the text")
        return None
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[str, Any]] = ((f"{name}.{key}" if name else str(key), v) for key, v in value.items())
    elif isinstance(value, list | tuple):
        pairs = ((f"{name}[{place}]", v) for place, v in enumerate(value))
    else:
        return None
    return next((found for key, v in pairs if (found := bad_text(v, key))), None)


def strict_json(text: str) -> Any:
    """Parse JSON that means one thing: no NaN, no infinity, no key twice.

    Raises:
        ValueError: with what is wrong and, where known, the column.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant)


def _located(where: str, row: Any) -> Located:
    if not isinstance(row, Mapping):
        what = f"is of type {type(row).__name__} where an object is expected"
        return Located(where, None, Finding("D21", "", what, remedy="give one JSON object per row"))
    finding = bad_text(row)
    return Located(where, None if finding else dict(row), finding)


def _of_rows(rows: Iterable[Any], name: str) -> Iterator[Located]:
    for number, row in enumerate(rows):
        yield _located(f"{name} {number}", row)


def _open(path: Path) -> IO[bytes]:
    """Open a file, unpacked if it is a gzip file whatever its name says."""
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _of_lines(path: Path) -> Iterator[Located]:
    offset = number = 0
    with _open(path) as file:
        while True:
            try:
                line = file.readline(MAX_LINE + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(
                    f"cannot be unpacked ({error})", where=f"{path}:{number + 1}", remedy="fetch it again"
                ) from error
            if not line:
                return
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_LINE:
                raise DataError(f"a line of more than {MAX_LINE} bytes", where=where, remedy="write one row a line")
            if line.strip():
                yield _of_line(line, where, offset)
            offset += len(line)


def _of_line(line: bytes, where: str, offset: int) -> Located:
    if offset == 0:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        return _located(where, strict_json(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        what = f"byte {offset + error.start} of the file is not UTF-8"
    except json.JSONDecodeError as error:
        what = f"is no JSON: {error.msg} at column {error.colno}"
    except ValueError as error:
        what = f"is no strict JSON: {error}"
    return Located(where, None, Finding("D22", "", what, remedy="correct the line"))


def _of_json(path: Path) -> Iterator[Located]:
    with _open(path) as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start.startswith(b"["):
            return (yield from _of_lines(path))
        file.seek(0)
        data = file.read()
    try:
        rows = strict_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start} is not UTF-8", where=str(path), remedy="write the file as UTF-8"
        ) from error
    except ValueError as error:
        raise DataError(f"is no strict JSON: {error}", where=str(path), remedy="correct the file") from error
    yield from _of_rows(rows, f"{path}:row")


def _of_parquet(path: Path) -> Iterator[Located]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield _located(f"{path}:row {number}", row)
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"is no Parquet file that can be read ({error})", where=str(path), remedy="write it again"
        ) from error


def _dataset(source: str, form: str, split: str | None) -> Any:
    import datasets

    try:
        found = (
            datasets.load_from_disk(source)
            if form == "datasets"
            else datasets.load_dataset(source, split=split or "train")
        )
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(f"cannot be loaded as a data set ({error})", where=source, remedy="check the name") from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if len(found) == 1 and split is None:
        return next(iter(found.values()))
    if split not in found:
        raise DataError(f"has the splits {sorted(found)}, not {split!r}", where=source, remedy="choose one with split=")
    return found[split]
