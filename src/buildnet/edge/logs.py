"""What attempts print is spooled to files, and each follower reads them at its own pace. The log of record is the blob.

Nobody waits for a reader: past the bounds the oldest bytes are dropped, and whoever had not read them is told of a gap.
Memory does not grow with a log; a worker keeps what was not taken, in its own files.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from buildnet.edge import log_spool
from buildnet.edge.log_spool import Extent, LogPiece, RecentPieces, Segment, SegmentReader
from buildnet.ports import Clock

log = logging.getLogger(__name__)
_T = TypeVar("_T")

# As the worker counts them (buildnet.v1.LogTaken).
_PIECE_COST_BYTES: Final = 512
_ACKNOWLEDGED_BYTES: Final = 1 << 20
_EXPIRY_EVERY_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Bounds of what is kept. `waiting_bytes_max` is of what came and is not written yet."""

    segment_bytes: int = 8 << 20
    attempt_bytes_max: int = 1 << 30
    all_bytes_max: int = 4 << 30
    waiting_bytes_max: int = 64 << 20
    ended_max: int = 10_000
    ended_kept_s: float = 600.0


class LogSource(Protocol):
    """The session that an attempt's log comes from."""

    def log_taken(self, fence: int, offsets: Sequence[int], *, resend: bool) -> None:
        """Everything before these offsets of stdout and stderr is here; `resend`: and nothing beyond them."""
        ...


@dataclass(slots=True)
class _Spool:
    fence: int
    segments: deque[Segment] = field(default_factory=deque)
    # What an earlier process left, until somebody needs it.
    left: list[Path] = field(default_factory=list)
    left_bytes: int = 0
    came: list[int] = field(default_factory=lambda: [0, 0])
    written: list[int] = field(default_factory=lambda: [0, 0])
    waiting: list[LogPiece] = field(default_factory=list)
    writing: bool = False
    source: LogSource | None = None
    asked_again: set[int] = field(default_factory=set)
    unacknowledged_bytes: int = 0
    ended_at_s: float | None = None
    listeners: list[Callable[[], None]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self.segments)

    def tell(self) -> None:
        for listener in list(self.listeners):
            listener()

    def acknowledge(self, cost_bytes: int) -> None:
        self.unacknowledged_bytes += cost_bytes
        if self.unacknowledged_bytes >= _ACKNOWLEDGED_BYTES and self.source is not None:
            self.unacknowledged_bytes = 0
            self.source.log_taken(self.fence, self.written, resend=False)


