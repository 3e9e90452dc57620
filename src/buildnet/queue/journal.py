"""Rows that are kept and not yet in the database: a line for each write, summed, in files that go once it has them.

Lines are written in the order of the calls. It knows nothing of what rows mean.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from buildnet.errors import StateCorrupt
from buildnet.files import sync_directory

Row = tuple[str, tuple[Any, ...]]
"""What is written, and with which values."""

_PREFIX: Final = "journal."
_SUM_BYTES: Final = 9
_BYTES: Final = "base64"
# The end of one write, whatever should end its line, and the beginning of the next.
_SEAM: Final = re.compile(rb"\](?=.[0-9a-f]{8} \[)", re.DOTALL)


class Journal:
    """The newest file of a directory, to be written; those before it wait to be removed."""

    def __init__(self, directory: Path, *, syncs: bool) -> None:
        """`syncs`: what is written is on the disk when `append` returns, and not in the page cache only."""
        self._directory = directory
        self._syncs = syncs
        self._number = max(map(_number_of, _files(directory)), default=0)
        self._file: int | None = None
        self._size_bytes = 0
        self._lock = threading.Lock()

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows: all of them or none.

        Raises:
            OSError: none of them was written.
            TypeError: a value has no form.
        """
        data = orjson.dumps(list(rows), default=_encoded)
        with self._lock:
            self._append(_sum_of(data) + data + b"\n")

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._open()
        assert self._file is not None
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._syncs:
                os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size_bytes)
            raise
        self._size_bytes += len(line)

    def turn(self) -> list[Path]:
        """Go on in a new file, and return those before it: to be removed once the database has what they hold."""
        with self._lock:
            self._close()
            return _files(self._directory)

    def close(self) -> None:
        """Close the file; what it holds stays."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        self._number += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._directory / f"{_PREFIX}{self._number:016d}", flags, 0o600)
        self._size_bytes = 0
        if self._syncs:
            # Else the file itself may be gone with the power, and all that it holds.
            sync_directory(self._directory)


def read(directory: Path) -> Iterator[Row]:
    """What earlier processes wrote and the database may lack, in order.

    The end of a file that a killed process, or a loss of power, left half written is left out: nobody was told of it.

    Raises:
        StateCorrupt: a line is damaged before one that is sound.
    """
    for path in _files(directory):
        # After the last end of a line comes what was never ended.
        *lines, unended = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            rows = _rows_of(line)
            if rows is None:
                if number == len(lines) and not _is_more_than_one(line):
                    break
                raise _damaged(path, number)
            yield from rows
        if _is_more_than_one(unended):
            raise _damaged(path, len(lines) + 1)


def remove(paths: Iterable[Path]) -> None:
    """Remove files that the database has all of."""
    for path in paths:
        path.unlink(missing_ok=True)


def _damaged(path: Path, line: int) -> StateCorrupt:
    return StateCorrupt(
        f"{path} is damaged in line {line}; restore it from a copy, or move it aside: what it holds is then asked for "
        "again",
        path=str(path),
    )


def _is_more_than_one(line: bytes) -> bool:
    """Whether it begins with a sound write whose end of line was altered: what was half written does not."""
    told, data = line[:_SUM_BYTES], line[_SUM_BYTES:]
    return any(told == _sum_of(data[: seam.end()]) for seam in _SEAM.finditer(data))


def _sum_of(data: bytes) -> bytes:
    """What stands before a write in its line."""
    return b"%08x " % zlib.crc32(data)


def _rows_of(line: bytes) -> list[Row] | None:
    data = line[_SUM_BYTES:]
    if line[:_SUM_BYTES] != _sum_of(data):
        return None
    return [(kind, tuple(map(_decoded, values))) for kind, values in orjson.loads(data)]


def _encoded(value: Any) -> dict[str, str]:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    raise TypeError(f"the journal has no form for {type(value).__name__}")


def _decoded(value: Any) -> Any:
    return base64.b64decode(value[_BYTES]) if isinstance(value, dict) else value


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit())


def _number_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))
