"""Logs are spooled within bounds; every reader reads from where it is, and is told of what is not kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildnet._native import Body
from buildnet.edge import log_spool
from buildnet.edge.log_spool import LogPiece
from buildnet.edge.logs import LogBook, LogLimits, LogReader
from buildnet.testing.scheduler_fakes import ManualClock

BOTH = (1, 2)


class Source:
    """A session that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[tuple[int, ...], bool]] = []

    def log_taken(self, fence: int, offsets: Sequence[int], *, resend: bool) -> None:
        self.told.append((tuple(offsets), resend))


@asynccontextmanager
async def opened(directory: Path, clock: ManualClock | None = None, **limits: float) -> AsyncIterator[LogBook]:
    book = LogBook.opened(directory / "logs", clock or ManualClock(), LogLimits(**limits))  # type: ignore[arg-type]
    running = asyncio.ensure_future(book.run())
    try:
        async with asyncio.timeout(20):
            yield book
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        book.close()


async def reading(book: LogBook, offsets: tuple[int, int] = (0, 0), streams: Sequence[int] = BOTH) -> LogReader:
    reader = await book.reader(1, offsets, streams)
    assert reader is not None
    return reader


async def everything(book: LogBook, reader: LogReader) -> list[LogPiece]:
    """All that came, once it is written."""
    news = asyncio.Event()
    end_listening = book.listen(1, news.set)
    found: list[LogPiece] = []
    while True:
        news.clear()
        while pieces := await reader.read():
            found += pieces
        if reader.settled:
            end_listening()
            return found
        await news.wait()


def text(pieces: Sequence[LogPiece], stream: int) -> bytes:
    return b"".join(piece.data for piece in pieces if piece.stream == stream)


async def test_readers_see_both_streams_as_they_came_with_their_times(tmp_path: Path) -> None:
    async with opened(tmp_path) as book:
        source = Source()
        pieces = [LogPiece(1, 0, b"a", 5), LogPiece(2, 0, b"b", 6), LogPiece(1, 1, b"c", None)]
        for piece in pieces:
            await book.take(1, piece, source)
        first, second = await reading(book), await reading(book)
        assert await everything(book, first) == pieces
        assert await everything(book, second) == pieces
        await book.take(1, LogPiece(2, 1, b"d", 7), source)
        assert await everything(book, first) == [LogPiece(2, 1, b"d", 7)]


async def test_a_reader_begins_where_it_says_and_sees_only_what_it_wants(tmp_path: Path) -> None:
    async with opened(tmp_path, segment_bytes=8) as book:
        for offset in range(0, 40, 4):
            await book.take(1, LogPiece(1, offset, b"abcd"), Source())
            await book.take(1, LogPiece(2, offset, b"wxyz"), Source())
        assert text(await everything(book, await reading(book, (38, 0))), 1) == b"cd"
        only = await everything(book, await reading(book, (6, 0), (1,)))
        assert only[0] == LogPiece(1, 6, b"cd")
        assert text(only, 1) == (b"abcd" * 10)[6:]
        assert text(only, 2) == b""


async def test_the_oldest_bytes_of_a_long_log_are_dropped_and_a_slow_reader_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path, segment_bytes=1000, attempt_bytes_max=5000) as book:
        source = Source()
        await book.take(1, LogPiece(1, 0, bytes(500)), source)
        slow = await reading(book)
        for number in range(1, 30):
            await book.take(1, LogPiece(1, number * 500, bytes([number]) * 500), source)
            await everything(book, await reading(book))
        found = await everything(book, slow)
        assert found[0].gap_bytes
        assert not any(piece.gap_bytes for piece in found[1:])
        assert found[-1].end == 15_000
        assert 4000 <= sum(len(piece.data) for piece in found) <= 6000
        assert sum(path.stat().st_size for path in (tmp_path / "logs").iterdir()) <= 7200


async def test_a_log_of_just_the_bound_is_kept_whole(tmp_path: Path) -> None:
    async with opened(tmp_path, segment_bytes=1000, attempt_bytes_max=5000) as book:
        for number in range(10):
            await book.take(1, LogPiece(1, number * 500, bytes([number]) * 500), Source())
        found = await everything(book, await reading(book))
        assert text(found, 1) == b"".join(bytes([number]) * 500 for number in range(10))
        assert not any(piece.gap_bytes for piece in found)


