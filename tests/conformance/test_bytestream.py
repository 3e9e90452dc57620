"""ByteStream.Read and Write of plain blobs: offsets, limits, names, early ends and mismatches."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs
from tests.conformance.digests import text_of
from tests.conformance.scoring import MAY, MUST, SHOULD, rule
from tests.conformance.server import Code, Server, allowed, fresh, pieces, refused

SIZE = 1000
NAMES = "ContentAddressableStorage, resource names"


@rule(MUST, "ByteStream.Write", "A blob sent in one message is stored, and committed_size is its size.")
@pytest.mark.parametrize("size", [1, SIZE, 1 << 20])
def test_one_message_is_a_blob(server: Server, size: int) -> None:
    data = fresh(size)
    digest = server.digest(data)
    assert server.write(pieces(server.upload_name(digest), data, size=size)) == size
    assert server.read(server.name(digest)) == data


@rule(MUST, "ByteStream.Write", "A blob sent in many messages is stored, and committed_size is its size.")
def test_many_messages_are_a_blob(server: Server) -> None:
    data = fresh(SIZE)
    digest = server.digest(data)
    assert server.write(pieces(server.upload_name(digest), data, size=7)) == SIZE
    assert server.read(server.name(digest)) == data


@rule(MUST, "WriteRequest.data", "A message may carry no data.")
def test_messages_may_be_empty(server: Server) -> None:
    data = fresh(SIZE)
    name = server.upload_name(server.digest(data))
    messages = [
        bs.WriteRequest(resource_name=name),
        bs.WriteRequest(data=data[:400]),
        bs.WriteRequest(write_offset=400),
        bs.WriteRequest(write_offset=400, data=data[400:]),
        bs.WriteRequest(write_offset=SIZE, finish_write=True),
    ]
    assert server.write(messages) == SIZE


@rule(MUST, "WriteRequest.resource_name", "Later messages may repeat the name of the first.")
def test_the_name_may_be_repeated(server: Server) -> None:
    data = fresh(SIZE)
    name = server.upload_name(server.digest(data))
    messages = [
        bs.WriteRequest(resource_name=name, data=data[:400]),
        bs.WriteRequest(resource_name=name, write_offset=400, data=data[400:], finish_write=True),
    ]
    assert server.write(messages) == SIZE


@rule(MUST, "WriteRequest.resource_name", "Later messages may not name another resource than the first.")
def test_the_name_may_not_change(server: Server) -> None:
    data = fresh(SIZE)
    digest = server.digest(data)
    messages = [
        bs.WriteRequest(resource_name=server.upload_name(digest), data=data[:400]),
        bs.WriteRequest(
            resource_name=server.upload_name(server.digest(fresh(SIZE))),
            write_offset=400,
            data=data[400:],
            finish_write=True,
        ),
    ]
    refused(lambda: server.write(messages))


@rule(MUST, "ContentAddressableStorage", "The empty blob may be written.")
def test_the_empty_blob_may_be_written(server: Server) -> None:
    empty = server.digest(b"")
    assert server.write([bs.WriteRequest(resource_name=server.upload_name(empty), finish_write=True)]) == 0


@rule(MUST, "ContentAddressableStorage", "Writing what is stored ends without error, committed_size its full size.")
def test_what_is_stored_may_be_written(server: Server) -> None:
    data = fresh(SIZE)
    digest = server.put(data)
    assert server.write(pieces(server.upload_name(digest), data, size=100)) == SIZE


@rule(MUST, "ContentAddressableStorage", "Writing what is stored ends at once, however little was sent.")
def test_what_is_stored_ends_a_write_at_once(server: Server) -> None:
    data = fresh(SIZE)
    digest = server.put(data)
    assert server.write([bs.WriteRequest(resource_name=server.upload_name(digest), data=data[:10])]) == SIZE


@rule(MUST, "ContentAddressableStorage", "Uploads of the same data may go on at once; all end without error.")
def test_one_blob_may_be_written_by_many_at_once(server: Server) -> None:
    data = fresh(500_000)
    digest = server.digest(data)
    with ThreadPoolExecutor(6) as pool:
        sizes = list(pool.map(lambda _: server.write(pieces(server.upload_name(digest), data, size=9999)), range(6)))
    assert sizes == [len(data)] * 6


WRONG = {
    "other bytes": lambda data: data[::-1],
    "too few bytes": lambda data: data[:-1],
    "too many bytes": lambda data: data + b"x",
    "no bytes": lambda data: b"",
}


@rule(MUST, "ContentAddressableStorage", "A completed upload that does not match its digest is INVALID_ARGUMENT.")
@pytest.mark.parametrize("kind", WRONG)
def test_a_mismatch_is_refused(server: Server, kind: str) -> None:
    data = fresh(SIZE)
    digest = server.digest(data)
    refused(lambda: server.write(pieces(server.upload_name(digest), WRONG[kind](data))), Code.INVALID_ARGUMENT)


@rule(MUST, "ContentAddressableStorage", "An upload that does not match its digest leaves no blob behind.")
@pytest.mark.parametrize("kind", WRONG)
def test_a_mismatch_leaves_nothing(server: Server, kind: str) -> None:
    data = fresh(SIZE)
    digest = server.digest(data)
    refused(lambda: server.write(pieces(server.upload_name(digest), WRONG[kind](data))))
    assert server.missing(digest) == [text_of(digest)]


@rule(MUST, "Digest", "Size is part of a digest: a write under the right hash and a wrong size is refused.")
@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored"])
def test_a_wrong_size_is_not_written(server: Server, stored: bool) -> None:
    data = fresh(SIZE)
    digest = server.put(data) if stored else server.digest(data)
    wrong = re.Digest(hash=digest.hash, size_bytes=SIZE + 1)
    refused(lambda: server.write(pieces(server.upload_name(wrong), data)), Code.INVALID_ARGUMENT)


@rule(MUST, "WriteRequest.write_offset", "Offsets add up: a later message at another offset is an error.")
@pytest.mark.parametrize("offset", [399, 401, 0])
def test_a_later_offset_must_add_up(server: Server, offset: int) -> None:
    data = fresh(SIZE)
    messages = [
        bs.WriteRequest(resource_name=server.upload_name(server.digest(data)), data=data[:400]),
        bs.WriteRequest(write_offset=offset, data=data[400:], finish_write=True),
    ]
    refused(lambda: server.write(messages))


@rule(MUST, "WriteRequest.write_offset", "The first offset equals the committed size: beyond it is an error.")
def test_the_first_offset_may_not_skip(server: Server) -> None:
    data = fresh(SIZE)
    name = server.upload_name(server.digest(data))
    refused(lambda: server.write(pieces(name, data, first_offset=5)))


@rule(SHOULD, "ByteStream.Write", "A blob is complete only after a message with finish_write.")
def test_an_unfinished_write_is_not_a_blob(server: Server) -> None:
    data = fresh(SIZE)
    digest = server.digest(data)
    allowed(lambda: server.write(pieces(server.upload_name(digest), data, finish=False)))
    assert server.missing(digest) == [text_of(digest)]


@rule(MUST, NAMES, "What follows the size of an upload's name is the client's own and does no harm.")
@pytest.mark.parametrize("metadata", ["name.txt", "a/b/c", "blobs/uploads"])
def test_metadata_may_follow_the_size(server: Server, metadata: str) -> None:
    data = fresh(SIZE)
    digest = server.digest(data)
    assert server.write(pieces(f"{server.upload_name(digest)}/{metadata}", data)) == SIZE
    assert server.missing(digest) == []


@rule(MUST, NAMES, "One uuid may be used for uploads of different blobs.")
def test_a_uuid_may_be_used_again(server: Server) -> None:
    same = uuid.uuid4()
    for data in (fresh(SIZE), fresh(SIZE)):
        before, _, after = server.upload_name(server.digest(data)).partition("uploads/")
        name = f"{before}uploads/{same}/{after.partition('/')[2]}"
        assert server.write(pieces(name, data)) == SIZE


@rule(MUST, NAMES, "The header that repeats the resource name does no harm.")
def test_the_routing_header_does_no_harm(server: Server) -> None:
    data = fresh(SIZE)
    name = server.name(server.put(data))
    call = server.channel.unary_stream(
        "/google.bytestream.ByteStream/Read", bs.ReadRequest.SerializeToString, bs.ReadResponse.FromString
    )
    header = ("build.bazel.remote.execution.v2.resource-name", name)
    answer = call(bs.ReadRequest(resource_name=name), metadata=[*server.metadata, header], timeout=10)
    assert b"".join(m.data for m in answer) == data


@rule(MUST, "ReadRequest.read_offset", "Reading begins at the offset.")
@pytest.mark.parametrize("offset", [0, 1, 500, SIZE - 1])
def test_reading_begins_at_the_offset(server: Server, offset: int) -> None:
    data = fresh(SIZE)
    assert server.read(server.name(server.put(data)), offset) == data[offset:]


@rule(MUST, "ReadRequest.read_limit", "No more than the limit is read; 0 is no limit.")
@pytest.mark.parametrize(("offset", "limit"), [(0, 1), (3, 10), (0, SIZE), (5, 0)])
def test_no_more_than_the_limit_is_read(server: Server, offset: int, limit: int) -> None:
    data = fresh(SIZE)
    expected = data[offset : offset + limit] if limit else data[offset:]
    assert server.read(server.name(server.put(data)), offset, limit) == expected


@rule(MUST, "ReadRequest.read_limit", "It is a maximum: a limit beyond the end is no error, and what is there is read.")
def test_a_limit_beyond_the_end_is_no_error(server: Server) -> None:
    data = fresh(SIZE)
    assert server.read(server.name(server.put(data)), SIZE - 10, 100) == data[-10:]


@rule(MUST, "ReadRequest.read_offset", "Reading at the very end is no error and gives nothing.")
def test_reading_at_the_end_gives_nothing(server: Server) -> None:
    assert server.read(server.name(server.put(fresh(SIZE))), SIZE) == b""


@rule(MUST, "ReadRequest.read_offset", "An offset beyond the end is OUT_OF_RANGE.")
@pytest.mark.parametrize("beyond", [1, 1 << 40])
def test_an_offset_beyond_the_end_is_out_of_range(server: Server, beyond: int) -> None:
    name = server.name(server.put(fresh(SIZE)))
    refused(lambda: server.read(name, SIZE + beyond), Code.OUT_OF_RANGE)


@rule(MUST, "ReadRequest.read_offset", "A negative offset is OUT_OF_RANGE.")
def test_a_negative_offset_is_out_of_range(server: Server) -> None:
    name = server.name(server.put(fresh(SIZE)))
    refused(lambda: server.read(name, -1), Code.OUT_OF_RANGE)


@rule(MUST, "ReadRequest.read_limit", "A negative limit is an error.")
def test_a_negative_limit_is_an_error(server: Server) -> None:
    name = server.name(server.put(fresh(SIZE)))
    refused(lambda: server.read(name, 0, -1))


@rule(MUST, "ByteStream.Read", "An absent blob is NOT_FOUND.")
def test_an_absent_blob_is_not_found(server: Server) -> None:
    name = server.name(server.digest(fresh(SIZE)))
    refused(lambda: server.read(name), Code.NOT_FOUND)


@rule(MUST, "Digest", "Size is part of a digest: the right hash with a wrong size is not read.")
@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 0])
def test_a_wrong_size_is_not_read(server: Server, size: int) -> None:
    wrong = re.Digest(hash=server.put(fresh(SIZE)).hash, size_bytes=size)
    refused(lambda: server.read(server.name(wrong)), Code.NOT_FOUND, Code.INVALID_ARGUMENT)


@rule(MUST, "ContentAddressableStorage", "Empty blobs are always available: one is read without an upload.")
def test_the_empty_blob_is_read(server: Server) -> None:
    assert server.read(server.name(server.digest(b""))) == b""


@rule(MUST, "ByteStream.Read", "A blob larger than a gRPC message comes in messages that a stock client takes.")
def test_a_large_blob_comes_in_small_messages(server: Server) -> None:
    data = fresh(9 << 20)
    assert server.read(server.name(server.put(data))) == data


@rule(MAY, "ByteStream.Read", "Messages stay below 2 MiB, so that a reader begins before the whole is there.")
def test_messages_are_of_a_moderate_size(server: Server) -> None:
    data = fresh(5 << 20)
    assert max(map(len, server.read_pieces(server.name(server.put(data))))) <= 2 << 20
