"""Live logs are bounded, and a slow reader is told of what it missed."""

from __future__ import annotations

from buildnet.edge.logs import LogBook


async def test_every_reader_reads_everything_from_the_beginning() -> None:
    book = LogBook()
    book.append(1, 1, 0, b"a")
    first, second = book.reader(1), book.reader(1)
    assert [c.data for c in first.read_nowait()] == [b"a"]
    book.append(1, 2, 0, b"b")
    assert [c.data for c in first.read_nowait()] == [b"b"]
    assert [c.data for c in second.read_nowait()] == [b"a", b"b"]
    book.end(1)
    await first.wait_news()
    assert first.ended


async def test_a_slow_reader_is_told_of_the_gap() -> None:
    book = LogBook()
    slow = book.reader(1)
    for number in range(6):
        book.append(1, 1, number << 20, bytes(1 << 20))
    chunks = slow.read_nowait()
    assert chunks[0].gap
    assert not any(chunk.gap for chunk in chunks[1:])
    assert sum(len(chunk.data) for chunk in chunks) <= 4 << 20
    assert chunks[-1].offset == 5 << 20
