"""Native calls against a gRPC server of another make, and against bytes that are no answer at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildnet._native import Call, Link, NativeError
from buildnet.worker.stream import AHEAD_BYTES, Stream
from tests.flow.calls import Words, answer_of

PATH = "/test.Echo/Both"
Opened = Callable[..., Call]
MIB = 1 << 20


class Echo:
    """Says what it hears; some words ask for more."""

    def __init__(self) -> None:
        self.metadata: list[tuple[str, str]] = []
        self.over = asyncio.Event()
        self.hold = asyncio.Event()
        self.heard = 0

    async def both(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        self.metadata = [(key, str(value)) for key, value in context.invocation_metadata() or ()]
        try:
            async for request in requests:
                self.heard += 1
                if request.startswith(b"fail"):
                    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no, because – of ümlauts\n100%")
                if request == b"hold":
                    await self.hold.wait()
                if request.startswith(b"many "):
                    for number in range(int(request[5:])):
                        yield b"%d" % number
                else:
                    yield request
        finally:
            # Whoever leaves cancels it, or has it read the end: which of them comes first is the server's affair.
            self.over.set()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, str]]:
    echo = Echo()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 * MIB)])
    handler: Any = grpc.stream_stream_rpc_method_handler(echo.both)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Both": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield echo, f"grpc://127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture(params=["on its own connection", "on a link's"])
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    """What opens a call at a URL, in either way."""
    links: list[Link] = []

    def by_link(url: str, path: str, *, token: str = "") -> Call:
        links.append(Link(url, token=token))
        return links[-1].call(path)

    yield Call if request.param == "on its own connection" else by_link
    for link in links:
        link.close()


async def test_words_come_back_in_order(echo: tuple[Echo, str], opened: Opened) -> None:
    words = [b"", b"one", bytes(3 * MIB), *(b"%d" % number for number in range(1000))]
    assert await answer_of(opened(echo[1], PATH, token="secret"), *words) == (0, "", words)
    assert ("authorization", "Bearer secret") in echo[0].metadata


async def test_a_burst_is_given_in_bounded_batches(echo: tuple[Echo, str], opened: Opened) -> None:
    sizes: list[int] = []
    heard: list[bytes] = []

    def hear(messages: Sequence[bytes]) -> None:
        sizes.append(len(messages))
        heard.extend(messages)

    with Stream(opened(echo[1], PATH), Words(b"many 5000", closed=True), hear) as stream:
        async with asyncio.timeout(30):
            assert await stream.over == (0, "")
    assert heard == [b"%d" % number for number in range(5000)]
    assert max(sizes) <= 256


async def test_a_failure_is_told_by_code_and_text(echo: tuple[Echo, str], opened: Opened) -> None:
    failed = (9, "no, because – of ümlauts\n100%", [b"one"])
    assert await answer_of(opened(echo[1], PATH), b"one", b"fail") == failed
    code, _, _ = await answer_of(opened(echo[1], "/test.Echo/None"), b"one")
    assert code == 12


async def test_nobody_answers(opened: Opened) -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    code, text, _ = await answer_of(opened(f"grpc://127.0.0.1:{port}", PATH), b"one")
    assert (code, "refused" in text) == (14, True)


@pytest.mark.parametrize("url", ["", "127.0.0.1:1", "ftp://a:1", "grpc://a", "grpc://:1", "grpcs://a b:1"])
def test_a_url_that_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(NativeError):
        Call(url, PATH)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(NativeError, match="token"):
        Call("grpc://127.0.0.1:1", PATH, token="line\nbreak")
    with pytest.raises(NativeError, match="path"):
        Call("grpc://127.0.0.1:1", "no path")
    with pytest.raises(NativeError, match="authority"):
        Call("grpcs://127.0.0.1:1", PATH, ca_pem=b"no pem")


async def test_a_peer_that_takes_nothing_is_not_sent_without_end(echo: tuple[Echo, str], opened: Opened) -> None:
    """What waits here is asked for piece by piece, as the peer takes it."""
    piece = bytes(64 << 10)
    words = Words(b"hold", *([piece] * 1000), closed=True)
    heard: list[bytes] = []
    with Stream(opened(echo[1], PATH), words, heard.extend) as stream:
        async with asyncio.timeout(30):
            left = len(words.waiting) + 1
            while len(words.waiting) < left or echo[0].heard == 0:
                left = len(words.waiting)
                await asyncio.sleep(0.2)
            # The windows and buffers of both ends and what was asked for ahead; 62 MiB were to be sent.
            assert (1000 - left) * len(piece) < 32 * MIB + AHEAD_BYTES
            echo[0].hold.set()
            assert await stream.over == (0, "")
    assert sum(map(len, heard)) == 4 + 1000 * len(piece)


async def test_whoever_leaves_is_heard_to_leave(echo: tuple[Echo, str], opened: Opened) -> None:
    words = Words(b"one")
    heard = asyncio.Event()
    call = opened(echo[1], PATH)
    async with asyncio.timeout(30):
        with Stream(call, words, lambda _: heard.set()):
            await heard.wait()
        await echo[0].over.wait()
    assert call.turn()[2] == (1, "the call was closed")
    call.close()


async def test_what_a_hearer_raises_is_the_end(echo: tuple[Echo, str], opened: Opened) -> None:
    def hear(_: Sequence[bytes]) -> None:
        raise ValueError("not like this")

    async with asyncio.timeout(30):
        with (
            Stream(opened(echo[1], PATH), Words(b"one"), hear) as stream,
            pytest.raises(ValueError, match="not like this"),
        ):
            await stream.over


async def test_a_call_ends_with_its_link(echo: tuple[Echo, str]) -> None:
    link = Link(echo[1])
    heard = asyncio.Event()
    with Stream(link.call(PATH), Words(b"one"), lambda _: heard.set()) as stream:
        async with asyncio.timeout(30):
            await heard.wait()
            await asyncio.to_thread(link.close)
            assert await stream.over == (14, "the link was closed")
    with pytest.raises(NativeError, match="closed"):
        link.call(PATH)


async def test_a_call_that_is_dropped_while_it_dials_leaves_nothing_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        # TEST-NET-1 (RFC 5737): nobody answers.
        with Stream(Call("grpc://192.0.2.1:9", PATH), Words(b"one"), lambda _: None):
            await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) < before + 25


PREFACE = bytes.fromhex("000000040000000000")
"""An empty SETTINGS frame (RFC 9113, section 6.5)."""


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(answer=st.binary(max_size=300), polite=st.booleans(), by_link=st.booleans())
def test_any_bytes_for_an_answer_end_the_call_with_a_reason(answer: bytes, polite: bool, by_link: bool) -> None:
    async def history() -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((PREFACE if polite else b"") + answer)
            writer.write_eof()
            await writer.drain()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            url = f"grpc://127.0.0.1:{port}"
            link = Link(url)
            code, text, heard = await answer_of(link.call(PATH) if by_link else Call(url, PATH), b"one")
            await asyncio.to_thread(link.close)
            assert (code > 0, heard) == (True, [])
            assert text

    asyncio.run(history())