async def test_a_reader_within_a_segment_that_is_dropped_reads_it_to_its_end(tmp_path: Path) -> None:
    async with opened(tmp_path, segment_bytes=1000, attempt_bytes_max=2500) as book:
        source = Source()
        await book.take(1, LogPiece(1, 0, b"x" * 1100), source)
        reader = await reading(book)
        assert text(await everything(book, reader), 1) == b"x" * 1100
        for number in range(4):
            await book.take(1, LogPiece(1, 1100 * (number + 1), b"x" * 1100), source)
            await everything(book, await reading(book))
        found = await everything(book, reader)
        assert found[0].gap_bytes
        assert found[-1].end == 5500


async def test_what_comes_again_is_kept_once_and_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as book:
        source, later = Source(), Source()
        await book.take(1, LogPiece(1, 0, b"abc"), source)
        await book.take(1, LogPiece(1, 0, b"abcde"), source)
        await book.take(1, LogPiece(1, 9, b"jk"), source)
        await book.take(1, LogPiece(1, 11, b"lm"), source)
        assert source.told == [((5, 0), True)]
        # Another session asks again: the answer to the first one may never have come.
        await book.take(1, LogPiece(1, 9, b"jk"), later)
        assert later.told == [((5, 0), True)]
        await book.take(1, LogPiece(1, 5, b"fghi"), later)
        assert text(await everything(book, await reading(book)), 1) == b"abcdefghi"


async def test_the_worker_hears_what_is_taken_before_its_window_is_full(tmp_path: Path) -> None:
    async with opened(tmp_path) as book:
        source = Source()
        for number in range(2400):
            # Single letters: their cost counts.
            await book.take(1, LogPiece(1, number, b"x"), source)
        await everything(book, await reading(book))
        assert source.told[-1] == ((2400, 0), False)
        for number in range(2400):
            await book.take(1, LogPiece(1, number, b"x"), source)
        assert source.told[-1] == ((2400, 0), False)
        assert len(source.told) == 2


async def test_what_was_received_outlives_the_process(tmp_path: Path) -> None:
    pieces = [LogPiece(1, 0, b"a" * 900, 1), LogPiece(2, 0, b"b" * 900, 2), LogPiece(1, 900, b"c", 3)]
    async with opened(tmp_path, segment_bytes=1000) as book:
        for piece in pieces:
            await book.take(1, piece, Source())
        await everything(book, await reading(book))
    async with opened(tmp_path, segment_bytes=1000) as book:
        assert await everything(book, await reading(book)) == pieces
        source = Source()
        await book.take(1, LogPiece(1, 5000, b"x"), source)
        assert source.told == [((901, 900), True)]
        await book.take(1, LogPiece(1, 901, b"d", 4), source)
        assert await everything(book, await reading(book, (901, 900))) == [LogPiece(1, 901, b"d", 4)]


async def test_ended_logs_are_dropped_after_a_while_and_the_oldest_when_there_are_many(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock, ended_max=2, ended_kept_s=100.0) as book:
        for fence in range(1, 5):
            await book.take(fence, LogPiece(1, 0, b"x"), Source())
            book.end(fence)
        await book.take(9, LogPiece(1, 0, b"x"), Source())
        assert await written(book, 9)
        kept = [fence for fence in range(1, 5) if await book.reader(fence, (0, 0), BOTH)]
        assert kept == [3, 4]
        clock.now_s += 101
        await book.take(9, LogPiece(1, 1, b"y"), Source())
        assert await written(book, 9)
        assert await book.reader(3, (0, 0), BOTH) is None
        assert await book.reader(9, (0, 0), BOTH) is not None


async def written(book: LogBook, fence: int) -> bool:
    news = asyncio.Event()
    end_listening = book.listen(fence, news.set)
    reader = await book.reader(fence, (0, 0), BOTH)
    assert reader is not None
    while not reader.settled:
        await news.wait()
        news.clear()
    end_listening()
    # Whatever is due is dropped by the same turn of the writer, after it has told.
    await asyncio.sleep(0)
    return True


async def test_past_the_bound_of_all_logs_the_largest_loses_its_oldest_bytes(tmp_path: Path) -> None:
    async with opened(tmp_path, segment_bytes=1000, all_bytes_max=8000) as book:
        source = Source()
        await book.take(2, LogPiece(1, 0, b"small"), source)
        for number in range(20):
            await book.take(1, LogPiece(1, number * 1000, b"x" * 1000), source)
            await everything(book, await reading(book))
        assert sum(path.stat().st_size for path in (tmp_path / "logs").iterdir()) <= 10_000
        small = await book.reader(2, (0, 0), BOTH)
        assert small is not None
        assert text(await small.read(), 1) == b"small"


