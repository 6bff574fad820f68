"""Files that are there whole or not at all, and JSON in them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from alignkit.errors import DataError
from alignkit.hidden import scrubbed


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a torn one; without the secrets known."""
    content = scrubbed(text).encode("utf-8")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a process that was killed; or a link, in a folder that somebody else made
    with temporary.open("xb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def is_folder_name(name: Any) -> bool:
    """Whether a text names a folder within another, and nothing elsewhere."""
    return (
        isinstance(name, str)
        and name.strip(".") != ""
        and not set(name) & set("/\\:")
        and name.isprintable()
        and len(name.encode("utf-8", "surrogatepass")) <= 200
    )


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_lines(path: Path, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object per line.

    Args:
        path: the file.
        problems: told how many lines hold no object, which are then left out (the last line of a file that is still
            being written may be torn); None refuses such a file.

    Raises:
        DataError: without `problems`, a line that holds no object.
        OSError: the file cannot be opened.
    """
    rows, bad = [], list[int]()
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        row = _object_or_none(line)
        if row is not None:
            rows.append(row)
        elif line.strip():
            bad.append(number)
    if bad and problems is None:
        raise DataError("holds no JSON object", where=f"{path}:{bad[0]}", remedy="make the file anew")
    if bad and problems is not None:
        problems.append(f"{path.parent.name}/{path.name}: {len(bad)} line(s) cannot be read and are left out")
    return rows


def _object_or_none(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
