"""A stream whose two directions go without a task: order, room, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.edge.flow import ACK, SEND, WINDOW_BYTES, Duplex

Op = tuple[int, int, Any]


def duplex() -> tuple[Duplex, list[Op]]:
    ops: list[Op] = []
    return Duplex(ops.append, 1, bytes.decode), ops


async def test_requests_are_heard_at_once_and_in_order() -> None:
    stream, _ = duplex()
    heard: list[str] = []
    stream.message(b"hello")
    assert await stream.first() == "hello"
    stream.message(b"a")
    stream.attach(heard.append)
    assert heard == ["a"]
    stream.message(b"b")
    assert heard == ["a", "b"]
    stream.end()
    await stream.over


async def test_what_waits_holds_up_what_comes_after_it() -> None:
    stream, _ = duplex()
    heard: list[str] = []
    gate = asyncio.Event()

    def hear(text: str) -> Coroutine[Any, Any, None] | None:
        heard.append(text)
        return wait() if text == "slow" else None

    async def wait() -> None:
        await gate.wait()
        heard.append("done")

    stream.attach(hear)
    for body in (b"a", b"slow", b"b"):
        stream.message(body)
    stream.end()
    await asyncio.sleep(0)
    assert heard == ["a", "slow"]
    assert not stream.over.done()
    gate.set()
    await stream.over
    assert heard == ["a", "slow", "done", "b"]


@pytest.mark.parametrize("late", [False, True])
async def test_what_a_hearer_raises_ends_the_stream(late: bool) -> None:
    stream, _ = duplex()
    heard: list[str] = []

    async def fail() -> None:
        raise ValueError("late")

    def hear(text: str) -> Coroutine[Any, Any, None] | None:
        heard.append(text)
        if late:
            return fail()
        raise ValueError("now")

    stream.attach(hear)
    stream.message(b"a")
    stream.message(b"b")
    with pytest.raises(ValueError, match="late" if late else "now"):
        await stream.over
    assert heard == ["a"]


async def test_no_request_at_all() -> None:
    stream, _ = duplex()
    stream.end()
    assert await stream.first() is None


async def test_a_detached_stream_hears_nothing_and_its_work_ends() -> None:
    stream, _ = duplex()
    heard: list[str] = []

    def hear(text: str) -> Coroutine[Any, Any, None]:
        heard.append(text)
        return asyncio.sleep(3600)

    stream.attach(hear)
    stream.message(b"a")
    stream.message(b"b")
    await asyncio.sleep(0)
    stream.detach()
    stream.message(b"c")
    await asyncio.sleep(0)
    assert heard == ["a"]
    assert stream.over.cancelled()


@given(sizes=st.lists(st.integers(0, WINDOW_BYTES), max_size=12), takes=st.lists(st.booleans(), max_size=24))
def test_never_more_than_a_window_and_a_message_is_with_the_transport(sizes: list[int], takes: list[bool]) -> None:
    async def history() -> None:
        stream, ops = duplex()
        taken = 0
        waiting = list(sizes)
        for take in takes + [False, True] * len(sizes) * 2:
            if take and taken < len(ops):
                stream.credit(len(ops[taken][2]) + 16)
                taken += 1
            elif waiting:
                stream.put(bytes([len(waiting)]) * waiting.pop(0))
            with_transport = [len(body) + 16 for _, _, body in ops[taken:]]
            assert sum(with_transport[:-1]) < WINDOW_BYTES or len(with_transport) < 2
            assert stream.queued + len(ops) + len(waiting) == len(sizes)
        assert [(kind, len(body)) for _, kind, body in ops] == [(SEND, size) for size in sizes]
        assert [body[:1] for _, _, body in ops if body] == [
            bytes([len(sizes) - index]) for index, size in enumerate(sizes) if size
        ]
        await stream.sent()

    asyncio.run(history())


async def test_what_is_heard_is_acknowledged_by_halves() -> None:
    stream, ops = duplex()
    stream.attach(lambda _: None)
    for _ in range(3):
        stream.message(b"x" * (WINDOW_BYTES // 4))
    assert [(kind, size) for _, kind, size in ops] == [(ACK, WINDOW_BYTES // 2 + 32)]
