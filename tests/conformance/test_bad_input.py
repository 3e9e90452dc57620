"""What no server may take, and what it may not trip over: the client is told, and the server is not unwell."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs
from tests.conformance.digests import text_of
from tests.conformance.scoring import MUST, SHOULD, rule
from tests.conformance.server import (
    ABSENT,
    CAS,
    INVALID,
    UNKNOWN_FIELD,
    Code,
    Server,
    allowed,
    fresh,
    pieces,
    refused,
)

HEADER = "build.bazel.remote.execution.v2.requestmetadata-bin"
BAD: dict[str, Callable[[re.Digest], re.Digest]] = {
    "upper-case": lambda d: re.Digest(hash=d.hash.upper(), size_bytes=d.size_bytes),
    "short": lambda d: re.Digest(hash=d.hash[:-1], size_bytes=d.size_bytes),
    "long": lambda d: re.Digest(hash=d.hash + "0", size_bytes=d.size_bytes),
    "not hex": lambda d: re.Digest(hash="g" * len(d.hash), size_bytes=d.size_bytes),
    "empty": lambda d: re.Digest(size_bytes=d.size_bytes),
    "path": lambda d: re.Digest(hash="../" * (len(d.hash) // 3) + "x" * (len(d.hash) % 3), size_bytes=d.size_bytes),
    "negative size": lambda d: re.Digest(hash=d.hash, size_bytes=-1),
    "not ASCII": lambda d: re.Digest(hash="é" * (len(d.hash) // 2), size_bytes=d.size_bytes),
}
bad_digests = pytest.mark.parametrize("kind", BAD)


def letters(server: Server) -> tuple[re.Digest, bytes]:
    """New bytes whose hash holds a letter, so that upper case is another text."""
    for _ in range(100):
        data = fresh()
        if server.digest(data).hash.upper() != server.digest(data).hash:
            return server.digest(data), data
    raise AssertionError("a hundred hashes without a letter")


@rule(MUST, "Digest.hash", "Lower-case hex of full length: data under anything else is not stored.")
@bad_digests
def test_a_malformed_digest_is_not_stored(server: Server, kind: str) -> None:
    digest, data = letters(server)
    wrong = BAD[kind](digest)
    statuses = allowed(lambda: server.update((wrong, data)))
    assert statuses is None or 0 not in statuses.values()


@rule(SHOULD, "Digest.hash", "A malformed digest in a question is INVALID_ARGUMENT.")
@bad_digests
def test_a_malformed_digest_is_not_looked_for(server: Server, kind: str) -> None:
    wrong = BAD[kind](letters(server)[0])
    refused(lambda: server.missing(wrong), Code.INVALID_ARGUMENT)


@rule(SHOULD, "Digest.hash", "A malformed digest in a batch to read is INVALID_ARGUMENT, or absent.")
@bad_digests
def test_a_malformed_digest_is_not_read(server: Server, kind: str) -> None:
    digest, data = letters(server)
    server.put(data)
    wrong = BAD[kind](digest)
    answers = allowed(lambda: server.read_batch(wrong), Code.INVALID_ARGUMENT)
    assert answers is None or [a.status.code in (INVALID, ABSENT) for a in answers] == [True]


@rule(SHOULD, "Digest.hash", "A malformed digest of an action is INVALID_ARGUMENT, or absent.")
@bad_digests
def test_a_malformed_action_is_not_found(server: Server, kind: str) -> None:
    wrong = BAD[kind](letters(server)[0])
    refused(lambda: server.result(wrong), Code.INVALID_ARGUMENT, Code.NOT_FOUND)


@rule(SHOULD, "Digest.hash", "A malformed digest of a root is INVALID_ARGUMENT, or absent.")
@bad_digests
def test_a_malformed_root_is_not_found(server: Server, kind: str) -> None:
    wrong = BAD[kind](letters(server)[0])
    refused(lambda: list(server.tree(wrong)), Code.INVALID_ARGUMENT, Code.NOT_FOUND)


@rule(SHOULD, "GetTreeRequest.root_digest", "A request that leaves out its digest is refused by the client's fault.")
def test_a_digest_left_out(server: Server) -> None:
    call = server.channel.unary_stream(
        CAS + "GetTree", re.GetTreeRequest.SerializeToString, re.GetTreeResponse.FromString
    )
    request = re.GetTreeRequest(instance_name=server.instance)
    refused(lambda: list(call(request, metadata=server.metadata, timeout=10)))


def read_names(digest: re.Digest) -> dict[str, str]:
    """Names that no blob has."""
    return {
        "nothing": "",
        "one word": "blobs",
        "no size": f"blobs/{digest.hash}",
        "a size of letters": f"blobs/{digest.hash}/ten",
        "a negative size": f"blobs/{digest.hash}/-1",
        "a huge size": f"blobs/{digest.hash}/99999999999999999999",
        "a signed size": f"blobs/{digest.hash}/+{digest.size_bytes}",
        "a padded size": f"blobs/{digest.hash}/0{digest.size_bytes}",
        "upper-case": f"blobs/{digest.hash.upper()}/{digest.size_bytes}",
        "a short hash": f"blobs/{digest.hash[:-2]}/{digest.size_bytes}",
        "an upload": f"uploads/u/blobs/{text_of(digest)}",
        "a stranger": f"files/{text_of(digest)}",
        "no compressor": f"compressed-blobs/{text_of(digest)}",
        "identity": f"compressed-blobs/identity/{text_of(digest)}",
        "an unknown compressor": f"compressed-blobs/rar/{text_of(digest)}",
        "an unknown digest function": f"blobs/crc32/{text_of(digest)}",
    }


_SAMPLE = re.Digest(hash="ab" * 32, size_bytes=1)


@rule(SHOULD, "ReadRequest.resource_name", "A name that is no blob's is INVALID_ARGUMENT or NOT_FOUND.")
@pytest.mark.parametrize("kind", read_names(_SAMPLE))
def test_a_malformed_name_is_not_read(server: Server, kind: str) -> None:
    digest, data = letters(server)
    server.put(data)
    rest = read_names(digest)[kind]
    name = f"{server.instance}/{rest}" if server.instance and rest else rest
    refused(lambda: server.read(name), Code.INVALID_ARGUMENT, Code.NOT_FOUND)


def upload_names(digest: re.Digest) -> dict[str, str]:
    """Names that no upload has."""
    return {
        "nothing": "",
        "no uuid": f"uploads/blobs/{text_of(digest)}",
        "no hash": "uploads/0cd59a6c-6be6-4d0c-9f3c-6d2f0b2fd0d4/blobs",
        "a read": f"blobs/{text_of(digest)}",
        "a size of letters": f"uploads/0cd59a6c-6be6-4d0c-9f3c-6d2f0b2fd0d4/blobs/{digest.hash}/ten",
        "a negative size": f"uploads/0cd59a6c-6be6-4d0c-9f3c-6d2f0b2fd0d4/blobs/{digest.hash}/-1",
        "a short hash": f"uploads/0cd59a6c-6be6-4d0c-9f3c-6d2f0b2fd0d4/blobs/{digest.hash[:-2]}/{digest.size_bytes}",
        "upper-case": f"uploads/0cd59a6c-6be6-4d0c-9f3c-6d2f0b2fd0d4/blobs/{digest.hash.upper()}/{digest.size_bytes}",
        "an unknown compressor": f"uploads/0cd59a6c-6be6-4d0c-9f3c-6d2f0b2fd0d4/compressed-blobs/rar/{text_of(digest)}",
    }


@rule(SHOULD, "WriteRequest.resource_name", "A name that is no upload's is refused by a code that blames the client.")
@pytest.mark.parametrize("kind", upload_names(_SAMPLE))
def test_a_malformed_name_is_not_written(server: Server, kind: str) -> None:
    digest, data = letters(server)
    rest = upload_names(digest)[kind]
    name = f"{server.instance}/{rest}" if server.instance and rest else rest
    refused(lambda: server.write(pieces(name, data)))
    assert server.missing(digest) == [text_of(digest)]


@rule(SHOULD, "ByteStream.Write", "A write without a message is refused at once, not waited for.")
def test_a_write_without_a_message(server: Server) -> None:
    refused(lambda: server.write([], timeout_s=3))


@rule(SHOULD, "WriteRequest.write_offset", "A negative offset is refused by a code that blames the client.")
def test_a_negative_write_offset(server: Server) -> None:
    data = fresh()
    name = server.upload_name(server.digest(data))
    refused(lambda: server.write([bs.WriteRequest(resource_name=name, write_offset=-1, data=data, finish_write=True)]))


@rule(SHOULD, "ByteStream.Write", "Data that goes on past the size of the name ends in a refusal, not in a wait.")
def test_endless_data_is_refused(server: Server) -> None:
    name = server.upload_name(server.digest(fresh()))
    refused(lambda: server.write(pieces(name, bytes(4 << 20), finish=False), timeout_s=5))


@rule(MUST, "RequestMetadata", "It may be attached to any request.")
def test_metadata_does_no_harm(server: Server) -> None:
    metadata = re.RequestMetadata(
        tool_details=re.ToolDetails(tool_name="conformance", tool_version="1"),
        action_id="a",
        tool_invocation_id="b",
        correlated_invocations_id="c",
        action_mnemonic="d",
        target_id="//e",
        configuration_id="f",
    )
    assert server.missing(metadata=[(HEADER, metadata.SerializeToString())]) == []


@rule(SHOULD, "RequestMetadata", "It is for logs: one that cannot be decoded does not fail the call.")
@pytest.mark.parametrize("value", [b"\xff\xff\xff", b"\x0a\x7f", b"", b"\x0a\x02\xff\xfe"])
def test_malformed_metadata_does_no_harm(server: Server, value: bytes) -> None:
    digest = server.digest(fresh())
    assert server.missing(digest, metadata=[(HEADER, value)]) == [text_of(digest)]


@rule(SHOULD, "ContentAddressableStorage", "A request that cannot be decoded leaves the connection in order.")
def test_a_request_that_cannot_be_decoded(server: Server) -> None:
    call = server.channel.unary_unary(CAS + "FindMissingBlobs")
    with pytest.raises(grpc.RpcError):
        call(b"\xff\xff\xff", metadata=server.metadata, timeout=10)
    assert server.missing() == []


@rule(SHOULD, "ContentAddressableStorage", "Fields that nobody knows yet are ignored.")
def test_unknown_fields_are_ignored(server: Server) -> None:
    digest = server.digest(fresh())
    request = re.FindMissingBlobsRequest(instance_name=server.instance, blob_digests=[digest])
    call = server.channel.unary_unary(CAS + "FindMissingBlobs")
    answer = call(request.SerializeToString() + UNKNOWN_FIELD, metadata=server.metadata, timeout=10)
    assert list(re.FindMissingBlobsResponse.FromString(answer).missing_blob_digests) == [digest]


@rule(SHOULD, "ContentAddressableStorage", "An rpc that is not served is UNIMPLEMENTED.")
@pytest.mark.parametrize("path", [CAS + "NoSuchCall", "/no.such.Service/Call"])
def test_an_unknown_call_is_unimplemented(server: Server, path: str) -> None:
    call = server.channel.unary_unary(path)
    refused(lambda: call(b"", metadata=server.metadata, timeout=10), Code.UNIMPLEMENTED)
