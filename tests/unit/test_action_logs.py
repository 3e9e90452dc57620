"""Where StreamLogs reads from: the spool as far as it goes, then the result's blobs; attempt after attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from buildnet._native import Body
from buildnet.client.logs import logs_request, resumed
from buildnet.client.patience import Patience
from buildnet.client.results import LogPiece as Shown
from buildnet.edge import action_logs
from buildnet.edge.action_logs import ActionLogs, StoredLogs
from buildnet.edge.bridge import Call, Parted
from buildnet.edge.log_spool import RECORD_BYTES_MAX, LogPiece
from buildnet.edge.logs import LogBook, LogLimits
from buildnet.errors import InvariantBroken, NodeDown, Overloaded
from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.digest import Digest
from buildnet.ports import Follower, Progress
from buildnet.scheduler.operation import Operation
from buildnet.testing.scheduler_fakes import ManualClock
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.actions import digest_message

CALL = Call(1, "127.0.0.1:1", [], None)
LARGE = bytes(range(256)) * 8192


class Source:
    def log_taken(self, fence: int, offsets: object, *, resend: bool) -> None:
        raise AssertionError("so little is not acknowledged")


class Bench:
    """One operation and its logs; `blobs` is the store."""

    def __init__(self, directory: Path, limits: LogLimits = LogLimits()) -> None:  # noqa: B008
        self.operation = Operation("o", Wanted(ActionKey("", Digest.of(b"action")), frozenset(), 1.0), 0)
        self.book = LogBook.opened(directory, ManualClock(), limits)
        self.blobs: dict[str, bytes] = {}
        self.reads: list[str] = []
        stored = StoredLogs(self._read, self._export, directory)
        self.service = ActionLogs(self, self.book, stored, lambda name, caller: self.operation)  # type: ignore[arg-type]

    def _read(self, digest: str) -> bytes:
        self.reads.append(digest)
        return self.blobs[digest]

    def _export(self, digest: str, path: Path) -> None:
        path.write_bytes(self.blobs[digest])

    def follow(self, operation_id: str, follower: Follower) -> None:
        self.operation.followers.append(follower)
        follower(self.operation.progress)

    def unfollow(self, operation_id: str, follower: Follower) -> None:
        self.operation.followers.remove(follower)

    def tell(self, progress: Progress, fence: int | None) -> None:
        self.operation.progress, self.operation.fence = progress, fence
        for follower in self.operation.followers:
            follower(progress)

    async def printed(self, fence: int, *pieces: LogPiece) -> None:
        for piece in pieces:
            await self.book.take(fence, piece, Source())

    def complete(self, stdout: bytes, stderr: bytes = b"") -> None:
        result = re.ActionResult()
        for data, field in ((stdout, result.stdout_digest), (stderr, result.stderr_digest)):
            if data:
                field.CopyFrom(digest_message(Digest.of(data)))
                self.blobs[Digest.of(data).text] = data
        outcome = Outcome("ok", result.SerializeToString())
        self.tell(Progress("completed", outcome), self.operation.fence)

    def stream(self, **fields: object) -> AsyncIterator[action_pb2.LogRecord]:
        request = action_pb2.StreamLogsRequest(id="o", **fields)  # type: ignore[arg-type]
        return self.service.stream_logs(request, CALL)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "logs", LogLimits(segment_bytes=64, attempt_bytes_max=200))
    running = asyncio.ensure_future(bench.book.run())
    async with asyncio.timeout(20):
        yield bench
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    bench.book.close()
    assert bench.operation.followers == []


def told(record: action_pb2.LogRecord) -> tuple[int, int, int, bytes]:
    return record.fence, record.stream, record.offset, record.data


async def test_another_attempt_is_read_from_its_beginning(bench: Bench) -> None:
    reader = bench.stream(follow=True)
    first = asyncio.ensure_future(anext(reader))
    bench.tell(Progress("executing"), 1)
    await bench.printed(1, LogPiece(1, 0, b"lost"))
    assert told(await first) == (1, 1, 0, b"lost")
    second = asyncio.ensure_future(anext(reader))
    bench.tell(Progress("queued"), None)
    bench.tell(Progress("executing"), 2)
    await bench.printed(2, LogPiece(1, 0, b"again"))
    assert told(await second) == (2, 1, 0, b"again")
    bench.complete(b"again")
    assert [told(record) async for record in reader] == []
    # Whoever had read the lost attempt, and asks only now.
    late = [told(record) async for record in bench.stream(stdout_offset=4, fence=1)]
    assert late == [(2, 1, 0, b"again")]


async def test_what_the_spool_has_not_comes_from_the_blobs(bench: Bench) -> None:
    bench.tell(Progress("executing"), 1)
    await bench.printed(1, LogPiece(1, 0, b"abc", 5))
    bench.complete(b"abcdef", b"err")
    records = [record async for record in bench.stream()]
    assert [told(record) for record in records] == [(1, 1, 0, b"abc"), (1, 1, 3, b"def"), (1, 2, 0, b"err")]
    assert [record.HasField("printed_at") for record in records] == [True, False, False]
    bench.reads.clear()
    assert [told(record) async for record in bench.stream(stdout_offset=6, streams=[1])] == []
    assert bench.reads == []


async def test_what_the_spool_dropped_is_filled_from_the_blob_once_there_is_one(bench: Bench) -> None:
    text = bytes(range(250))
    bench.tell(Progress("executing"), 1)
    for offset in range(0, 250, 50):
        await bench.printed(1, LogPiece(1, offset, text[offset : offset + 50], 5))
    live = bench.stream(follow=True)
    assert (await anext(live)).gap
    await live.aclose()  # type: ignore[attr-defined]
    bench.complete(text)
    records = [record async for record in bench.stream(stdout_offset=5)]
    assert b"".join(record.data for record in records) == text[5:]
    assert not any(record.gap for record in records)
    assert [record.HasField("printed_at") for record in records][:2] == [False, True]


async def test_a_large_stored_log_is_read_in_pieces_and_leaves_no_file(bench: Bench, tmp_path: Path) -> None:
    bench.complete(LARGE)
    records = [record async for record in bench.stream(stdout_offset=10)]
    assert b"".join(record.data for record in records) == LARGE[10:]
    assert records[0].offset == 10
    assert max(len(record.data) for record in records) <= RECORD_BYTES_MAX
    assert list((tmp_path / "logs").iterdir()) == []


async def test_only_so_many_read_large_stored_logs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action_logs, "STORED_READERS_MAX", 1)
    bench.complete(LARGE)
    first = bench.stream()
    await anext(first)
    with pytest.raises(Overloaded, match="ask again soon"):
        await anext(bench.stream())
    await first.aclose()  # type: ignore[attr-defined]
    assert (await anext(bench.stream())).offset == 0


async def test_a_client_goes_on_where_the_connection_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []
    answers: list[list[action_pb2.LogRecord | NodeDown]] = [
        [action_pb2.LogRecord(stream=1, offset=0, data=b"ab", fence=4), NodeDown("gone", url="")],  # type: ignore[arg-type]
        [NodeDown("gone", url="")],
        [
            action_pb2.LogRecord(stream=2, offset=0, data=b"e", fence=4),  # type: ignore[arg-type]
            action_pb2.LogRecord(stream=1, offset=0, data=b"again", fence=5),  # type: ignore[arg-type]
            NodeDown("gone", url=""),
        ],
        [action_pb2.LogRecord(stream=1, offset=5, data=b"!", fence=5)],  # type: ignore[arg-type]
    ]

    async def records(encoded: bytes) -> AsyncGenerator[bytes, None]:
        request = action_pb2.StreamLogsRequest.FromString(encoded)
        asked.append((request.fence, request.stdout_offset, request.stderr_offset))
        for answer in answers.pop(0):
            if isinstance(answer, NodeDown):
                raise answer
            yield answer.SerializeToString()

    monkeypatch.setattr("buildnet.client.patience._FIRST_S", 0)
    said: list[str] = []
    following = resumed(records, request(), Patience(60).absence(), lambda failure: said.append(failure.message))
    pieces: list[Shown] = [piece async for piece in following]
    assert [piece.data for piece in pieces] == [b"ab", b"e", b"again", b"!"]
    assert asked == [(0, 0, 0), (4, 2, 0), (4, 2, 0), (5, 5, 0)]
    assert said == ["gone", "gone"], "once for each absence"


def request() -> action_pb2.StreamLogsRequest:
    return logs_request("o", True, (), (0, 0), 0)


async def never(_: bytes) -> AsyncGenerator[bytes, None]:
    raise NodeDown("gone", url="")
    yield


@pytest.mark.parametrize(("reached", "away_s"), [(False, 60.0), (True, 0.0)], ids=["never there", "for too long"])
async def test_a_client_gives_up_a_server_that_stays_away(reached: bool, away_s: float) -> None:
    patience = Patience(away_s)
    patience.reached = reached
    said: list[NodeDown] = []
    with pytest.raises(NodeDown):
        async for _ in resumed(never, request(), patience.absence(), said.append):
            pass
    assert said == [], "nothing is made again"


async def test_a_reply_that_is_no_record_is_no_log() -> None:
    async def records(_: bytes) -> AsyncGenerator[bytes, None]:
        yield b"\xff"

    with pytest.raises(InvariantBroken, match="no piece of a log"):
        await anext(resumed(records, request(), Patience(60).absence()))


async def test_a_long_piece_is_a_record_whose_bytes_were_never_looked_at(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "long")
    data = LARGE[:RECORD_BYTES_MAX]
    bench.tell(Progress("executing"), 1)
    await bench.printed(1, LogPiece(1, 0, Body(data), 5), LogPiece(1, len(data), b"end", 6))
    running = asyncio.ensure_future(bench.book.run())
    async with asyncio.timeout(20):
        reader = bench.stream(follow=True, stdout_offset=7)
        long, end = await anext(reader), await anext(reader)
        await reader.aclose()  # type: ignore[attr-defined]
    running.cancel()
    bench.book.close()
    assert isinstance(long, Parted)
    record = action_pb2.LogRecord.FromString(long.head + bytes(long.rest))
    assert (told(record), record.printed_at.ToMilliseconds()) == ((1, 1, 7, data[7:]), 5)
    assert told(end) == (1, 1, len(data), b"end")
