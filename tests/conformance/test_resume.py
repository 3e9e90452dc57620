"""QueryWriteStatus and writes that go on where they broke off: never more is said to be kept than was sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs
from tests.conformance.digests import text_of
from tests.conformance.scoring import MAY, MUST, SHOULD, rule
from tests.conformance.server import CLIENTS_FAULT, Code, Server, allowed, fresh, pieces, refused

WHERE = "ByteStream.QueryWriteStatus"
PIECE = 64 * 1024
SIZE = 16 * PIECE
ATTEMPTS = 40
PAUSE_S = 0.05


@pytest.fixture
def asked(server: Server) -> Server:
    """A server that answers QueryWriteStatus; where it does not, one rule fails and the others are skipped."""
    digest = server.put(fresh())
    name = server.upload_name(digest)
    answer = allowed(lambda: server.written(name).complete, Code.UNIMPLEMENTED, Code.NOT_FOUND)
    if answer is None and refused(lambda: server.written(name)) is Code.UNIMPLEMENTED:
        pytest.skip("QueryWriteStatus is not implemented")
    return server


def committed(server: Server, name: str) -> int:
    """The committed size of an upload; 0 where the server does not know it."""
    answer = allowed(lambda: server.written(name), Code.NOT_FOUND, Code.UNIMPLEMENTED)
    return 0 if answer is None else int(answer.committed_size)


def break_off(server: Server, name: str, data: bytes, count: int) -> None:
    """Send `count` pieces, then break the call off as a lost connection would."""
    sent, ended = threading.Event(), threading.Event()

    def messages() -> Iterator[bs.WriteRequest]:
        yield from list(pieces(name, data, size=PIECE))[:count]
        sent.set()
        ended.wait(10)

    call = server.start_write(messages())
    try:
        assert sent.wait(10)
    finally:
        call.cancel()
        ended.set()


def resume(server: Server, name: str, data: bytes) -> int:
    """Go on from what is committed; a server may need a moment to see that the first call is gone."""
    for _ in range(ATTEMPTS):
        start = committed(server, name)
        messages = [
            bs.WriteRequest(resource_name=name, write_offset=at, data=data[at : at + PIECE])
            for at in range(start, len(data), PIECE)
        ] or [bs.WriteRequest(resource_name=name, write_offset=start)]
        messages[-1].finish_write = True
        size = allowed(lambda ready=messages: server.write(ready), *CLIENTS_FAULT, Code.ALREADY_EXISTS)
        if size is not None:
            return int(size)
        threading.Event().wait(PAUSE_S)
    raise AssertionError("the upload cannot be resumed")


@rule(SHOULD, WHERE, "It is implemented.")
def test_the_call_is_implemented(server: Server) -> None:
    name = server.upload_name(server.put(fresh()))
    allowed(lambda: server.written(name), Code.NOT_FOUND)


@rule(SHOULD, WHERE, "A blob that is stored is complete, and its committed size is its size.")
def test_what_is_stored_is_complete(asked: Server) -> None:
    data = fresh(1000)
    name = asked.upload_name(asked.put(data))
    answer = asked.written(name)
    assert (answer.committed_size, answer.complete) == (1000, True)


@rule(MUST, WHERE, "An upload that was finished is complete, and its committed size is its size.")
def test_a_finished_upload_is_complete(asked: Server) -> None:
    data = fresh(1000)
    name = asked.upload_name(asked.digest(data))
    asked.write(pieces(name, data))
    answer = asked.written(name)
    assert (answer.committed_size, answer.complete) == (1000, True)


@rule(MUST, WHERE, "An upload that nobody began is NOT_FOUND, or has committed nothing.")
def test_an_unknown_upload(asked: Server) -> None:
    name = asked.upload_name(asked.digest(fresh()))
    answer = allowed(lambda: asked.written(name), Code.NOT_FOUND)
    assert answer is None or (answer.committed_size, answer.complete) == (0, False)


@rule(MUST, WHERE, "A name that is no upload's is refused by a code that blames the client.")
@pytest.mark.parametrize("name", ["", "uploads", "uploads/u/blobs/xyz/1", "nothing/of/the/kind"])
def test_a_malformed_name(asked: Server, name: str) -> None:
    refused(lambda: asked.written(name))


@rule(MUST, WHERE, "After an upload broke off, no more is committed than was sent, and it is not complete.")
@pytest.mark.parametrize("count", [1, 4, 15])
def test_no_more_is_committed_than_was_sent(asked: Server, count: int) -> None:
    data = fresh(SIZE)
    name = asked.upload_name(asked.digest(data))
    break_off(asked, name, data, count)
    answer = allowed(lambda: asked.written(name), Code.NOT_FOUND)
    assert answer is None or (0 <= answer.committed_size <= count * PIECE and not answer.complete)


@rule(MUST, "ByteStream.Write", "An upload that broke off may be resumed from its committed size.")
@pytest.mark.parametrize("count", [1, 4, 15])
def test_a_broken_upload_may_be_resumed(server: Server, count: int) -> None:
    data = fresh(SIZE)
    digest = server.digest(data)
    name = server.upload_name(digest)
    break_off(server, name, data, count)
    assert resume(server, name, data) == SIZE
    assert server.read(server.name(digest)) == data


@rule(MUST, "ByteStream.Write", "An upload that broke off may be begun anew under another name.")
def test_a_broken_upload_may_be_begun_anew(server: Server) -> None:
    data = fresh(SIZE)
    digest = server.digest(data)
    break_off(server, server.upload_name(digest), data, 4)
    assert server.write(pieces(server.upload_name(digest), data)) == SIZE


@rule(MUST, "ContentAddressableStorage", "A blob whose upload broke off is absent.")
def test_a_broken_upload_is_no_blob(server: Server) -> None:
    data = fresh(SIZE)
    digest = server.digest(data)
    break_off(server, server.upload_name(digest), data, 15)
    assert server.missing(digest) == [text_of(digest)]


@rule(MUST, "WriteRequest.write_offset", "A resumed upload from beyond what is committed is an error.")
def test_a_resumed_upload_may_not_skip(server: Server) -> None:
    data = fresh(SIZE)
    name = server.upload_name(server.digest(data))
    break_off(server, name, data, 2)
    last = bs.WriteRequest(resource_name=name, write_offset=SIZE - PIECE, data=data[-PIECE:], finish_write=True)
    refused(lambda: server.write([last]))


@rule(MUST, "ContentAddressableStorage", "A resumed upload is verified as a whole, not only its last part.")
def test_a_resumed_upload_is_verified(server: Server) -> None:
    data, other = fresh(SIZE), fresh(SIZE)
    digest = server.digest(data)
    name = server.upload_name(digest)
    allowed(lambda: server.write(pieces(name, other[: 4 * PIECE], size=PIECE, finish=False)))
    start = committed(server, name)
    last = [
        bs.WriteRequest(
            resource_name=name, write_offset=at, data=data[at : at + PIECE], finish_write=at >= SIZE - PIECE
        )
        for at in range(start, SIZE, PIECE)
    ]
    if start:
        refused(lambda: server.write(last))
        assert server.missing(digest) == [text_of(digest)]
    else:
        assert server.write(last) == SIZE


@rule(MAY, WHERE, "What arrived before an upload ended early is kept.")
def test_what_arrived_is_kept(asked: Server) -> None:
    data = fresh(SIZE)
    name = asked.upload_name(asked.digest(data))
    allowed(lambda: asked.write(pieces(name, data[: 8 * PIECE], size=PIECE, finish=False)))
    assert committed(asked, name) > 0


@rule(MAY, WHERE, "Uploads of one blob under two names are told apart.")
def test_uploads_are_told_apart(asked: Server) -> None:
    data = fresh(SIZE)
    digest = asked.digest(data)
    first, second = asked.upload_name(digest), asked.upload_name(digest)
    allowed(lambda: asked.write(pieces(first, data[: 8 * PIECE], size=PIECE, finish=False)))
    assert committed(asked, second) == 0
