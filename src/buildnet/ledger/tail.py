"""Entries that are acknowledged and not yet in the database: two short files, written in turn, every byte under a sum.

What it holds is in the database within moments, or after the next start. It knows nothing of what entries say.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Final

from buildnet._native import append_records
from buildnet.errors import LedgerCorrupt
from buildnet.files import sync_directory

FILES: Final = ("tail.0", "tail.1")
# Index of the entry, bytes of its body, CRC-32 of both and the body.
_HEADER: Final = Struct("<QII")
_SUMMED: Final = Struct("<QI")


class Tail:
    """The two files, open. One thread writes; turning and clearing may come from another."""

    def __init__(self, directory: Path, *, power: bool) -> None:
        self._power = power
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._files = [os.open(directory / name, flags, 0o644) for name in FILES]
        if power:
            sync_directory(directory)
        # How long each is: asking the file system at every append would cost as much as the writing.
        self._sizes = [os.fstat(file).st_size for file in self._files]
        self._ends = [0, 0]
        self._current = 0
        self._lock = threading.Lock()

    def append(self, first: int, bodies: Sequence[bytes]) -> None:
        """Write entries from index `first` on; with `power`, on the disk when this returns.

        Raises:
            OSError: none of them was written.
        """
        with self._lock:
            current = self._current
            file, before = self._files[current], self._sizes[current]
            try:
                size_bytes = append_records(file, first, bodies)
                if self._power:
                    os.fdatasync(file)
            except OSError:
                os.ftruncate(file, before)
                raise
            self._sizes[current] = before + size_bytes
            self._ends[current] = first + len(bodies)

    def turn(self) -> None:
        """Go on in the other file, if that is empty."""
        with self._lock:
            other = 1 - self._current
            if self._ends[other] == 0:
                self._current = other

    def clear(self, committed: int) -> None:
        """Empty what the database holds: its first `committed` entries."""
        with self._lock:
            for number, end in enumerate(self._ends):
                if 0 < end <= committed:
                    self._empty(number)

    def empty(self) -> None:
        """Forget all of it: the database holds it."""
        with self._lock:
            for number in range(len(self._files)):
                self._empty(number)

    def _empty(self, number: int) -> None:
        os.ftruncate(self._files[number], 0)
        self._sizes[number] = self._ends[number] = 0

    def close(self) -> None:
        """Close the files; what they hold stays."""
        while self._files:
            os.close(self._files.pop())


def read(directory: Path, size: int) -> list[bytes]:
    """Bodies of the entries from index `size` on that the files hold, in order.

    What a killed process was writing when it died, or lost power, is left out: it was never acknowledged.

    Raises:
        LedgerCorrupt: an entry is absent, or altered, before one that is sound.
    """
    return beyond(held(directory), size)


def held(directory: Path) -> dict[int, bytes]:
    """Every body in the files by its index, those that the database holds too included.

    Raises:
        LedgerCorrupt: as `read`.
    """
    found: dict[int, bytes] = {}
    for name in FILES:
        path = directory / name
        if path.exists():
            for index, body in _records(path.read_bytes(), name):
                if found.setdefault(index, body) != body:
                    raise LedgerCorrupt(f"entry {index} stands in the tail twice", where=f"entry {index}")
    return found


def beyond(found: dict[int, bytes], size: int) -> list[bytes]:
    """Those from index `size` on, without a gap.

    Raises:
        LedgerCorrupt: one is absent before another.
    """
    indices = sorted(index for index in found if index >= size)
    for place, index in enumerate(indices, size):
        if index != place:
            raise LedgerCorrupt(f"entry {place} is absent from the tail", where=f"entry {place}")
    return [found[index] for index in indices]


def _records(data: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        record = _record(data, at)
        if record is None:
            # Sound records beyond a damaged one were acknowledged after it, and so was that one.
            if any(_record(data, later) for later in range(at + 1, len(data) - _HEADER.size)):
                raise LedgerCorrupt(
                    f"{name} is damaged at byte {at}, and what follows it was acknowledged: restore the ledger's "
                    "directory from a copy, or move it aside to begin a new ledger",
                    where=name,
                )
            return
        yield record
        at += _HEADER.size + len(record[1])


def _record(data: bytes, at: int) -> tuple[int, bytes] | None:
    if at + _HEADER.size > len(data):
        return None
    index, length, checksum = _HEADER.unpack_from(data, at)
    start = at + _HEADER.size
    if start + length > len(data):
        return None
    body = data[start : start + length]
    return (index, body) if checksum == _sum(index, body) else None


def _sum(index: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(_SUMMED.pack(index, len(body))))
