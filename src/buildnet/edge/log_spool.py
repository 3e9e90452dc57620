"""A log on disk is segments of records in the order in which they came. A torn end is cut off, never guessed at.

It survives the end of the process, not that of the machine: the log of record is the stdout and stderr blob. All
functions block. Names are `FENCE-NUMBER.log`; numbers are little-endian.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from buildnet._native import Body, log_append, log_records

RECORD_BYTES_MAX: Final = 512 << 10
_HEADER: Final = struct.Struct("<8sQQQ")
"""Magic, fence, and where stdout and stderr stand at the beginning of the segment."""
_MAGIC: Final = b"BNLOG\x01\r\n"
_RECORD: Final = struct.Struct("<BxxxIQQ")
"""Stream (1 or 2), bytes of data, their offset in the stream, Unix milliseconds (0: not known); then the data."""
_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9]{8})\.log")
# A log is not what the last of a disk is for.
FREE_BYTES_MIN: Final = 256 << 20
# As much as one worker may have on the way: whoever reads a log as it comes finds all of it.
_RECENT_BYTES_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Bytes of stream 1 (stdout) or 2 (stderr) from `offset` on. `gap_bytes` before it are not kept. Where they are
    many they stay native (`Body`): what Python does to a log must not cost with its length.
    """

    stream: int
    offset: int
    data: bytes | Body
    printed_at_unix_ms: int | None = None
    gap_bytes: int = 0

    @property
    def end(self) -> int:
        """Where the next piece of the stream begins."""
        return self.offset + len(self.data)

    def since(self, offset: int) -> LogPiece:
        """What of it lies at `offset` or beyond."""
        cut = max(0, offset - self.offset)
        return replace(self, offset=self.offset + cut, data=self.data[cut:]) if cut else self


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of a log, `size_bytes` long; `start` is where stdout and stderr stood when it was begun."""

    path: Path
    number: int
    start: tuple[int, int]
    size_bytes: int

    @property
    def extent(self) -> Extent:
        """Where its records are."""
        return str(self.path), _HEADER.size, self.size_bytes


Extent = tuple[str, int, int]
"""A file, and where in it whole records begin and end."""


def found(directory: Path) -> dict[int, list[Path]]:
    """What an earlier process left, by fence, each log's files in their order."""
    logs: dict[int, list[Path]] = {}
    for path in sorted(directory.iterdir()):
        if (name := _NAME.fullmatch(path.name)) is not None:
            logs.setdefault(int(name[1], 16), []).append(path)
    return logs


def recovered(paths: Sequence[Path]) -> tuple[list[Segment], tuple[int, int]]:
    """The segments among `paths`, the last one cut where it is torn, and where both streams end.

    A file without a whole header of this log ends it: a process that was killed left it, and nothing came after it.
    Such a file is removed.
    """
    segments: list[Segment] = []
    for path in paths:
        if (segment := _opened(path)) is None:
            path.unlink()
            break
        segments.append(segment)
    if not segments:
        return [], (0, 0)
    last = segments[-1]
    with last.path.open("r+b") as file:
        size_bytes, ends = _scan(file.fileno(), last.start)
        file.truncate(size_bytes)
    segments[-1] = replace(last, size_bytes=size_bytes)
    return segments, ends


def _opened(path: Path) -> Segment | None:
    name = _NAME.fullmatch(path.name)
    assert name is not None, "found() chose it"
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return None
        magic, fence, stdout, stderr = _HEADER.unpack(header)
        if magic != _MAGIC or fence != int(name[1], 16):
            return None
        return Segment(path, int(name[2]), (stdout, stderr), os.fstat(file.fileno()).st_size)


