"""The bytes of a data file as text: unpacked whatever the name says, decoded as its first bytes say."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from alignkit.errors import DataError

MAX_LINE = 64 * 2**20
"""Bytes of the longest line that is read."""

MAX_WHOLE = 2 * 2**30
"""Bytes of the largest JSON value, unpacked, that is read at once."""

PACKED = (".gz", ".bz2", ".xz", ".zst")

OTHERS = {
    b"\x93NUMPY": "an array of NumPy",
    b"SQLite": "a data base of SQLite",
    b"\x89HDF": "an HDF5 file",
    b"%PDF-": "a PDF",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    **{b"\x80" + bytes([version]): "a pickle" for version in range(2, 6)},
}
"""What files begin with that hold no rows of text, and what they are. A pickle would run code."""

_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)


def opened(path: Path) -> IO[bytes]:
    """A file, unpacked if it is packed.

    Raises:
        DataError: an archive of files, or nothing that can be read.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(6)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), remedy="check the file") from error
    if head[:2] == b"\x1f\x8b":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if head[:3] == b"BZh":
        return bz2.open(path, "rb")  # type: ignore[return-value]
    if head[:6] == b"\xfd7zXZ\x00":
        return lzma.open(path, "rb")  # type: ignore[return-value]
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import pyarrow

        unpacked: IO[bytes] = io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
        return unpacked
    if head[:4] == b"PK\x03\x04":
        raise DataError("is a zip archive", where=str(path), remedy="unpack it and give the files in it")
    known = next((what for mark, what in OTHERS.items() if head.startswith(mark)), None)
    if known:
        remedy = "write the rows as JSON lines, CSV or Parquet"
        raise DataError(f"AK-D22 is {known}, which is not read", where=str(path), remedy=remedy)
    return path.open("rb")


_TAR = slice(257, 262)
"""Where a tar archive says that it is one."""


def lines_of(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, bytes before it, the line) of every line, as UTF-8.

    Raises:
        DataError: a packed file that is torn, a line that is too long, a text that is none.
    """
    offset = number = 0
    with _utf8(path) as file:
        while True:
            try:
                line = file.readline(MAX_LINE + 1)
            except _BROKEN as error:
                raise _torn(f"{path}:{number + 1}", error) from error
            if not line:
                return
            number += 1
            if len(line) > MAX_LINE:
                what = f"a line of more than {MAX_LINE} bytes"
                raise DataError(f"AK-D23 {what}", where=f"{path}:{number}", remedy="write one row a line")
            yield number, offset, line
            offset += len(line)


def whole(path: Path) -> bytes:
    """All of a file, as UTF-8 without its mark.

    Raises:
        DataError: as `lines_of`.
    """
    with _utf8(path) as file:
        try:
            data = file.read(MAX_WHOLE + 1)
        except _BROKEN as error:
            raise _torn(str(path), error) from error
    if len(data) > MAX_WHOLE:
        remedy = "write one row a line (JSON lines) or a Parquet file"
        raise DataError(f"AK-D23 holds more than {MAX_WHOLE} bytes in one value", where=str(path), remedy=remedy)
    return data.removeprefix(codecs.BOM_UTF8)


def text_of_file(path: Path) -> str:
    """All of a file as text.

    Raises:
        DataError: as `lines_of`; bytes that are no UTF-8.
    """
    try:
        return whole(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"AK-D22 byte {error.start} is not UTF-8", where=str(path), remedy="write the file as UTF-8"
        ) from error


def _utf8(path: Path) -> IO[bytes]:
    """The bytes of a file in UTF-8; one that begins with the mark of UTF-16 or UTF-32 is decoded."""
    file = opened(path)
    try:
        head = file.read(_TAR.stop)
    except _BROKEN as error:
        file.close()
        raise _torn(f"{path}:1", error) from error
    if head[_TAR] == b"ustar":
        file.close()
        raise DataError("is a tar archive", where=str(path), remedy="unpack it and give the files in it")
    marks = (
        (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    )  # fmt: skip
    coding = next((name for mark, name in marks if head.startswith(mark)), None)
    if coding is None:
        file.close()
        return opened(path)
    with file:
        try:
            data = head + file.read(MAX_WHOLE + 1)
        except _BROKEN as error:
            raise _torn(f"{path}:1", error) from error
    try:
        return io.BytesIO(data.decode(coding).encode("utf-8"))
    except UnicodeError as error:
        what = f"AK-D22 begins with the mark of {coding.upper()} and is none ({error})"
        raise DataError(what, where=str(path), remedy="write the file as UTF-8") from error


def _torn(where: str, error: BaseException) -> DataError:
    return DataError(f"cannot be unpacked ({error})", where=where, remedy="fetch it again")
