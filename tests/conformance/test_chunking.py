"""SplitBlob and SpliceBlob: chunks are stored and add up to the blob, and no client's word for a digest is taken."""

from __future__ import annotations

import itertools

import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance.digests import BLAKE3, digest_of, function_name, text_of
from tests.conformance.fastcdc import chunk_sizes
from tests.conformance.scoring import MAY, MUST, SHOULD, rule
from tests.conformance.server import Code, Server, allowed, fresh, refused

SPLIT = "ContentAddressableStorage.SplitBlob"
SPLICE = "ContentAddressableStorage.SpliceBlob"
FASTCDC = re.ChunkingFunction.FAST_CDC_2020
REPMAX = re.ChunkingFunction.REP_MAX_CDC


@pytest.fixture
def splitter(server: Server) -> Server:
    """A server that splits."""
    if not server.cache.split_blob_support:
        pytest.skip("SplitBlob is not advertised")
    return server


@pytest.fixture
def splicer(server: Server) -> Server:
    """A server that splices."""
    if not server.cache.splice_blob_support:
        pytest.skip("SpliceBlob is not advertised")
    return server


def preferred(server: Server) -> int:
    """A chunking function that is advertised, else UNKNOWN, which every server takes."""
    if server.cache.HasField("fast_cdc_2020_params"):
        return FASTCDC
    return REPMAX if server.cache.HasField("rep_max_cdc_params") else re.ChunkingFunction.UNKNOWN


def large(server: Server) -> bytes:
    """New bytes that a server has reason to split: six times its average chunk."""
    average = server.cache.fast_cdc_2020_params.avg_chunk_size_bytes or 512 << 10
    smallest = server.cache.rep_max_cdc_params.min_chunk_size_bytes
    return fresh(int(min(max(average * 6, smallest * 6, 1 << 20), 32 << 20)))


def split(server: Server, data: bytes, function: int | None = None) -> re.SplitBlobResponse:
    """Store and split; a server may have no split of a blob that came whole."""
    digest = server.put(data)
    wanted = preferred(server) if function is None else function
    answer = allowed(lambda: server.split(digest, chunking_function=wanted), Code.NOT_FOUND)
    if answer is None:
        pytest.skip("the server keeps no split of a blob that was uploaded whole")
    return answer  # type: ignore[no-any-return]


@rule(MUST, "CacheCapabilities.split_blob_support", "A server that splits says so: one that does not say so does not.")
def test_splitting_is_not_hidden(server: Server) -> None:
    if server.cache.split_blob_support:
        pytest.skip("SplitBlob is advertised")
    digest = server.put(fresh())
    refused(lambda: server.split(digest))


@rule(
    MUST, "CacheCapabilities.splice_blob_support", "A server that splices says so: one that does not say so does not."
)
def test_splicing_is_not_hidden(server: Server) -> None:
    if server.cache.splice_blob_support:
        pytest.skip("SpliceBlob is advertised")
    parts = [fresh(), fresh()]
    refused(lambda: server.splice(server.digest(b"".join(parts)), [server.put(part) for part in parts]))


@rule(MUST, SPLIT, "The chunks of an answer are stored.")
def test_chunks_are_stored(splitter: Server) -> None:
    assert splitter.missing(*split(splitter, large(splitter)).chunk_digests) == []


@rule(MUST, SPLIT, "The chunks in the order of the answer are the blob.")
def test_chunks_add_up(splitter: Server) -> None:
    data = large(splitter)
    chunks = split(splitter, data).chunk_digests
    assert b"".join(splitter.read(splitter.name(chunk)) for chunk in chunks) == data


@rule(MUST, SPLIT, "A blob that is not there is NOT_FOUND.")
def test_an_absent_blob_is_not_split(splitter: Server) -> None:
    digest = splitter.digest(fresh())
    refused(lambda: splitter.split(digest), Code.NOT_FOUND)


@rule(MUST, "Digest", "Size is part of a digest: the right hash with a wrong size is not split.")
def test_a_wrong_size_is_not_split(splitter: Server) -> None:
    digest = splitter.put(fresh())
    wrong = re.Digest(hash=digest.hash, size_bytes=digest.size_bytes + 1)
    refused(lambda: splitter.split(wrong), Code.NOT_FOUND, Code.INVALID_ARGUMENT)


@rule(MUST, "SplitBlobRequest.chunking_function", "UNKNOWN is always accepted.")
def test_any_function_may_be_wanted(splitter: Server) -> None:
    data = large(splitter)
    chunks = split(splitter, data, re.ChunkingFunction.UNKNOWN).chunk_digests
    assert sum(chunk.size_bytes for chunk in chunks) == len(data)