async def test_a_disk_that_refuses_costs_bytes_and_stalls_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, segment_bytes=1000) as book:
        source = Source()
        await book.take(1, LogPiece(1, 0, b"a" * 1200), source)
        await everything(book, await reading(book))
        monkeypatch.setattr(log_spool, "FREE_BYTES_MIN", 1 << 62)
        await book.take(1, LogPiece(1, 1200, b"b" * 1_200_000), source)
        await everything(book, await reading(book))
        assert source.told == [((1_201_200, 0), False)], "the worker goes on"
        monkeypatch.setattr(log_spool, "FREE_BYTES_MIN", 0)
        await book.take(1, LogPiece(1, 1_201_200, b"c"), source)
        found = await everything(book, await reading(book))
        assert found == [LogPiece(1, 0, b"a" * 1200), LogPiece(1, 1_201_200, b"c", gap_bytes=1_200_000)]


async def test_a_flood_waits_for_the_disk_and_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path, waiting_bytes_max=1000) as book:
        source = Source()
        for number in range(20):
            await book.take(1, LogPiece(1, number * 600, b"x" * 600), source)
            assert book._waiting_bytes <= 1000
        assert text(await everything(book, await reading(book)), 1) == b"x" * 12_000


async def test_who_is_up_to_date_is_told_without_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as book:
        await book.take(1, LogPiece(1, 0, Body(b"first"), 5), Source())
        follower = await reading(book)
        assert text(await everything(book, follower), 1) == b"first"
        await book.take(1, LogPiece(1, 5, Body(b"second"), 6), Source())
        assert text(await everything(book, await reading(book)), 1) == b"firstsecond"
        (path,) = (tmp_path / "logs").iterdir()
        path.write_bytes(path.read_bytes().replace(b"second", b"sicond"))
        (told,) = await everything(book, follower)
        assert (told.offset, bytes(told.data), told.printed_at_unix_ms) == (5, b"second", 6)
        await book.take(1, LogPiece(1, 11, b"third", 7), Source())
        assert await everything(book, follower) == [LogPiece(1, 11, b"third", 7)]


def test_of_recent_pieces_only_so_many_bytes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_spool, "_RECENT_BYTES_MAX", 400)
    recent = log_spool.RecentPieces()
    long = Body(bytes(100))
    for number in range(6):
        recent.put(1, 0, number, LogPiece(1, number * 100, long))
    recent.put(2, 0, 0, LogPiece(1, 0, b"short"))
    recent.put(3, 0, 0, LogPiece(1, 0, long))
    assert [recent.at(1, 0, number) is not None for number in range(6)] == [False, False, False, True, True, True]
    assert recent.at(2, 0, 0) is None
    recent.forget(1)
    assert recent.at(1, 0, 5) is None
    assert recent.at(3, 0, 0) is not None


def segment_of(directory: Path, pieces: Sequence[LogPiece]) -> Path:
    return log_spool.appended(log_spool.begun(directory, 1, 0, (0, 0)), pieces).path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.integers(0, 132), st.binary(max_size=40))
def test_a_torn_end_is_cut_off(tmp_path: Path, cut: int, garbage: bytes) -> None:
    pieces = [LogPiece(1, 0, b"a" * 20, 1), LogPiece(2, 0, b"b" * 20, 2), LogPiece(1, 20, b"c" * 20, 3)]
    path = segment_of(tmp_path, pieces)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)] + garbage)
    segments, ends = log_spool.recovered([path])
    reader = log_spool.SegmentReader(path)
    found = reader.read(segments[0].size_bytes)
    reader.close()
    intact = [piece for piece in pieces if piece in found]
    assert found[: len(intact)] == intact
    assert ends == tuple(max((p.end for p in found if p.stream == s), default=0) for s in BOTH)
    assert os.path.getsize(path) == segments[0].size_bytes


def test_a_file_without_a_whole_header_is_removed(tmp_path: Path) -> None:
    path = segment_of(tmp_path, [LogPiece(1, 0, b"a")])
    path.write_bytes(path.read_bytes()[:31])
    assert log_spool.recovered([path]) == ([], (0, 0))
    assert not path.exists()


def test_names_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "stored-1").write_bytes(b"x")
    path = segment_of(tmp_path, [LogPiece(1, 0, b"a")])
    assert log_spool.found(tmp_path) == {1: [path]}
