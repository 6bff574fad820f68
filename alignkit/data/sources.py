"""Rows out of files and of what people have in hand in Python, one at a time, each with the place it came from."""

from __future__ import annotations

import csv
import glob
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alignkit.data.bytes_in import MAX_LINE, PACKED, lines_of, text_of_file
from alignkit.data.checks import Finding
from alignkit.data.messages import is_message
from alignkit.errors import DataError

Container = Literal["auto", "jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow", "datasets", "hub"]

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SUFFIXES: dict[str, Container] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".txt": "txt",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
"""What a file is, by its name; one without a known ending is taken for JSON."""

WRAPPERS = ("data", "rows", "instances", "examples", "samples", "items", "records", "train", "dataset")
"""The keys of an object under which a file may hold its rows."""


class Located(NamedTuple):
    """A row, or why there is none, and where it stood."""

    where: str
    row: dict[str, Any] | None
    finding: Finding | None = None


def container_of(source: Any, declared: str) -> str:
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
        marks = ("dataset_info.json", "state.json", "dataset_dict.json")
        return "datasets" if any((path / mark).is_file() for mark in marks) else "folder"
    if path.is_file():
        return container_of_file(path)
    if glob.has_magic(str(source)):
        return "glob"
    if _known_suffix(path) or not _HUB_NAME.fullmatch(str(source)):
        raise DataError("no such file", where=str(source), remedy="give a file, a datasets folder or a name on the hub")
    return "hub"


def container_of_file(path: Path) -> str:
    """What kind of file this is, by its name; the first bytes decide where a name says nothing."""
    known = _known_suffix(path)
    if known:
        return known
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return "jsonl"
    return "parquet" if head[:4] == b"PAR1" else "arrow" if head[:6] == b"ARROW1" else "jsonl"


def _known_suffix(path: Path) -> Container | None:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in PACKED]
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def read_rows(source: Any, form: str = "auto", split: str | None = None) -> Iterator[Located]:
    """The rows of a file, folder, hub name or list in order, as they stand there, each with its place.

    Args:
        source: what `read_groups` reads.
        form: of the source; "auto" goes by its name.
        split: of a data set.

    Raises:
        DataError: the source as a whole cannot be read; a row that cannot be is yielded with its finding.
    """
    return rows_of(source, container_of(source, form), split)


