"""ActionService.StreamLogs: what an action prints, from wherever its reader is. No action waits for a reader.

While it runs and for a while after, what was printed comes from the spool, both streams as they came, with times. What
the spool has not comes from the result's blobs, once there is a result.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from buildnet._native import Body
from buildnet.edge.bridge import Call, Method, Parted
from buildnet.edge.log_spool import LogPiece
from buildnet.edge.logs import LogBook, LogReader
from buildnet.errors import InvalidRequest, NotFound, Overloaded
from buildnet.model.caller import Caller
from buildnet.model.digest import Digest
from buildnet.ports import Progress
from buildnet.scheduler.operation import Operation
from buildnet.scheduler.service import Scheduler
from buildnet.wire import times
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2, fleet_pb2
from buildnet.wire.actions import digest_of
from buildnet.wire.lengths import field_of

Read = Callable[[int, int], Awaitable[bytes]]
"""Bytes from an offset on, so many; fewer at the end."""
_PATH: Final = "/buildnet.v1.ActionService/StreamLogs"
# As a worker's pieces are (worker/log_progress.py).
_CHUNK_BYTES: Final = 512 << 10
# Up to this a stored log is read at once; beyond it, from a file of its own, so that memory does not grow with it.
_READ_BYTES_MAX: Final = 1 << 20
STORED_READERS_MAX: Final = 16
_BOTH: Final = frozenset({1, 2})
_DATA: Final = action_pb2.LogRecord.DATA_FIELD_NUMBER


class StoredLogs:
    """Logs as blobs.

    Args:
        read: a blob of at most 1 MiB by its digest's text. Blocks.
        export: write a blob to a path that does not exist. Blocks.
        directory: for those files; their names are gone as soon as they are open.
    """

    def __init__(self, read: Callable[[str], bytes], export: Callable[[str, Path], None], directory: Path) -> None:
        self._read = read
        self._export = export
        self._directory = directory
        self._number = 0
        self._open = 0

    @asynccontextmanager
    async def opened(self, digest: Digest) -> AsyncIterator[Read]:
        """Read a blob in pieces.

        Raises:
            Overloaded: too many large logs are being read.
            BlobsMissing: it is not there any more.
        """
        if digest.size_bytes <= _READ_BYTES_MAX:
            data = await asyncio.to_thread(self._read, digest.text)

            async def slice_of(offset: int, size_bytes: int) -> bytes:
                return data[offset : offset + size_bytes]

            yield slice_of
            return
        if self._open >= STORED_READERS_MAX:
            raise Overloaded(
                f"{STORED_READERS_MAX} large logs are being read; ask again soon, or read the blob {digest.text}"
            )
        self._open += 1
        try:
            file = await asyncio.to_thread(self._exported, digest)
            try:
                yield lambda offset, size_bytes: asyncio.to_thread(os.pread, file, size_bytes, offset)
            finally:
                os.close(file)
        finally:
            self._open -= 1

    def _exported(self, digest: Digest) -> int:
        self._number += 1
        path = self._directory / f"stored-{self._number}"
        path.unlink(missing_ok=True)
        try:
            self._export(digest.text, path)
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            path.unlink(missing_ok=True)


class ActionLogs:
    """StreamLogs. `find` names an operation that the caller may see."""

    def __init__(
        self, scheduler: Scheduler, logs: LogBook, stored: StoredLogs, find: Callable[[str, Caller], Operation]
    ) -> None:
        self._scheduler = scheduler
        self._logs = logs
        self._stored = stored
        self._find = find

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        pb = action_pb2
        return {_PATH: Method("server_stream", self.stream_logs, pb.StreamLogsRequest, pb.LogRecord, wide=True)}

    async def stream_logs(
        self, request: action_pb2.StreamLogsRequest, call: Call
    ) -> AsyncIterator[action_pb2.LogRecord | Parted]:
        """What an action prints or printed, from the request's offsets on."""
        if unknown := set(request.streams) - _BOTH:
            raise InvalidRequest(f"there is no stream {unknown.pop()}; name STDOUT or STDERR", field="streams")
        operation = self._of_request(request, call.caller)
        following = _Following(self._logs, operation, request)
        self._scheduler.follow(operation.id, following.told)
        try:
            while True:
                # What comes after this look wakes the wait below, or is read by the next turn.
                following.news.clear()
                completed = operation.progress.stage == "completed"
                await following.begin_attempt()
                while pieces := await following.read():
                    for piece in pieces:
                        if piece.gap_bytes and completed:
                            begin = piece.offset - piece.gap_bytes
                            async with aclosing(self._blob(operation, piece.stream, begin, piece.offset)) as filling:
                                async for part in filling:
                                    yield _record(part, following.fence)
                                    piece = replace(piece, gap_bytes=piece.offset - part.end)
                        yield _record(piece, following.fence)
                if completed and following.settled:
                    break
                if not request.follow and not completed:
                    return
                await following.news.wait()
            for stream in sorted(following.streams):
                begin = following.offsets[stream - 1]
                async with aclosing(self._blob(operation, stream, begin, None)) as rest:
                    async for piece in rest:
                        yield _record(piece, following.fence)
        finally:
            self._scheduler.unfollow(operation.id, following.told)
            following.close()

    def _of_request(self, request: action_pb2.StreamLogsRequest, caller: Caller) -> Operation:
        if request.id:
            return self._find(request.id, caller)
        digest = digest_of(request.action_digest)
        for operation in self._scheduler.operations():
            if operation.wanted.key.digest == digest and caller.may_see(operation.wanted.key.instance):
                return operation
        raise NotFound(f"no operation for the action {digest} is known", kind="operation", name=digest.text)

    async def _blob(
        self, operation: Operation, stream: int, begin: int, end: int | None
    ) -> AsyncGenerator[LogPiece, None]:
        """What the result's own log has from `begin` to `end`; nothing where there is no result."""
        outcome = operation.progress.outcome
        if outcome is None or outcome.result is None:
            return
        result = re.ActionResult.FromString(outcome.result)
        digest = result.stdout_digest if stream == 1 else result.stderr_digest
        if not digest.size_bytes:
            # Results that clients wrote may hold it themselves.
            raw = (result.stdout_raw if stream == 1 else result.stderr_raw)[:end]
            for start in range(begin, len(raw), _CHUNK_BYTES):
                yield LogPiece(stream, start, raw[start : start + _CHUNK_BYTES])
            return
        end = digest.size_bytes if end is None else min(end, digest.size_bytes)
        if begin >= end:
            return
        async with self._stored.opened(digest_of(digest)) as read:
            while begin < end:
                data = await read(begin, min(_CHUNK_BYTES, end - begin))
                yield LogPiece(stream, begin, data)
                begin += len(data)