@rule(SHOULD, SPLIT, "A blob of a few bytes is split into itself, or there is no split of it.")
def test_a_small_blob_is_one_chunk(splitter: Server) -> None:
    data = fresh(100)
    assert [text_of(c) for c in split(splitter, data).chunk_digests] == [text_of(splitter.digest(data))]


@rule(SHOULD, SPLIT, "Splitting is content-defined: bytes put before a blob leave most chunks as they were.")
def test_splits_follow_the_content(splitter: Server) -> None:
    data = large(splitter)
    before = {text_of(c) for c in split(splitter, data).chunk_digests}
    if len(before) < 3:
        pytest.skip("the blob was split into too few chunks to tell")
    after = {text_of(c) for c in split(splitter, fresh(100) + data).chunk_digests}
    assert before & after


@rule(MUST, "FastCdc2020Params", "Chunks of FastCDC are cut where the published algorithm cuts with these settings.")
def test_fastcdc_cuts_where_published(splitter: Server) -> None:
    settings = splitter.cache.fast_cdc_2020_params
    if not splitter.cache.HasField("fast_cdc_2020_params"):
        pytest.skip("FastCDC is not advertised")
    data = large(splitter)
    answer = split(splitter, data, FASTCDC)
    if answer.chunking_function != FASTCDC:
        pytest.skip("the server prefers another chunking function")
    expected = list(chunk_sizes(data, settings.avg_chunk_size_bytes, seed=settings.seed))
    assert [c.size_bytes for c in answer.chunk_digests] == expected


every_other_function = pytest.mark.parametrize("function", [BLAKE3, re.DigestFunction.SHA512], ids=function_name)


@rule(MUST, "SplitBlobRequest.digest_function", "Chunks are named by the function of the blob, and stored under it.")
@every_other_function
def test_a_split_under_another_function(splitter: Server, function: int) -> None:
    splitter.need_function(function)
    data = large(splitter)
    digest = splitter.put(data, function)
    wanted = {"digest_function": function, "chunking_function": preferred(splitter)}
    answer = allowed(lambda: splitter.split(digest, **wanted), Code.NOT_FOUND)
    if answer is None:
        pytest.skip("the server keeps no split of a blob that was uploaded whole")
    ends = itertools.accumulate(chunk.size_bytes for chunk in answer.chunk_digests)
    parts = [data[end - c.size_bytes : end] for end, c in zip(ends, answer.chunk_digests, strict=True)]
    assert b"".join(parts) == data
    assert list(answer.chunk_digests) == [digest_of(part, function) for part in parts]
    assert splitter.missing(*answer.chunk_digests, digest_function=function) == []


@rule(MUST, "RepMaxCdcParams", "Chunks of RepMaxCDC are at least the minimum and less than twice that.")
def test_repmaxcdc_keeps_its_range(splitter: Server) -> None:
    if not splitter.cache.HasField("rep_max_cdc_params"):
        pytest.skip("RepMaxCDC is not advertised")
    smallest = splitter.cache.rep_max_cdc_params.min_chunk_size_bytes
    answer = split(splitter, large(splitter), REPMAX)
    if answer.chunking_function != REPMAX:
        pytest.skip("the server prefers another chunking function")
    assert all(smallest <= c.size_bytes < 2 * smallest for c in answer.chunk_digests)


def parted(server: Server, sizes: tuple[int, ...] = (1000, 1, 5000)) -> tuple[bytes, list[re.Digest]]:
    """A new blob of stored parts, itself not stored."""
    parts = [fresh(size) for size in sizes]
    return b"".join(parts), [server.put(part) for part in parts]


@rule(MUST, SPLICE, "A blob is made of stored chunks, and is then there to read.")
def test_chunks_make_a_blob(splicer: Server) -> None:
    data, chunks = parted(splicer)
    answer = splicer.splice(splicer.digest(data), chunks)
    assert answer.blob_digest == splicer.digest(data)
    assert splicer.missing(splicer.digest(data)) == []
    assert splicer.read(splicer.name(splicer.digest(data))) == data