def rows_of(
    source: Any, form: str, split: str | None = None, revision: str | None = None, subset: str | None = None
) -> Iterator[Located]:
    """The rows of a source in order.

    Args:
        source: of the kind that `form` says.
        form: from `container_of`.
        split: of a data set.
        revision: of a data set on the hub: a branch, a tag, a commit.
        subset: of a data set on the hub, where it has several.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    if form == "hub":
        return _of_rows(_from_hub(str(source), split, revision, subset), f"{source}:row")
    if revision is not None or subset is not None:
        what = f"revision={revision!r} or subset={subset!r} of what is on no hub"
        raise DataError(what, where=_called(source), remedy="leave it out")
    if form == "memory":
        return _of_memory(source, split)
    if form == "datasets":
        return _of_rows(_chosen(_from_disk(str(source)), split, str(source)), f"{source}:row")
    if form == "folder":
        return _of_files(_of_split(_files_in(Path(source)), split, Path(source)))
    if split is not None:
        raise DataError(f"split={split!r} of a file, which has none", where=str(source), remedy="leave split out")
    if form == "glob":
        return _of_files(_files_of(str(source)))
    path = Path(source)
    if not path.is_file():
        raise DataError("no such file", where=str(path), remedy="check the path")
    readers: dict[str, Callable[[Path], Iterator[Located]]] = {
        "parquet": _of_parquet, "arrow": _of_arrow, "csv": _of_table, "tsv": _of_table, "txt": _of_text,
    }  # fmt: skip
    return readers.get(form, _of_json)(path)


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
        pairs: Iterable[tuple[str, Any]] = (
            pair for key, v in value.items() for pair in ((f"{name}.{key}" if name else str(key), v), (name, key))
        )
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
    try:
        finding = bad_text(row)
    except RecursionError:
        finding = Finding("D23", "", "is nested too deeply", remedy="drop the row")
    return Located(where, None if finding else dict(row), finding)


def _of_rows(rows: Iterable[Any], name: str) -> Iterator[Located]:
    for number, row in enumerate(rows):
        yield _located(f"{name} {number}", row)


# ---- JSON -------------------------------------------------------------------------------------------------------


def _of_json(path: Path) -> Iterator[Located]:
    """JSON in any of the ways that people write it: a row a line, an array, an object that holds the rows, rows over
    several lines each."""
    first = next((line for _, _, line in lines_of(path) if line.strip()), b"").removeprefix(b"\xef\xbb\xbf").strip()
    if first[:1] == b"[" or (first[:1] == b"{" and not _parses(first)):
        text = text_of_file(path)
        found, error = _values(text)
        if error is None:
            return _of_values(found, path)
        if not any(_parses(line) for line in text.splitlines() if line.strip()[:1] in ("{", "[") and len(line) > 2):
            where = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(path)
            what = f"AK-D22 one JSON value over several lines that is no strict JSON: {error}"
            raise DataError(what, where=where, remedy="correct the file")
    elif (alone := _wrapped_line(path, first)) is not None:
        return _of_values([alone], path)
    return _of_lines(path)


def _parses(line: str | bytes) -> bool:
    try:
        strict_json(line.decode("utf-8") if isinstance(line, bytes) else line)
    except ValueError as error:
        # What is JSON and not strict is a row at fault, and no part of a larger value.
        return not isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
    return True


def _values(text: str) -> tuple[list[Any], ValueError | None]:
    """The JSON values of a text, one after another."""
    found: list[Any] = []
    place, end = 0, len(text)
    try:
        while True:
            while place < end and text[place].isspace():
                place += 1
            if place == end:
                return found, None
            value, place = _DECODER.raw_decode(text, place)
            found.append(value)
    except ValueError as error:
        return found, error
    except RecursionError:
        return found, ValueError("nested too deeply")


def _of_values(values: list[Any], path: Path) -> Iterator[Located]:
    if len(values) == 1:
        values = values[0] if isinstance(values[0], list) else _unwrapped(values[0], str(path))
    return _of_rows(values, f"{path}:row")


def _wrapped_line(path: Path, first: bytes) -> Any:
    """The one object of a file of one line, where it holds rows; else None."""
    lines = (line for _, _, line in lines_of(path) if line.strip())
    next(lines, None)
    if next(lines, None) is not None:
        return None
    try:
        value = strict_json(first.decode("utf-8"))
    except ValueError:
        return None
    _refuse_splits(value, str(path))
    return value if isinstance(value, dict) and (_held(value) is not None or _is_columns(value)) else None


def _held(value: Mapping[str, Any]) -> list[Any] | None:
    """The rows that an object holds under one of the usual keys."""
    for key in WRAPPERS:
        rows = value.get(key)
        if isinstance(rows, list) and rows and all(isinstance(r, Mapping) and not is_message(r) for r in rows):
            inner = [row["row"] if isinstance(row.get("row"), Mapping) else row for row in rows]
            # What stands beside the rows and belongs to each of them is one row's business, not the file's.
            return inner if not any(isinstance(v, list) and k != key and v for k, v in value.items()) else None
    return None


def _unwrapped(value: Any, name: str) -> list[Any]:
    if not isinstance(value, Mapping):
        return [value]
    _refuse_splits(value, name)
    held = _held(value)
    if held is not None:
        return held
    return _columns_of(value, name) if _is_columns(value) else [value]


def _refuse_splits(value: Any, name: str) -> None:
    """Refuse an object with several lists of rows, such as train and test.

    Raises:
        DataError: so.
    """
    lists = value.values() if isinstance(value, Mapping) else ()
    rows = [rows for rows in lists if isinstance(rows, list) and rows and all(isinstance(r, Mapping) for r in rows)]
    if len(rows) > 1 and len(rows) == len(value) and {*map(str.lower, value)} & {"train", "test", "validation"}:
        what = f"AK-D21 holds the splits {sorted(value)} in one object"
        raise DataError(what, where=name, remedy="write one of them to a file of its own, or give its list")


def _is_columns(value: Mapping[str, Any]) -> bool:
    """Whether an object is a table, a list for each column, and no row with lists in it."""
    lists = [column for column in value.values() if isinstance(column, list | tuple)]
    if not value or len(lists) != len(value) or len({len(column) for column in lists}) != 1:
        return False
    return not any(is_message(item) for column in lists for item in column)


def _columns_of(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _of_lines(path: Path) -> Iterator[Located]:
    for number, offset, line in lines_of(path):
        if line.strip():
            yield _of_line(line, f"{path}:{number}", offset)


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


# ---- tables and text --------------------------------------------------------------------------------------------

NUMBERS = ("margin", "preference_prob")
"""Columns of a table of text that are read as numbers; the others are what their text says."""

INDEX = ""
"""What the column of row numbers is called in the tables that pandas writes."""


def _of_table(path: Path) -> Iterator[Located]:
    """A table with a head; what separates its columns is seen there. Empty cells say nothing."""
    text = text_of_file(path)
    head = text.partition("\n")[0]
    separator = max(",\t;|", key=head.count)
    csv.field_size_limit(MAX_LINE)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = next(rows, [])
        if len(names) > 1 and names[0].removeprefix("\ufeff") == "":
            names[0] = INDEX
        if not names or len({*names}) != len(names) or not all(name.strip() for name in names if name != INDEX):
            what = f"AK-D21 the first line is no head of a table: {names[:6]}"
            raise DataError(what, where=f"{path}:1", remedy="name each column once in the first line")
        for cells in rows:
            where = f"{path}:{rows.line_num}"
            if not cells:
                continue
            if len(cells) != len(names):
                what = f"has {len(cells)} cells where the table has {len(names)} columns"
                yield Located(where, None, Finding("D21", "", what, remedy="correct the line"))
                continue
            row = {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True)}
            if INDEX in row and not str(row.pop(INDEX)).isdecimal():
                what = f"the first column has no name, and holds {cells[0][:40]!r}, which is no number of a row"
                yield Located(where, None, Finding("D21", "", what, remedy="name each column in the first line"))
                continue
            yield _located(where, row)
    except csv.Error as error:
        what = f"AK-D22 is no table: {error}"
        raise DataError(what, where=f"{path}:{rows.line_num}", remedy="correct the quotes") from error


def _cell(name: str, text: str) -> Any:
    if not text:
        return None
    if name.strip().lower() in NUMBERS:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _of_text(path: Path) -> Iterator[Located]:
    """Plain text, a document a line, as the text reader of `datasets` takes it."""
    for number, offset, line in lines_of(path):
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError as error:
            what = f"byte {offset + error.start} of the file is not UTF-8"
            yield Located(where, None, Finding("D22", "", what, remedy="write the file as UTF-8"))
            continue
        if text.strip():
            yield _located(where, {"text": text})


def _of_parquet(path: Path) -> Iterator[Located]:
    import pyarrow
    from pyarrow import parquet

    try:
        yield from _of_batches(parquet.ParquetFile(path).iter_batches(batch_size=1024), path)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"is no Parquet file that can be read ({error})", where=str(path), remedy="write it again"
        ) from error


def _of_arrow(path: Path) -> Iterator[Located]:
    """Arrow as a file (Feather) or as a stream, as `datasets` writes it."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(place) for place in range(file.num_record_batches))
            except pyarrow.ArrowInvalid:
                source.seek(0)
                batches = iter(pyarrow.ipc.open_stream(source))
            yield from _of_batches(batches, path)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"is no Arrow file that can be read ({error})", where=str(path), remedy="write it again"
        ) from error


