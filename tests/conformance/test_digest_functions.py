"""Every advertised digest function is a namespace of its own, verified by that function and by no other."""

from __future__ import annotations

import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance.digests import BLAKE3, HASHERS, INFERRED, SHA256, digest_of, function_name, text_of
from tests.conformance.scoring import MUST, SHOULD, rule
from tests.conformance.server import ABSENT, INVALID, Code, Server, fresh, pieces, refused

WHERE = "CacheCapabilities.digest_functions"
NAMES = "ContentAddressableStorage, resource names"
EVERY = [
    re.DigestFunction.SHA256,
    re.DigestFunction.BLAKE3,
    re.DigestFunction.SHA1,
    re.DigestFunction.SHA384,
    re.DigestFunction.SHA512,
    re.DigestFunction.MD5,
]
every_function = pytest.mark.parametrize("function", EVERY, ids=function_name)


@rule(MUST, WHERE, "A blob is stored, found and read in batches under every advertised function.")
@every_function
def test_batches(server: Server, function: int) -> None:
    server.need_function(function)
    data = fresh()
    digest = server.put(data, function)
    assert server.missing(digest, digest_function=function) == []
    answers = server.read_batch(digest, digest_function=function)
    assert [(r.status.code, r.data) for r in answers] == [(0, data)]


@rule(MUST, NAMES, "A blob is written and read under every advertised function, by name where it must be named.")
@every_function
def test_streams(server: Server, function: int) -> None:
    server.need_function(function)
    data = fresh(100_000)
    digest = digest_of(data, function)
    assert server.write(pieces(server.upload_name(digest, function=function), data)) == len(data)
    assert server.read(server.name(digest, function=function)) == data
    assert server.missing(digest, digest_function=function) == []


@rule(MUST, WHERE, "Content is verified by the function that the digest is of, in batches.")
@every_function
def test_batches_are_verified(server: Server, function: int) -> None:
    server.need_function(function)
    digest = digest_of(fresh(), function)
    assert server.update((digest, fresh()), digest_function=function) == {text_of(digest): INVALID}


@rule(MUST, WHERE, "Content is verified by the function that the digest is of, on ByteStream.")
@every_function
def test_streams_are_verified(server: Server, function: int) -> None:
    server.need_function(function)
    digest = digest_of(fresh(), function)
    name = server.upload_name(digest, function=function)
    refused(lambda: server.write(pieces(name, fresh())), Code.INVALID_ARGUMENT)


@rule(MUST, "ContentAddressableStorage", "Empty blobs are always available under every advertised function.")
@every_function
def test_the_empty_blob(server: Server, function: int) -> None:
    server.need_function(function)
    empty = digest_of(b"", function)
    assert server.missing(empty, digest_function=function) == []
    assert server.read(server.name(empty, function=function)) == b""


@rule(SHOULD, "FindMissingBlobsRequest.digest_function", "Left unset, the function is told by the hash's length.")
@every_function
def test_an_unset_function_is_inferred(server: Server, function: int) -> None:
    server.need_function(function)
    if function not in INFERRED:
        pytest.skip(f"{function_name(function)} is never inferred")
    data = fresh()
    digest = server.put(data, function)
    unset = re.DigestFunction.UNKNOWN
    assert server.missing(digest, digest_function=unset) == []
    assert [r.data for r in server.read_batch(digest, digest_function=unset)] == [data]
    other = fresh()
    assert set(server.update((digest_of(other, function), other), digest_function=unset).values()) == {0}


@rule(MUST, "FindMissingBlobsRequest.digest_function", "A BLAKE3 blob is not present under the same hash as SHA256.")
def test_blake3_is_not_sha256(server: Server) -> None:
    server.need_function(BLAKE3)
    server.need_function(SHA256)
    digest = server.put(fresh(), BLAKE3)
    assert server.missing(digest, digest_function=SHA256) == [text_of(digest)]
    codes = [r.status.code for r in server.read_batch(digest, digest_function=SHA256)]
    assert codes[0] in (ABSENT, INVALID)
    refused(lambda: server.read(server.name(digest, function=SHA256)), Code.NOT_FOUND, Code.INVALID_ARGUMENT)