def _scan(file: int, start: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Where the last whole record ends, and with it both streams."""
    total = os.fstat(file).st_size
    position = _HEADER.size
    ends = list(start)
    while position + _RECORD.size <= total:
        stream, size_bytes, offset, _ = _RECORD.unpack(os.pread(file, _RECORD.size, position))
        after = position + _RECORD.size + size_bytes
        if stream not in (1, 2) or not 0 < size_bytes <= RECORD_BYTES_MAX or after > total:
            break
        if offset < ends[stream - 1]:
            break
        ends[stream - 1] = offset + size_bytes
        position = after
    return position, (ends[0], ends[1])


def begun(directory: Path, fence: int, number: int, start: tuple[int, int]) -> Segment:
    """A new, empty segment.

    Raises:
        OSError: it cannot be written, or the disk is nearly full.
    """
    disk = os.statvfs(directory)
    if disk.f_bavail * disk.f_frsize < FREE_BYTES_MIN:
        raise OSError(errno.ENOSPC, "the disk is nearly full", str(directory))
    path = directory / f"{fence:016x}-{number:08d}.log"
    header = _HEADER.pack(_MAGIC, fence, *start)
    path.write_bytes(header)
    path.chmod(0o600)
    return Segment(path, number, start, len(header))


def appended(segment: Segment, pieces: Iterable[LogPiece]) -> Segment:
    """The segment with these pieces at its end.

    Raises:
        OSError: they could not be written; the segment is as it was.
    """
    rows = [(piece.stream, piece.offset, piece.printed_at_unix_ms or 0, piece.data) for piece in pieces]
    return replace(segment, size_bytes=log_append(str(segment.path), segment.size_bytes, rows))


def places(segment: Segment, pieces: Iterable[LogPiece]) -> Iterator[tuple[int, LogPiece]]:
    """Where each of these pieces begins in the file, once they are appended."""
    position = segment.size_bytes
    for piece in pieces:
        yield position, piece
        position += _RECORD.size + len(piece.data)


class RecentPieces:
    """The long pieces of all logs that were written last, by fence, segment and place: they need not be read again."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, int, int], LogPiece] = {}
        self._bytes = 0

    def put(self, fence: int, number: int, position: int, piece: LogPiece) -> None:
        """Remember a piece, unless it is short, and forget the oldest."""
        if isinstance(piece.data, bytes):
            return
        self._pieces[fence, number, position] = piece
        self._bytes += len(piece.data)
        while self._bytes > _RECENT_BYTES_MAX:
            self._drop(next(iter(self._pieces)))

    def _drop(self, place: tuple[int, int, int]) -> None:
        self._bytes -= len(self._pieces.pop(place).data)

    def forget(self, fence: int) -> None:
        """Forget a log: another may be kept under its fence."""
        for place in [place for place in self._pieces if place[0] == fence]:
            self._drop(place)

    def at(self, fence: int, number: int, position: int) -> LogPiece | None:
        """The piece that begins there; None where it is not known any more."""
        return self._pieces.get((fence, number, position))


class SegmentReader:
    """Reads one segment from its beginning. It keeps the file open, so that a segment that is dropped is still read."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._position = _HEADER.size

    @property
    def position(self) -> int:
        """What was read of it, in bytes."""
        return self._position

    @property
    def size_bytes(self) -> int:
        """How long the file is."""
        return os.fstat(self._file).st_size

    def passed(self, piece: LogPiece) -> None:
        """The piece that comes next is known otherwise."""
        self._position += _RECORD.size + len(piece.data)

    def read(self, size_bytes: int) -> list[LogPiece]:
        """The next pieces of the segment's first `size_bytes`; none at their end."""
        pieces = self._pieces(size_bytes, waits=True)
        assert pieces is not None, "it waits"
        return pieces

    def read_cached(self, size_bytes: int) -> list[LogPiece] | None:
        """As `read`, but never waits for the disk; None when it would have to.

        What was written a moment ago is in memory: a thread for it costs more than its bytes (preadv2(2), RWF_NOWAIT).
        """
        return self._pieces(size_bytes, waits=False)

    def _pieces(self, size_bytes: int, *, waits: bool) -> list[LogPiece] | None:
        found = log_records(self._file, self._position, size_bytes, waits)
        if found is None:
            return None
        records, used_bytes = found
        self._position += used_bytes
        return [LogPiece(stream, offset, data, unix_ms or None) for stream, offset, unix_ms, data in records]

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)