def _of_batches(batches: Iterable[Any], path: Path) -> Iterator[Located]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            yield _located(f"{path}:row {number}", row)
            number += 1


# ---- several files ----------------------------------------------------------------------------------------------


def _of_files(files: list[Path]) -> Iterator[Located]:
    for path in files:
        yield from rows_of(path, container_of_file(path))


def _files_in(folder: Path) -> list[Path]:
    """The data files of a folder and its folders, in the order of their names; hidden ones are none."""
    inside = (path for path in sorted(folder.rglob("*")) if path.is_file() and _known_suffix(path))
    found = [p for p in inside if not any(part.startswith((".", "_")) for part in p.relative_to(folder).parts)]
    if not found:
        what = "holds no data file, and is no datasets folder"
        raise DataError(
            what, where=str(folder), remedy=f"give a file, save_to_disk, or files called {', '.join(SUFFIXES)}"
        )
    return found


_SPLIT = re.compile(r"(?:^|[\W_])(train|test|validation|valid|val|dev|eval)(?:ing|uation)?(?=[\W_]|\d|$)", re.I)
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}


def _of_split(files: list[Path], split: str | None, folder: Path) -> list[Path]:
    """The files of a split, where their names tell of several, as those of a data set from the hub do.

    Raises:
        DataError: there are several and none is chosen, or there is none of that name.
    """
    names = {path: _split_of(path.relative_to(folder)) for path in files}
    known = {*names.values()}
    if split is None and len(known) < 2:
        return files
    chosen = [path for path in files if split is not None and names[path] in (split, _ALIASES.get(split))]
    if not chosen:
        what = f"has the splits {sorted(str(name or 'of no name') for name in known)}, not {split!r}"
        raise DataError(what, where=str(folder), remedy="choose one with split=, or give the files themselves")
    return chosen


