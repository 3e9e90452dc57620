"""Replies of native calls as a client reads them, and messages that end in a file, against a server of another make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from buildnet._native import Body, Call
from buildnet.client.replies import replies
from buildnet.errors import InvalidRequest, NodeDown, NotFound
from buildnet.wire._gen.google.protobuf import any_pb2
from buildnet.wire._gen.google.rpc import error_details_pb2, status_pb2
from buildnet.worker.stream import Excerpt, Stream
from tests.flow.calls import Words

PATH = "/test.Told/Some"
PIECE = bytes(range(256)) * 1024


class Told:
    """Says as many pieces as it is asked for, then perhaps fails."""

    def __init__(self) -> None:
        self.said = 0
        self.heard: list[bytes] = []

    async def some(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            self.heard.append(request)
            if request.startswith(b"say "):
                for _ in range(int(request[4:])):
                    self.said += 1
                    yield PIECE
            elif request == b"plain":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not so")
            elif request == b"exact":
                info = any_pb2.Any()
                info.Pack(error_details_pb2.ErrorInfo(reason="not_found", domain="buildnet"))
                status = status_pb2.Status(code=5, message="none here", details=[info])
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
                await context.abort(grpc.StatusCode.NOT_FOUND, "none here")
            else:
                yield request


@pytest.fixture
async def told() -> AsyncIterator[tuple[Told, str]]:
    told = Told()
    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(told.some)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Told", {"Some": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(60):
        yield told, f"grpc://127.0.0.1:{port}"
    await server.stop(None)


async def test_replies_come_in_order_the_large_ones_without_a_copy(told: tuple[Told, str]) -> None:
    small = [reply async for reply in replies(Call(told[1], PATH), b"word", told[1])]
    assert small == [b"word"]
    large = [reply async for reply in replies(Call(told[1], PATH), b"say 40", told[1])]
    assert all(isinstance(reply, Body) for reply in large)
    assert [bytes(reply) for reply in large] == [PIECE] * 40


async def test_a_slow_reader_is_waited_for_and_not_piled_up_for(told: tuple[Told, str]) -> None:
    async with aclosing(replies(Call(told[1], PATH), b"say 400", told[1])) as reading:
        await anext(reading)
        before = -1
        # It goes on for as long as the windows of both ends have room, and then stands still.
        while told[0].said > before:
            before = told[0].said
            await asyncio.sleep(0.3)
        assert told[0].said < 200
        count = 1
        async for reply in reading:
            assert len(reply) == len(PIECE)
            count += 1
        assert count == 400


async def test_failures_are_the_errors_that_they_stand_for(told: tuple[Told, str]) -> None:
    with pytest.raises(InvalidRequest, match="not so"):
        await anext(replies(Call(told[1], PATH), b"plain", told[1]))
    with pytest.raises(NotFound, match="none here"):
        await anext(replies(Call(told[1], PATH), b"exact", told[1]))
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    url = f"grpc://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()
    with pytest.raises(NodeDown, match=f"cannot reach {url}"):
        await anext(replies(Call(url, PATH), b"word", url))


async def test_the_end_of_a_message_is_read_from_its_file_when_it_is_sent(
    told: tuple[Told, str], tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"0123456789" + PIECE)
    cut: list[str] = []
    with path.open("rb") as file:
        number = file.fileno()
        words: Any = Words(
            Excerpt(b"head ", number, 3, 4, lambda: cut.append("never")),  # type: ignore[arg-type]
            Excerpt(b"none ", number, 10, len(PIECE) + 1, lambda: cut.append("short")),  # type: ignore[arg-type]
            Excerpt(b"all ", number, 10, len(PIECE), lambda: cut.append("never")),  # type: ignore[arg-type]
            closed=True,
        )
        with Stream(Call(told[1], PATH), words, lambda _: None) as stream:
            assert await stream.over == (0, "")
    assert told[0].heard == [b"head 3456", b"all " + PIECE]
    assert cut == ["short"]


def test_a_body_is_looked_at_and_cut_but_not_written_to() -> None:
    body = Body(b"0123456789")
    assert (len(body), bytes(body), bytes(body[3:5]), bytes(body[-2:])) == (10, b"0123456789", b"34", b"89")
    assert b"".join([body[:2], b"x"]) == b"01x"  # type: ignore[list-item]
    view = memoryview(body)
    assert view.readonly
    del body
    assert view[9] == ord("9"), "the view keeps it"
    with pytest.raises(IndexError):
        Body(b"0123")[::2]