class LogBook:
    """Logs by fence, in files below one directory that belongs to this process."""

    def __init__(self, directory: Path, clock: Clock, limits: LogLimits = LogLimits()) -> None:
        self._directory = directory
        self._clock = clock
        self._limits = limits
        self._logs: dict[int, _Spool] = {}
        self._ended: deque[int] = deque()
        self._dirty: dict[int, _Spool] = {}
        self._doomed: list[Path] = []
        self._bytes = 0
        self._recent = RecentPieces()
        self._waiting_bytes = 0
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._recovering = asyncio.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="log-writer")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="log-reader")

    @classmethod
    def opened(cls, directory: Path, clock: Clock, limits: LogLimits = LogLimits()) -> LogBook:
        """With what an earlier process left, which is kept as long as if it had ended now. Blocks."""
        directory.mkdir(mode=0o700, exist_ok=True)
        book = cls(directory, clock, limits)
        for fence, paths in log_spool.found(directory).items():
            size_bytes = sum(path.stat().st_size for path in paths)
            book._logs[fence] = _Spool(fence, left=paths, left_bytes=size_bytes)
            book._bytes += size_bytes
            book.end(fence)
        return book

    def close(self) -> None:
        """Write nothing more. What is in the files stays for the next process."""
        self._writer.shutdown()
        self._readers.shutdown()

    # What comes.

    async def take(self, fence: int, piece: LogPiece, source: LogSource) -> None:
        """Keep what a worker sent. Waits only while the disk is far behind, and then holds up no one but `source`."""
        spool = self._logs.setdefault(fence, _Spool(fence))
        await self._recover(spool)
        self._keep(spool, piece, source)
        while self._waiting_bytes > self._limits.waiting_bytes_max:
            self._room.clear()
            await self._room.wait()

    def take_now(self, fence: int, piece: LogPiece, source: LogSource) -> bool:
        """The same where nothing is to be waited for; False, and nothing is done, where `take` would wait."""
        spool = self._logs.get(fence)
        if spool is None:
            spool = self._logs[fence] = _Spool(fence)
        if spool.left or self._waiting_bytes > self._limits.waiting_bytes_max:
            return False
        self._keep(spool, piece, source)
        return True

    def _keep(self, spool: _Spool, piece: LogPiece, source: LogSource) -> None:
        if spool.source is not source:
            spool.source = source
            spool.asked_again.clear()
        if spool.ended_at_s is not None:
            self._ended.remove(spool.fence)
            spool.ended_at_s = None
        self._accept(spool, piece)

    def _accept(self, spool: _Spool, piece: LogPiece) -> None:
        index = piece.stream - 1
        came = spool.came[index]
        if piece.offset > came:
            if piece.stream not in spool.asked_again and spool.source is not None:
                spool.asked_again.add(piece.stream)
                spool.source.log_taken(spool.fence, spool.came, resend=True)
            return
        spool.asked_again.discard(piece.stream)
        if piece.end <= came:
            # Sent again after a break, although it had come; it counts in the worker's window all the same.
            spool.acknowledge(len(piece.data) + _PIECE_COST_BYTES)
            return
        piece = piece.since(came)
        spool.came[index] = piece.end
        spool.waiting.append(piece)
        self._waiting_bytes += len(piece.data)
        self._dirty[spool.fence] = spool
        self._work.set()

    def end(self, fence: int) -> None:
        """No more will come, as far as is known. It is kept for a while, for those who ask later."""
        spool = self._logs.get(fence)
        if spool is None or spool.ended_at_s is not None:
            return
        spool.ended_at_s = self._clock.monotonic_s()
        spool.source = None
        self._ended.append(fence)
        if len(self._ended) > self._limits.ended_max:
            self._work.set()

    # To the disk and away from it.

    async def run(self) -> None:
        """Write what comes and drop what is old, until cancelled."""
        while True:
            # Also without news: what ended long ago is dropped.
            with suppress(TimeoutError):
                async with asyncio.timeout(_EXPIRY_EVERY_S):
                    await self._work.wait()
            self._work.clear()
            dirty, self._dirty = self._dirty, {}
            for spool in dirty.values():
                await self._write(spool)
            self._expire()
            await self._unlink_doomed()

    async def _unlink_doomed(self) -> None:
        doomed, self._doomed = self._doomed, []
        if doomed:
            await self._in(self._writer, lambda: _unlink(doomed))

    async def _write(self, spool: _Spool) -> None:
        pieces, spool.waiting = spool.waiting, []
        spool.writing = True
        size_bytes = sum(len(piece.data) for piece in pieces)
        changed: list[Segment] = []
        placed: list[tuple[int, int, LogPiece]] = []
        try:
            await self._in(self._writer, lambda: self._append(spool, pieces, changed, placed))
        except OSError as error:
            # Its readers are told of a gap, and its blob has it: the worker must not wait for this disk.
            log.warning("up to %d bytes of the log of fence %016x are not kept: %s", size_bytes, spool.fence, error)
        finally:
            spool.writing = False
            self._waiting_bytes -= size_bytes
            self._room.set()
        self._put(spool, changed)
        for number, position, piece in placed:
            self._recent.put(spool.fence, number, position, piece)
        for piece in pieces:
            spool.written[piece.stream - 1] = piece.end
        spool.acknowledge(size_bytes + _PIECE_COST_BYTES * len(pieces))
        spool.tell()

    def _append(
        self,
        spool: _Spool,
        pieces: Sequence[LogPiece],
        changed: list[Segment],
        placed: list[tuple[int, int, LogPiece]],
    ) -> None:
        """Write, and add each segment that is longer now to `changed`, and to `placed` each piece with its segment's
        number and where it begins there. In the writer's thread, alone.
        """
        last = spool.segments[-1] if spool.segments else None
        ends = list(spool.written)
        batch: list[LogPiece] = []
        batch_bytes = 0

        def flush() -> Segment | None:
            if last is None or not batch:
                return last
            changed.append(log_spool.appended(last, batch))
            placed.extend((last.number, position, piece) for position, piece in log_spool.places(last, batch))
            return changed[-1]

        for piece in pieces:
            if last is None or last.size_bytes + batch_bytes >= self._limits.segment_bytes:
                last = flush()
                batch, batch_bytes = [], 0
                number = 0 if last is None else last.number + 1
                last = log_spool.begun(self._directory, spool.fence, number, (ends[0], ends[1]))
            batch.append(piece)
            batch_bytes += len(piece.data)
            ends[piece.stream - 1] = piece.end
        flush()

    def _put(self, spool: _Spool, segments: Sequence[Segment]) -> None:
        self._bytes -= spool.size_bytes
        for segment in segments:
            if spool.segments and spool.segments[-1].number == segment.number:
                spool.segments[-1] = segment
            else:
                spool.segments.append(segment)
        self._bytes += spool.size_bytes
        # What is left without the oldest is enough: a log of just so many bytes is kept whole, whatever its records
        # take.
        while spool.segments and spool.size_bytes - spool.segments[0].size_bytes > self._limits.attempt_bytes_max:
            self._drop_first(spool)

    def _drop_first(self, spool: _Spool) -> None:
        segment = spool.segments.popleft()
        self._bytes -= segment.size_bytes
        self._doomed.append(segment.path)

    def _expire(self) -> None:
        limits = self._limits
        horizon_s = self._clock.monotonic_s() - limits.ended_kept_s
        while self._ended:
            oldest = self._logs[self._ended[0]]
            assert oldest.ended_at_s is not None
            crowded = self._bytes > limits.all_bytes_max or len(self._ended) > limits.ended_max
            if oldest.writing or oldest.waiting or (oldest.ended_at_s > horizon_s and not crowded):
                break
            self._ended.popleft()
            self._forget(oldest)
        while self._bytes > limits.all_bytes_max:
            largest = max(self._logs.values(), key=lambda spool: spool.size_bytes)
            if len(largest.segments) < 2:
                break
            self._drop_first(largest)

    def _forget(self, spool: _Spool) -> None:
        del self._logs[spool.fence]
        self._recent.forget(spool.fence)
        while spool.segments:
            self._drop_first(spool)
        if spool.left:
            self._bytes -= spool.left_bytes
            self._doomed += spool.left
            spool.left = []
        spool.tell()

    async def _recover(self, spool: _Spool) -> None:
        if not spool.left:
            return
        async with self._recovering:
            if not spool.left:
                return
            left = spool.left
            spool.writing = True
            try:
                segments, ends = await self._in(self._writer, lambda: log_spool.recovered(left))
            except OSError as error:
                log.warning("the log of fence %016x that was left here cannot be read: %s", spool.fence, error)
                segments, ends = [], (0, 0)
            finally:
                spool.writing = False
            spool.left = []
            self._bytes -= spool.left_bytes
            spool.segments.extend(segments)
            spool.came, spool.written = list(ends), list(ends)
            self._bytes += spool.size_bytes

    @staticmethod
    async def _in(threads: ThreadPoolExecutor, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(threads, call)

    # Who reads.

    async def reader(self, fence: int, offsets: Sequence[int], streams: Collection[int]) -> LogReader | None:
        """Read a log's `streams` from these offsets of stdout and stderr on; None when nothing of it is kept."""
        spool = self._logs.get(fence)
        if spool is None:
            return None
        await self._recover(spool)
        return LogReader(spool, self._recent, offsets, streams, lambda call: self._in(self._readers, call))

    async def came(self, fence: int, stream: int, size_bytes: int, stall_s: float) -> bool:
        """Whether so much of a stream was received and written, or had its turn; False once nothing of the log came for
        `stall_s`.
        """
        news = asyncio.Event()
        end_listening = self.listen(fence, news.set)
        try:
            while (spool := self._logs.get(fence)) is not None:
                await self._recover(spool)
                if spool.written[stream - 1] >= size_bytes:
                    return True
                news.clear()
                async with asyncio.timeout(stall_s):
                    await news.wait()
            return False
        except TimeoutError:
            return False
        finally:
            end_listening()

    def extents(self, fence: int) -> list[Extent]:
        """Where what is kept of a log is, the oldest first."""
        spool = self._logs.get(fence)
        return [] if spool is None else [segment.extent for segment in spool.segments]

    def listen(self, fence: int, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` at every news of a log, which need not have begun; returns what ends that."""
        spool = self._logs.get(fence)
        if spool is None:
            spool = self._logs[fence] = _Spool(fence)
        spool.listeners.append(listener)

        def end() -> None:
            spool.listeners.remove(listener)
            idle = spool.source is None and spool.ended_at_s is None and not spool.listeners
            kept = spool.segments or spool.waiting or spool.writing or spool.left
            if idle and not kept and self._logs.get(fence) is spool:
                del self._logs[fence]

        return end


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


class LogReader:
    """One reader's place in one log."""

    def __init__(
        self,
        spool: _Spool,
        recent: RecentPieces,
        offsets: Sequence[int],
        streams: Collection[int],
        in_thread: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._spool = spool
        self._recent = recent
        self.next = list(offsets)
        self._streams = frozenset(streams)
        self._in_thread = in_thread
        self._segment: SegmentReader | None = None
        self._number = -1

    async def read(self) -> list[LogPiece]:
        """What comes next, some hundred KiB at most; nothing when all that was written is read."""
        while True:
            segment = self._present()
            if segment is None:
                return []
            if self._segment is None:
                try:
                    self._segment = SegmentReader(segment.path)
                except FileNotFoundError:
                    # Dropped between the choice and the opening: the choice is another now.
                    self._number = segment.number
                    continue
                self._number = segment.number
            reader = self._segment
            if reader.position < segment.size_bytes:
                pieces = await self._next(reader, segment)
                if wanted := [kept for piece in pieces if (kept := self._wanted(piece)) is not None]:
                    return wanted
                if pieces:
                    continue
            if not self._later():
                return []
            self._close_segment()

    async def _next(self, reader: SegmentReader, segment: Segment) -> list[LogPiece]:
        """What the segment has next; nothing where that is no whole record."""
        recent = self._recent.at(self._spool.fence, segment.number, reader.position)
        if recent is not None:
            reader.passed(recent)
            return [recent]
        pieces = reader.read_cached(segment.size_bytes)
        if pieces is None:
            pieces = await self._in_thread(partial(reader.read, segment.size_bytes))
        return pieces

    @property
    def settled(self) -> bool:
        """Whether all that came is written, and so would have been read."""
        return not self._spool.waiting and not self._spool.writing

    def _present(self) -> Segment | None:
        """The segment to read from: the one that is open, else the first that may hold what is wanted."""
        segments = self._spool.segments
        if self._segment is not None:
            for segment in segments:
                if segment.number == self._number:
                    return segment
            # It was dropped while it was read. It is whole: nothing is appended to any but the last.
            return Segment(Path(), self._number, (0, 0), self._segment.size_bytes)
        chosen = None
        for segment in segments:
            if segment.number <= self._number:
                continue
            beyond = any(segment.start[stream - 1] > self.next[stream - 1] for stream in self._streams)
            if chosen is not None and (beyond or self._number >= 0):
                break
            chosen = segment
        return chosen

    def _later(self) -> bool:
        return any(segment.number > self._number for segment in self._spool.segments)

    def _wanted(self, piece: LogPiece) -> LogPiece | None:
        index = piece.stream - 1
        if piece.stream not in self._streams or piece.end <= self.next[index]:
            return None
        piece = piece.since(self.next[index])
        if piece.offset > self.next[index]:
            piece = replace(piece, gap_bytes=piece.offset - self.next[index])
        self.next[index] = piece.end
        return piece

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def close(self) -> None:
        """Let go of the files."""
        self._close_segment()