def _split_of(path: Path) -> str | None:
    """Which split a file says that it is of, by its name or else by its folder's."""
    for part in (path.name, *reversed(path.parent.parts)):
        if found := _SPLIT.search(part):
            return _ALIASES.get(found[1].lower(), found[1].lower())
    return None


def _files_of(pattern: str) -> list[Path]:
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
    if not found:
        raise DataError("no such file", where=pattern, remedy="check the pattern")
    return found


# ---- what is in memory ------------------------------------------------------------------------------------------


def _called(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def _of_memory(source: Any, split: str | None) -> Iterator[Located]:
    """Rows, or what holds them: a data set with splits, a table (pandas, polars, Arrow), a dict of columns, files."""
    name = type(source).__name__
    if isinstance(source, Mapping) and source and all(hasattr(part, "column_names") for part in source.values()):
        return _of_rows(_chosen(source, split, name), "row")
    if split is not None:
        raise DataError(f"split={split!r} of what has none", where=name, remedy="leave split out")
    if isinstance(source, Mapping):
        _refuse_splits(source, name)
        if not _is_columns(source):
            what = "is one object where rows are expected"
            raise DataError(
                f"AK-D21 {what}", where=name, remedy="give a list of rows, or a dict with a list for each column"
            )
        return _of_rows(_columns_of(source, name), "row")
    for method, arguments in (("to_pylist", ()), ("to_dicts", ()), ("to_dict", ("records",))):
        if hasattr(source, method) and hasattr(source, "columns"):
            return _of_rows((_plain_row(row) for row in getattr(source, method)(*arguments)), "row")
    if not isinstance(source, Iterable) or isinstance(source, bytes | bytearray):
        raise DataError(f"AK-D21 a {name} holds no rows", where=name, remedy="give rows, a file or a data set")
    if isinstance(source, list | tuple) and source and all(isinstance(item, str | Path) for item in source):
        missing = [str(item) for item in source if not Path(item).is_file()]
        if missing:
            what = f"AK-D21 a list of texts of which {missing[0][:80]!r} is no file"
            raise DataError(what, where=name, remedy="give a list of files, or of rows such as {'prompt': …}")
        return _of_files([Path(item) for item in source])
    return _of_rows(source, "row")


def _plain_row(row: Any) -> Any:
    """A row of a table as plain values; what a table has for "nothing" is None."""
    return {str(name): _plain_value(value) for name, value in row.items()} if isinstance(row, Mapping) else row


def _plain_value(value: Any) -> Any:
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
    if isinstance(value, float) and value != value:
        return None
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    return {name: _plain_value(item) for name, item in value.items()} if isinstance(value, dict) else value


def _chosen(found: Any, split: str | None, name: str) -> Any:
    """The data set of a split, where there are several."""
    if not isinstance(found, Mapping):
        if split is not None and str(getattr(found, "split", None)) != split:
            raise DataError(f"split={split!r} of a data set without splits", where=name, remedy="leave split out")
        return found
    if len(found) == 1 and split is None:
        return next(iter(found.values()))
    if split not in found:
        raise DataError(f"has the splits {sorted(found)}, not {split!r}", where=name, remedy="choose one with split=")
    return found[split]


def _from_disk(folder: str) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is no datasets folder ({error})", where=folder, remedy="give a file, or save_to_disk"
        ) from error


def _from_hub(name: str, split: str | None, revision: str | None, subset: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, subset, split=split or "train", revision=revision)
    except Exception as error:  # of half a dozen libraries between here and the hub
        first = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = "check the name, its split, subset and revision, and the connection; or download it and give its files"
        raise DataError(
            f"is no file here, and cannot be loaded from the hub ({first})", where=name, remedy=remedy
        ) from error