class _Following:
    """One reader's place in the logs of one operation, whose attempts come one after another."""

    def __init__(self, logs: LogBook, operation: Operation, request: action_pb2.StreamLogsRequest) -> None:
        self._logs = logs
        self._operation = operation
        self.streams: Collection[int] = frozenset(request.streams) or _BOTH
        self.offsets = [request.stdout_offset, request.stderr_offset]
        self.fence = request.fence
        self.news = asyncio.Event()
        self._reader: LogReader | None = None
        self._reads = 0
        self._end_listening: Callable[[], None] = lambda: None

    def told(self, progress: Progress) -> None:
        """Hear of the operation."""
        self.news.set()

    async def begin_attempt(self) -> None:
        """Turn to the attempt that runs or ran last, if it is another than before."""
        fence = self._operation.fence
        if fence is None or fence == self._reads:
            return
        self.close()
        if self.fence not in (0, fence):
            self.offsets = [0, 0]
        self.fence = self._reads = fence
        self._end_listening = self._logs.listen(fence, self.news.set)
        self._reader = await self._logs.reader(fence, self.offsets, self.streams)

    async def read(self) -> list[LogPiece]:
        """What the spool has next; nothing when all that is there was read."""
        if self._reader is None:
            return []
        pieces = await self._reader.read()
        self.offsets = list(self._reader.next)
        return pieces

    @property
    def settled(self) -> bool:
        """Whether nothing is on its way into the spool."""
        return self._reader is None or self._reader.settled

    def close(self) -> None:
        """Let go of the attempt."""
        self._end_listening()
        self._end_listening = lambda: None
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _record(piece: LogPiece, fence: int) -> action_pb2.LogRecord | Parted:
    record = action_pb2.LogRecord(
        stream=fleet_pb2.LogStream.Name(piece.stream), offset=piece.offset, gap=piece.gap_bytes > 0, fence=fence
    )
    if piece.printed_at_unix_ms is not None:
        # By the worker's clock, through its message or what is left of it on the disk: any number.
        times.set_unix_ms(record.printed_at, piece.printed_at_unix_ms)
    if isinstance(piece.data, Body):
        return Parted(record.SerializeToString() + field_of(_DATA, len(piece.data)), piece.data)
    record.data = piece.data
    return record
