"""Compressed blobs, on ByteStream and in batches: the digest is of what was compressed, and so are offsets of reads."""

from __future__ import annotations

import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs
from tests.conformance import zstd
from tests.conformance.digests import BLAKE3, digest_of, function_name, text_of
from tests.conformance.scoring import MAY, MUST, SHOULD, rule
from tests.conformance.server import CAS, INVALID, Code, Server, allowed, fresh, pieces, refused

WRITE = "ContentAddressableStorage, compressed writes"
READ = "ContentAddressableStorage, compressed reads"
ZSTD = "compressed-blobs/zstd"


def text(size: int = 100_000) -> bytes:
    """New bytes that compress well."""
    return (fresh(50).hex().encode() * (size // 100 + 1))[:size]


@pytest.fixture
def zstd_server(server: Server) -> Server:
    """A server that speaks zstd on ByteStream."""
    server.need_zstd()
    return server


@pytest.fixture
def zstd_batches(server: Server) -> Server:
    """A server that speaks zstd in batches."""
    server.need_zstd(server.cache.supported_batch_update_compressors)
    return server


def write(server: Server, digest: re.Digest, sent: bytes, *, size: int = 1 << 20) -> int:
    """Write compressed bytes under a digest."""
    return server.write(pieces(server.upload_name(digest, kind=ZSTD), sent, size=size))


def read(server: Server, digest: re.Digest, offset: int = 0, limit: int = 0) -> bytes:
    """Read compressed, and decompress."""
    return zstd.decompress(server.read(server.name(digest, kind=ZSTD), offset, limit))


@rule(MUST, WRITE, "What was written compressed is read plain.")
@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_written_compressed_read_plain(zstd_server: Server, size: int) -> None:
    data = text(size)
    digest = zstd_server.digest(data)
    write(zstd_server, digest, zstd.compress(data))
    assert zstd_server.missing(digest) == []
    assert zstd_server.read(zstd_server.name(digest)) == data


@rule(MUST, READ, "Every blob can be read in each supported format: written plain, it is read compressed.")
@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_written_plain_read_compressed(zstd_server: Server, size: int) -> None:
    data = text(size)
    assert read(zstd_server, zstd_server.put(data)) == data


@rule(MUST, READ, "Data that does not compress is read compressed too.")
def test_random_data_is_read_compressed(zstd_server: Server) -> None:
    data = fresh(1_000_000)
    assert read(zstd_server, zstd_server.put(data)) == data


@rule(MUST, READ, "What was written compressed is read compressed.")
def test_written_compressed_read_compressed(zstd_server: Server) -> None:
    data = text()
    digest = zstd_server.digest(data)
    write(zstd_server, digest, zstd.compress(data))
    assert read(zstd_server, digest) == data


@rule(MUST, WRITE, "Later offsets are the first one plus the compressed bytes sent before.")
def test_a_compressed_write_of_many_messages(zstd_server: Server) -> None:
    data = fresh(50_000)
    digest = zstd_server.digest(data)
    write(zstd_server, digest, zstd.compress(data), size=999)
    assert zstd_server.read(zstd_server.name(digest)) == data


@rule(SHOULD, WRITE, "The committed size of a whole compressed upload is the bytes sent, or -1.")
def test_the_committed_size_of_a_compressed_write(zstd_server: Server) -> None:
    data = text()
    sent = zstd.compress(data)
    assert write(zstd_server, zstd_server.digest(data), sent) in (len(sent), -1)


@rule(MUST, WRITE, "A compressed write of what is stored ends without error with committed_size -1.")
def test_a_compressed_write_of_what_is_stored(zstd_server: Server) -> None:
    data = fresh(100_000)
    digest = zstd_server.put(data)
    assert write(zstd_server, digest, zstd.compress(data), size=10_000) == -1


@rule(MUST, WRITE, "A compressed write of what is stored ends at once, however little was sent.")
def test_a_compressed_write_of_what_is_stored_ends_at_once(zstd_server: Server) -> None:
    data = fresh(100_000)
    digest = zstd_server.put(data)
    name = zstd_server.upload_name(digest, kind=ZSTD)
    assert zstd_server.write([bs.WriteRequest(resource_name=name, data=zstd.compress(data)[:100])]) == -1


WRONG = {
    "other content": lambda data: zstd.compress(data[::-1]),
    "too little content": lambda data: zstd.compress(data[:-1]),
    "too much content": lambda data: zstd.compress(data + b"x"),
    "far too much content": lambda data: zstd.compress(data + bytes(64 << 20)),
    "half a frame": lambda data: zstd.compress(data)[:-20],
    "not zstd": lambda data: data,
    "nothing": lambda data: b"",
}


@rule(MUST, WRITE, "The digest is of the uncompressed data; a mismatch is INVALID_ARGUMENT.")
@pytest.mark.parametrize("kind", WRONG)
def test_a_compressed_mismatch_is_refused(zstd_server: Server, kind: str) -> None:
    data = fresh(10_000)
    digest = zstd_server.digest(data)
    refused(lambda: write(zstd_server, digest, WRONG[kind](data)), Code.INVALID_ARGUMENT)
    assert zstd_server.missing(digest) == [text_of(digest)]


@rule(SHOULD, WRITE, "Bytes after the end of the compressed data are refused.")
def test_bytes_after_the_frame_are_refused(zstd_server: Server) -> None:
    data = fresh(10_000)
    digest = zstd_server.digest(data)
    refused(lambda: write(zstd_server, digest, zstd.compress(data) + b"more"), Code.INVALID_ARGUMENT)


@rule(MAY, WRITE, "Compressed data may be several frames one after another.")
def test_several_frames_are_one_blob(zstd_server: Server) -> None:
    data = text()
    digest = zstd_server.digest(data)
    write(zstd_server, digest, zstd.compress(data[:30_000]) + zstd.compress(data[30_000:]))
    assert zstd_server.read(zstd_server.name(digest)) == data


@rule(MUST, "ContentAddressableStorage", "Empty blobs are always available, compressed too.")
def test_the_empty_blob_is_read_compressed(zstd_server: Server) -> None:
    assert read(zstd_server, zstd_server.digest(b"")) == b""


@rule(MUST, READ, "The offset of a compressed read counts uncompressed bytes.")
@pytest.mark.parametrize("offset", [1, 50_000, 99_999])
def test_the_offset_counts_uncompressed_bytes(zstd_server: Server, offset: int) -> None:
    data = text()
    assert read(zstd_server, zstd_server.put(data), offset) == data[offset:]


@rule(MUST, READ, "A compressed read at the very end is no error and holds nothing.")
def test_a_compressed_read_at_the_end(zstd_server: Server) -> None:
    data = text()
    assert read(zstd_server, zstd_server.put(data), len(data)) == b""


@rule(MUST, READ, "A compressed read from beyond the end, or from before the beginning, is OUT_OF_RANGE.")
@pytest.mark.parametrize("offset", [-1, 100_001])
def test_a_compressed_read_out_of_range(zstd_server: Server, offset: int) -> None:
    digest = zstd_server.put(text())
    refused(lambda: read(zstd_server, digest, offset), Code.OUT_OF_RANGE)


@rule(MUST, READ, "A limit other than 0 on a compressed read is INVALID_ARGUMENT.")
@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_a_limit_on_a_compressed_read_is_refused(zstd_server: Server, limit: int) -> None:
    digest = zstd_server.put(text())
    refused(lambda: read(zstd_server, digest, 0, limit), Code.INVALID_ARGUMENT)


@rule(
    MUST, "ContentAddressableStorage, resource names", "The digest function follows the compressor where it is named."
)
@pytest.mark.parametrize("function", [BLAKE3, re.DigestFunction.SHA512], ids=function_name)
def test_names_of_compressed_blobs_hold_the_function(zstd_server: Server, function: int) -> None:
    zstd_server.need_function(function)
    data = text()
    digest = digest_of(data, function)
    zstd_server.write(pieces(zstd_server.upload_name(digest, function=function, kind=ZSTD), zstd.compress(data)))
    assert zstd_server.missing(digest, digest_function=function) == []
    assert zstd.decompress(zstd_server.read(zstd_server.name(digest, function=function, kind=ZSTD))) == data


@rule(MUST, READ, "An absent blob is NOT_FOUND in every format.")
def test_an_absent_blob_is_not_found_compressed(zstd_server: Server) -> None:
    digest = zstd_server.digest(fresh())
    refused(lambda: read(zstd_server, digest), Code.NOT_FOUND)


@rule(MUST, READ, "Size is part of a digest: the right hash with a wrong size is not read.")
def test_a_wrong_size_is_not_read_compressed(zstd_server: Server) -> None:
    data = text()
    wrong = re.Digest(hash=zstd_server.put(data).hash, size_bytes=len(data) + 1)
    refused(lambda: read(zstd_server, wrong), Code.NOT_FOUND, Code.INVALID_ARGUMENT)


@rule(SHOULD, "CacheCapabilities.supported_compressors", "A compressor that is not advertised is INVALID_ARGUMENT.")
@pytest.mark.parametrize("name", ["zstd", "deflate", "brotli"])
def test_what_is_not_advertised_is_refused(server: Server, name: str) -> None:
    if re.Compressor.Value.Value(name.upper()) in server.cache.supported_compressors:
        pytest.skip(f"{name} is advertised")
    digest = server.put(fresh())
    other = server.digest(fresh())
    kind = f"compressed-blobs/{name}"
    refused(lambda: server.read(server.name(digest, kind=kind)), Code.INVALID_ARGUMENT)
    refused(lambda: server.write(pieces(server.upload_name(other, kind=kind), b"x")), Code.INVALID_ARGUMENT)


# Batches.


@rule(MUST, "BatchUpdateBlobsRequest.Request.compressor", "Compressed data is stored under its content's digest.")
def test_a_batch_may_be_compressed(zstd_batches: Server) -> None:
    data = text()
    digest = zstd_batches.digest(data)
    statuses = zstd_batches.update((digest, zstd.compress(data)), compressor=re.Compressor.ZSTD)
    assert statuses == {text_of(digest): 0}
    assert zstd_batches.read(zstd_batches.name(digest)) == data


@rule(
    MUST, "BatchUpdateBlobsRequest.Request.compressor", "Each blob of a batch has its own, and is judged by it alone."
)
def test_a_batch_of_several_compressors(zstd_batches: Server) -> None:
    blobs = [text(), text(), text()]
    plain, packed, mislabelled = map(zstd_batches.digest, blobs)
    request = re.BatchUpdateBlobsRequest(instance_name=zstd_batches.instance, digest_function=zstd_batches.function)  # type: ignore[arg-type]
    request.requests.add(digest=plain, data=blobs[0])
    request.requests.add(digest=packed, data=zstd.compress(blobs[1]), compressor=re.Compressor.ZSTD)
    request.requests.add(digest=mislabelled, data=zstd.compress(blobs[2]))
    answer = zstd_batches.unary(CAS + "BatchUpdateBlobs", request, re.BatchUpdateBlobsResponse)
    codes = {text_of(r.digest): r.status.code for r in answer.responses}
    assert codes == {text_of(plain): 0, text_of(packed): 0, text_of(mislabelled): INVALID}
    assert [r.data for r in zstd_batches.read_batch(plain, packed)] == blobs[:2]


@rule(MUST, "ContentAddressableStorage.BatchUpdateBlobs", "Compressed data that does not match is INVALID_ARGUMENT.")
@pytest.mark.parametrize("kind", [kind for kind in WRONG if kind != "far too much content"])
@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored"])
def test_a_compressed_mismatch_in_a_batch(zstd_batches: Server, kind: str, stored: bool) -> None:
    data = fresh(10_000)
    digest = zstd_batches.put(data) if stored else zstd_batches.digest(data)
    statuses = zstd_batches.update((digest, WRONG[kind](data)), compressor=re.Compressor.ZSTD)
    assert statuses == {text_of(digest): INVALID}
    assert zstd_batches.missing(digest) == ([] if stored else [text_of(digest)])
    if stored:
        assert zstd_batches.read(zstd_batches.name(digest)) == data


@rule(MUST, "BatchReadBlobsResponse.Response.compressor", "It is IDENTITY or one that the client accepts.")
def test_a_batch_is_read_as_accepted(server: Server) -> None:
    data = text()
    digest = server.put(data)
    answers = server.read_batch(digest, acceptable_compressors=[re.Compressor.ZSTD])
    assert [a.compressor in (re.Compressor.IDENTITY, re.Compressor.ZSTD) for a in answers] == [True]
    if answers[0].compressor == re.Compressor.ZSTD and not zstd.AVAILABLE:
        server.lacks("no module here speaks zstd")
    got = answers[0].data
    assert (zstd.decompress(got) if answers[0].compressor == re.Compressor.ZSTD else got) == data


@rule(MAY, "BatchReadBlobsRequest.acceptable_compressors", "Data that compresses well is sent as the client accepts.")
def test_a_batch_read_is_compressed(zstd_batches: Server) -> None:
    digest = zstd_batches.put(text())
    answers = zstd_batches.read_batch(digest, acceptable_compressors=[re.Compressor.ZSTD])
    assert answers[0].compressor == re.Compressor.ZSTD


@rule(SHOULD, "CacheCapabilities.supported_batch_update_compressors", "One that is not advertised is INVALID_ARGUMENT.")
@pytest.mark.parametrize("name", ["ZSTD", "DEFLATE", "BROTLI"])
def test_a_batch_may_not_be_compressed_otherwise(server: Server, name: str) -> None:
    compressor = re.Compressor.Value.Value(name)
    if compressor in server.cache.supported_batch_update_compressors:
        pytest.skip(f"{name.lower()} is advertised")
    digest = server.digest(fresh())
    answer = allowed(lambda: server.update((digest, b"x"), compressor=compressor), Code.INVALID_ARGUMENT)
    assert answer in (None, {text_of(digest): INVALID})