@rule(MUST, "FindMissingBlobsRequest.digest_function", "A SHA256 blob is not present under the same hash as BLAKE3.")
def test_sha256_is_not_blake3(server: Server) -> None:
    server.need_function(BLAKE3)
    server.need_function(SHA256)
    digest = server.put(fresh(), SHA256)
    assert server.missing(digest, digest_function=BLAKE3) == [text_of(digest)]
    refused(lambda: server.read(server.name(digest, function=BLAKE3)), Code.NOT_FOUND, Code.INVALID_ARGUMENT)


@rule(MUST, NAMES, "BLAKE3 is a segment of its own: without it a name means SHA256, and such an upload mismatches.")
def test_blake3_must_be_named(server: Server) -> None:
    server.need_function(BLAKE3)
    server.need_function(SHA256)
    data = fresh()
    name = server.upload_name(digest_of(data, BLAKE3), function=SHA256)
    refused(lambda: server.write(pieces(name, data)), Code.INVALID_ARGUMENT)


@rule(MUST, "GetActionResultRequest.digest_function", "A result under one function is not answered under another.")
def test_results_are_apart(server: Server) -> None:
    server.need_updates()
    server.need_function(BLAKE3)
    server.need_function(SHA256)
    action = put_action(server, BLAKE3)
    server.store_result(action, marked(), digest_function=BLAKE3)
    assert server.result(action, digest_function=BLAKE3).execution_metadata.worker == "conformance"
    refused(lambda: server.result(action, digest_function=SHA256), Code.NOT_FOUND, Code.INVALID_ARGUMENT)


def marked() -> re.ActionResult:
    """A result that refers to nothing and is not empty."""
    return re.ActionResult(execution_metadata=re.ExecutedActionMetadata(worker="conformance"))


def put_action(server: Server, function: int) -> re.Digest:
    """An Action all of whose digests are under one function."""
    command = server.put(re.Command(arguments=["true"]).SerializeToString(), function)
    root = server.put(b"", function)
    action = re.Action(command_digest=command, input_root_digest=root, salt=fresh())
    return server.put(action.SerializeToString(), function)


@rule(MUST, "UpdateActionResultRequest.digest_function", "Results are stored and found under every function.")
@every_function
def test_results(server: Server, function: int) -> None:
    server.need_updates()
    server.need_function(function)
    log = server.put(fresh(), function)
    action = put_action(server, function)
    result = marked()
    result.stdout_digest.CopyFrom(log)
    server.store_result(action, result, digest_function=function)
    assert server.result(action, digest_function=function).stdout_digest == log


@rule(MUST, "GetTreeRequest.digest_function", "Trees are read under every advertised function.")
@every_function
def test_trees(server: Server, function: int) -> None:
    server.need_function(function)
    leaf, root = re.Directory(), re.Directory()
    leaf.symlinks.add(name="link", target=fresh(8).hex())
    root.directories.add(name="leaf", digest=server.put(leaf.SerializeToString(), function))
    digest = server.put(root.SerializeToString(), function)
    pages = list(server.tree(digest, digest_function=function))
    assert leaf in [directory for page in pages for directory in page.directories]


@rule(SHOULD, WHERE, "A function that is not advertised, or that nobody knows, is INVALID_ARGUMENT.")
@pytest.mark.parametrize("function", [*EVERY, 77], ids=function_name)
def test_other_functions_are_refused(server: Server, function: int) -> None:
    if function in server.functions:
        pytest.skip(f"{function_name(function)} is advertised")
    digest = HASHERS.get(function, HASHERS[SHA256])(fresh())
    asked = re.Digest(hash=digest, size_bytes=64)
    refused(lambda: server.missing(asked, digest_function=function), Code.INVALID_ARGUMENT)