@rule(
    MUST, "SpliceBlobRequest.digest_function", "Chunks and blob are of one function; chunks under another are absent."
)
@every_other_function
def test_a_splice_under_another_function(splicer: Server, function: int) -> None:
    splicer.need_function(function)
    parts = [fresh(1000), fresh(1)]
    digest = digest_of(b"".join(parts), function)
    others = [splicer.put(part) for part in parts]
    refused(lambda: splicer.splice(digest, others, digest_function=function), Code.NOT_FOUND, Code.INVALID_ARGUMENT)
    splicer.splice(digest, [splicer.put(part, function) for part in parts], digest_function=function)
    assert splicer.read(splicer.name(digest, function=function)) == b"".join(parts)


@rule(MUST, SPLICE, "A blob of several MiB is made of stored chunks.")
def test_chunks_make_a_large_blob(splicer: Server) -> None:
    data, chunks = parted(splicer, (1 << 20, 2 << 20, 1 << 20, 1 << 20))
    splicer.splice(splicer.digest(data), chunks)
    assert splicer.read(splicer.name(splicer.digest(data))) == data


@rule(MUST, SPLICE, "The assembled digest is verified: a difference is INVALID_ARGUMENT, and no blob is made.")
@pytest.mark.parametrize("kind", ["other order", "other blob", "other size"])
def test_a_false_digest_is_refused(splicer: Server, kind: str) -> None:
    data, chunks = parted(splicer)
    digest = splicer.digest(data)
    wanted = {
        "other order": digest,
        "other blob": splicer.digest(fresh(len(data))),
        "other size": re.Digest(hash=digest.hash, size_bytes=digest.size_bytes + 1),
    }[kind]
    order = chunks[::-1] if kind == "other order" else chunks
    refused(lambda: splicer.splice(wanted, order), Code.INVALID_ARGUMENT)
    assert splicer.missing(wanted) == [text_of(wanted)]


@rule(MUST, SPLICE, "A chunk that is not stored is NOT_FOUND.")
def test_an_absent_chunk_is_not_found(splicer: Server) -> None:
    data, chunks = parted(splicer)
    extra = fresh()
    digest = splicer.digest(data + extra)
    refused(lambda: splicer.splice(digest, [*chunks, splicer.digest(extra)]), Code.NOT_FOUND)
    assert splicer.missing(digest) == [text_of(digest)]


@rule(MUST, "Digest", "Size is part of a digest: a chunk's hash with a wrong size is not that chunk.")
def test_a_chunk_of_wrong_size(splicer: Server) -> None:
    data, chunks = parted(splicer)
    wrong = re.Digest(hash=chunks[0].hash, size_bytes=chunks[0].size_bytes + 1)
    refused(lambda: splicer.splice(splicer.digest(data), [wrong, *chunks[1:]]), Code.NOT_FOUND, Code.INVALID_ARGUMENT)


@rule(MUST, SPLICE, "Splicing a blob that is stored is no error but ALREADY_EXISTS.")
def test_a_stored_blob_may_be_spliced(splicer: Server) -> None:
    data, chunks = parted(splicer)
    splicer.put(data)
    allowed(lambda: splicer.splice(splicer.digest(data), chunks), Code.ALREADY_EXISTS)
    assert splicer.read(splicer.name(splicer.digest(data))) == data


@rule(MUST, "SpliceBlobRequest.blob_digest", "A request without the digest of the blob is refused.")
def test_a_splice_without_a_digest(splicer: Server) -> None:
    _, chunks = parted(splicer)
    refused(lambda: splicer.splice(re.Digest(), chunks), Code.INVALID_ARGUMENT)


@rule(MUST, "SpliceBlobRequest.chunking_function", "UNKNOWN is always accepted.")
def test_chunks_may_be_cut_anyhow(splicer: Server) -> None:
    data, chunks = parted(splicer)
    splicer.splice(splicer.digest(data), chunks, chunking_function=re.ChunkingFunction.UNKNOWN)
    assert splicer.missing(splicer.digest(data)) == []


@rule(MAY, SPLICE, "What was spliced is split into the same chunks.")
def test_a_splice_is_remembered(splicer: Server) -> None:
    if not splicer.cache.split_blob_support:
        pytest.skip("SplitBlob is not advertised")
    data = large(splicer)
    answer = split(splicer, data)
    ends = list(itertools.accumulate(c.size_bytes for c in answer.chunk_digests))
    again = [splicer.put(data[end - c.size_bytes : end]) for end, c in zip(ends, answer.chunk_digests, strict=True)]
    allowed(lambda: splicer.splice(splicer.digest(data), again), Code.ALREADY_EXISTS)
    assert list(splicer.split(splicer.digest(data), chunking_function=preferred(splicer)).chunk_digests) == again
