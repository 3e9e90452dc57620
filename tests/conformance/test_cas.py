"""ContentAddressableStorage: FindMissingBlobs and the batches tell the truth about every blob, one by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs
from tests.conformance.digests import text_of
from tests.conformance.scoring import MUST, SHOULD, rule
from tests.conformance.server import ABSENT, BATCH_BYTES, INVALID, PIECE_BYTES, Code, Server, allowed, fresh, refused

FIND = "ContentAddressableStorage.FindMissingBlobs"
UPDATE = "ContentAddressableStorage.BatchUpdateBlobs"
READ = "ContentAddressableStorage.BatchReadBlobs"


def resized(digest: re.Digest, by: int = 1) -> re.Digest:
    """The right hash with a wrong size."""
    return re.Digest(hash=digest.hash, size_bytes=digest.size_bytes + by)


@rule(MUST, FIND, "A question about no blobs is answered with none.")
def test_nothing_is_missing_of_nothing(server: Server) -> None:
    assert server.missing() == []


@rule(MUST, FIND, "Absent blobs are reported, present ones are not, each digest judged by itself.")
def test_exactly_the_absent_are_reported(server: Server) -> None:
    present = [server.put(fresh()) for _ in range(3)]
    absent = [server.digest(fresh()) for _ in range(3)]
    asked = [digest for pair in zip(present, absent, strict=True) for digest in pair]
    assert sorted(server.missing(*asked)) == sorted(text_of(digest) for digest in absent)


@rule(MUST, "ContentAddressableStorage", "Empty blobs are always available: none is reported missing.")
def test_the_empty_blob_is_never_missing(server: Server) -> None:
    assert server.missing(server.digest(b"")) == []


@rule(MUST, "Digest", "Size is part of a digest: the right hash with a wrong size is refused or absent.")
@pytest.mark.parametrize("by", [1, -1])
def test_a_wrong_size_is_not_present(server: Server, by: int) -> None:
    wrong = resized(server.put(fresh()), by)
    assert allowed(lambda: server.missing(wrong), Code.INVALID_ARGUMENT) in (None, [text_of(wrong)])


@rule(MUST, "Digest", "Size is part of a digest: the empty blob's hash with another size is not the empty blob.")
def test_the_empty_hash_with_a_size_is_not_present(server: Server) -> None:
    wrong = resized(server.digest(b""))
    assert allowed(lambda: server.missing(wrong), Code.INVALID_ARGUMENT) in (None, [text_of(wrong)])


@rule(MUST, "Digest", "Size is part of a digest: any hash with size 0 is not the empty blob.")
def test_any_hash_of_size_zero_is_not_present(server: Server) -> None:
    wrong = re.Digest(hash=server.digest(fresh()).hash, size_bytes=0)
    assert allowed(lambda: server.missing(wrong), Code.INVALID_ARGUMENT) in (None, [text_of(wrong)])


@rule(SHOULD, FIND, "Ten thousand digests in one question fit the usual message limit and are answered.")
def test_a_large_question_is_answered(server: Server) -> None:
    digests = [re.Digest(hash=server.digest(n.to_bytes(8)).hash, size_bytes=9_999_999) for n in range(10_000)]
    assert len(server.missing(*digests)) == len(digests)


@rule(MUST, UPDATE, "Blobs that match their digests are stored, and each is answered for.")
def test_a_batch_is_stored(server: Server) -> None:
    blobs = [(server.digest(data), data) for data in (fresh(), fresh(1000), fresh(1))]
    assert server.update(*blobs) == {text_of(digest): 0 for digest, _ in blobs}
    answers = {text_of(r.digest): r.data for r in server.read_batch(*[digest for digest, _ in blobs])}
    assert answers == {text_of(digest): data for digest, data in blobs}


@rule(MUST, UPDATE, "A digest that does not match its data is INVALID_ARGUMENT in that blob's status.")
@pytest.mark.parametrize("size", [64, 300_000])
@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored"])
def test_a_mismatch_is_that_blobs_error(server: Server, size: int, stored: bool) -> None:
    data = fresh(size)
    digest = server.put(data) if stored else server.digest(data)
    assert server.update((digest, fresh(size))) == {text_of(digest): INVALID}
    assert server.missing(digest) == ([] if stored else [text_of(digest)])
    if stored:
        assert server.read(server.name(digest)) == data


@rule(MUST, UPDATE, "Blobs succeed or fail independently: one bad blob does not hinder the others.")
def test_one_bad_blob_hinders_no_other(server: Server) -> None:
    good, bad = fresh(), server.digest(fresh())
    statuses = server.update((bad, fresh()), (server.digest(good), good))
    assert statuses[text_of(server.digest(good))] == 0
    assert server.missing(server.digest(good), bad) == [text_of(bad)]


@rule(MUST, "Digest", "Size is part of a digest: data under the right hash and a wrong size is refused.")
@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored"])
def test_a_wrong_size_is_not_stored(server: Server, stored: bool) -> None:
    data = fresh()
    wrong = resized(server.put(data) if stored else server.digest(data))
    assert server.update((wrong, data)) == {text_of(wrong): INVALID}


@rule(MUST, UPDATE, "A blob that is stored already is stored again without error.")
def test_a_blob_may_be_stored_twice(server: Server) -> None:
    data = fresh()
    assert server.put(data) == server.put(data)


@rule(MUST, "ContentAddressableStorage", "Uploads of the same data may be made at once.")
def test_one_blob_may_be_stored_by_many_at_once(server: Server) -> None:
    data = fresh(100_000)
    digest = server.digest(data)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.update((digest, data)), range(8)))
    assert answers == [{text_of(digest): 0}] * 8


@rule(MUST, UPDATE, "The empty blob may be uploaded.")
def test_the_empty_blob_may_be_stored(server: Server) -> None:
    empty = server.digest(b"")
    assert server.update((empty, b"")) == {text_of(empty): 0}


def filled(server: Server, total: int) -> list[tuple[re.Digest, bytes]]:
    """New blobs of so many bytes together."""
    sizes = [PIECE_BYTES] * (total // PIECE_BYTES) + [total % PIECE_BYTES]
    return [(server.digest(data), data) for data in map(fresh, filter(None, sizes))]


@rule(MUST, "CacheCapabilities.max_batch_total_size_bytes", "A batch of the advertised size is taken.")
def test_a_batch_of_the_limit_is_taken(server: Server) -> None:
    limit = server.cache.max_batch_total_size_bytes
    if not limit:
        pytest.skip("no batch limit is advertised")
    blobs = filled(server, min(limit, BATCH_BYTES))
    assert set(server.update(*blobs).values()) == {0}


@rule(MUST, "CacheCapabilities.max_batch_total_size_bytes", "Blobs of the advertised size are read in one batch.")
def test_a_batch_of_the_limit_is_read(server: Server) -> None:
    limit = server.cache.max_batch_total_size_bytes
    if not limit:
        pytest.skip("no batch limit is advertised")
    digests = [server.put(data) for _, data in filled(server, min(limit, BATCH_BYTES))]
    assert {r.status.code for r in server.read_batch(*digests)} == {0}


@rule(MUST, UPDATE, "A batch over the server's limit is INVALID_ARGUMENT.")
def test_a_batch_over_the_limit_is_refused(server: Server) -> None:
    limit = server.cache.max_batch_total_size_bytes
    if not 0 < limit < BATCH_BYTES:
        pytest.skip("no batch limit below the message limit is advertised")
    blobs = filled(server, limit + 1)
    refused(lambda: server.update(*blobs), Code.INVALID_ARGUMENT)


@rule(
    MUST,
    UPDATE,
    "Every blob of a batch is answered by its own status, in a reply that clients take, though all are wrong.",
)
def test_many_wrong_blobs_are_answered_one_by_one(server: Server) -> None:
    blobs = [(server.digest(b"%05d" % number), b"x%04d" % (number % 10_000)) for number in range(25_000)]
    assert server.update(*blobs) == {text_of(digest): INVALID for digest, _ in blobs}


@rule(MUST, READ, "Reading more than the server's limit at once is INVALID_ARGUMENT.")
def test_reading_over_the_limit_is_refused(server: Server) -> None:
    limit = server.cache.max_batch_total_size_bytes
    if not limit:
        pytest.skip("no batch limit is advertised")
    digests = [server.put(fresh(1 << 20)) for _ in range(limit // (1 << 20) + 2 if limit < 64 << 20 else 0)]
    if not digests:
        pytest.skip("the advertised batch limit is too large to try")
    refused(lambda: server.read_batch(*digests), Code.INVALID_ARGUMENT)


@rule(MUST, READ, "An absent blob is NOT_FOUND in its own status, and the others are read.")
def test_an_absent_blob_is_its_own_error(server: Server) -> None:
    data, absent = fresh(), server.digest(fresh())
    answers = {text_of(r.digest): (r.status.code, r.data) for r in server.read_batch(server.put(data), absent)}
    assert answers == {text_of(server.digest(data)): (0, data), text_of(absent): (ABSENT, b"")}


@rule(MUST, "Digest", "Size is part of a digest: the right hash with a wrong size is not read.")
def test_a_wrong_size_is_not_read(server: Server) -> None:
    wrong = resized(server.put(fresh()))
    codes = [r.status.code for r in server.read_batch(wrong)]
    assert len(codes) == 1
    assert codes[0] in (ABSENT, INVALID)


@rule(MUST, "ContentAddressableStorage", "Empty blobs are always available: one is read in a batch.")
def test_the_empty_blob_is_read(server: Server) -> None:
    assert [(r.status.code, r.data) for r in server.read_batch(server.digest(b""))] == [(0, b"")]


@rule(MUST, "BatchReadBlobsResponse.Response.compressor", "Unless the client accepts another, it is IDENTITY.")
def test_data_is_not_encoded_unasked(server: Server) -> None:
    data = bytes(10_000)
    assert [(r.compressor, r.data) for r in server.read_batch(server.put(data))] == [(re.Compressor.IDENTITY, data)]


@rule(SHOULD, "CacheCapabilities.max_cas_blob_size_bytes", "An upload over the limit is INVALID_ARGUMENT.")
def test_a_blob_over_the_limit_is_refused(server: Server) -> None:
    limit = server.cache.max_cas_blob_size_bytes
    if not limit:
        pytest.skip("no blob limit is advertised")
    digest = re.Digest(hash=server.digest(fresh()).hash, size_bytes=limit + 1)
    first = bs.WriteRequest(resource_name=server.upload_name(digest), data=fresh())
    refused(lambda: server.write([first]), Code.INVALID_ARGUMENT)
