"""The log of record is made of what came live, or is uploaded: never of other bytes, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from buildnet._native import Store
from buildnet.app.stores import NativeStores
from buildnet.edge import log_record
from buildnet.edge.bridge import Call
from buildnet.edge.log_record import LogRecords
from buildnet.edge.log_spool import Extent, LogPiece
from buildnet.edge.logs import LogBook, LogLimits
from buildnet.errors import InvalidRequest, StorageFull
from buildnet.model.digest import Digest
from buildnet.testing.scheduler_fakes import ManualClock
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.actions import digest_message

CALL = Call(1, "127.0.0.1:1", [], None)
OUT, ERR = b"0123456789" * 300, b"errors" * 200


class Source:
    def log_taken(self, fence: int, offsets: object, *, resend: bool) -> None:
        raise AssertionError("so little is not acknowledged")


class Bench:
    """A spool, a store and what makes blobs of the one in the other."""

    def __init__(self, directory: Path) -> None:
        limits = LogLimits(segment_bytes=1000, attempt_bytes_max=5000)
        self.book = LogBook.opened(directory / "logs", ManualClock(), limits)
        self.store = Store(str(directory / "store"), free_bytes_min=0)
        self.records = LogRecords(self.book, NativeStores(self.store).keep_log)

    async def printed(self, stream: int, data: bytes, begin: int = 0) -> None:
        for offset in range(begin, len(data), 500):
            await self.book.take(7, LogPiece(stream, offset, data[offset : offset + 500]), Source())

    async def ask(self, data: bytes, stream: int = 1, records: LogRecords | None = None) -> tuple[bool, bool]:
        """Whether it is kept, and whether to ask again."""
        asked = fleet_pb2.KeepLogRequest(fence=7, stream=stream, digest=digest_message(Digest.of(data)))  # type: ignore[arg-type]
        answer = await (records or self.records).keep_log(asked, CALL)
        return answer.kept, answer.waits

    def has(self, data: bytes) -> bool:
        return not self.store.find_missing([Digest.of(data).text])


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(log_record, "_STALL_S", 0.05)
    bench = Bench(tmp_path)
    running = asyncio.ensure_future(bench.book.run())
    async with asyncio.timeout(20):
        yield bench
    await bench.records.close()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    bench.book.close()
    bench.store.close()


async def test_both_streams_become_blobs_without_being_sent(bench: Bench) -> None:
    await bench.printed(1, OUT[:1500])
    await bench.printed(2, ERR)
    await bench.printed(1, OUT, 1500)
    assert await bench.ask(OUT) == (True, False)
    assert await bench.ask(ERR, 2) == (True, False)
    assert bench.store.get_bytes(Digest.of(OUT).text) == OUT
    assert bench.store.get_bytes(Digest.of(ERR).text) == ERR
    assert await bench.ask(OUT) == (True, False), "asking twice is asking once"


async def test_it_waits_for_what_is_still_coming_and_whoever_asks_is_answered_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_record, "_STALL_S", 15.0)
    monkeypatch.setattr(log_record, "_ANSWER_S", 0.01)
    await bench.printed(1, OUT[:1000])
    assert await bench.ask(OUT) == (False, True)
    await bench.printed(1, OUT, 1000)
    while (answer := await bench.ask(OUT)) == (False, True):
        pass
    assert answer == (True, False)
    assert bench.has(OUT)


async def test_a_log_that_comes_no_further_is_uploaded(bench: Bench) -> None:
    assert await bench.ask(OUT) == (False, False), "nothing of it came"
    await bench.printed(1, OUT[:1000])
    assert await bench.ask(OUT) == (False, False)
    assert await bench.ask(OUT, 2) == (False, False), "it is the other stream's"
    assert not bench.has(OUT)
    assert set(bench.book._logs) == {7}, "nothing is left of asking for a log that never came"


@pytest.mark.parametrize("said", [OUT[:-1] + b"x", OUT[:-1]])
async def test_other_bytes_than_the_worker_says_are_not_kept(bench: Bench, said: bytes) -> None:
    await bench.printed(1, OUT)
    assert await bench.ask(said) == (False, False)
    assert not bench.has(said)


async def test_a_log_whose_beginning_was_dropped_is_uploaded(bench: Bench) -> None:
    long = OUT * 3
    await bench.printed(1, long)
    assert await bench.ask(long) == (False, False)
    assert not bench.has(long)


async def test_what_another_process_received_is_kept_too(bench: Bench, tmp_path: Path) -> None:
    await bench.printed(1, OUT)
    assert await bench.ask(OUT[:500]) == (False, False), "by then all of it is written"
    later = LogBook.opened(tmp_path / "logs", ManualClock())
    records = LogRecords(later, NativeStores(bench.store).keep_log)
    assert await bench.ask(OUT, records=records) == (True, False)
    await records.close()
    later.close()
    assert bench.has(OUT)


async def test_a_store_that_refuses_is_told_to_the_uploader_by_its_upload(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(digest: Digest, stream: int, extents: Sequence[Extent]) -> bool:
        raise StorageFull("the disk is full")

    await bench.printed(1, OUT)
    assert await bench.ask(OUT, records=LogRecords(bench.book, full)) == (False, False)
    assert "is to be uploaded: the disk is full" in caplog.text


async def test_only_so_many_are_kept_at_once_and_none_after_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_record, "_STALL_S", 15.0)
    monkeypatch.setattr(log_record, "_ANSWER_S", 0.0)
    monkeypatch.setattr(log_record, "KEEPING_MAX", 2)
    says = [await bench.ask(data) for data in (b"1", b"2", b"3", b"1")]
    assert says == [(False, True), (False, True), (False, False), (False, True)]
    await bench.records.close()
    assert bench.records._keeping == {}


async def test_a_stream_that_is_none_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="no stream 3"):
        await bench.ask(OUT, 3)
