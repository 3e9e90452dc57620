"""What every tier promises, whatever its engine: one server writes, another that shares only the tier reads."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from buildnet.client import Client
from buildnet.ledger.receipt import Receipt
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance.digests import HASHERS
from tests.conformance.server import ABSENT, Server, fresh, refused
from tests.engines import Front, Fronts, Seaweed, Valkey
from tests.http_calls import Http

MIB = 1 << 20
KINDS = ["s3", "redis", "reapi"]
Code = grpc.StatusCode


@pytest.fixture(scope="module", params=KINDS)
def tier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The table of a tier whose engine runs."""
    directory = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as held:
        if request.param == "reapi":
            upstream = Front(directory, [])
            held.callback(upstream.stop)
            url = upstream.start().url
            yield {"name": "upstream", "kind": "reapi", "address": url, "prefix": "team/cache"}
            return
        engine = Seaweed(directory) if request.param == "s3" else Valkey(directory)
        held.callback(engine.kill)
        engine.start()
        yield engine.table()


@pytest.fixture(scope="module", params=["through", "back"])
def pair(
    request: pytest.FixtureRequest, tier: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Front, Front]]:
    """Who writes, and who reads."""
    fronts = Fronts(tmp_path_factory.mktemp("fronts"))
    try:
        table = {**tier, "write": request.param, "timeout": "10 s", "blob_size_max": "64 MiB", "required": True}
        yield fronts.start(table), fronts.start({**table, "write": "never"})
    finally:
        fronts.close()


@pytest.fixture
def writer(pair: tuple[Front, Front]) -> Iterator[Server]:
    with pair[0].client() as server:
        yield server


@pytest.fixture
def reader(pair: tuple[Front, Front]) -> Iterator[Server]:
    with pair[1].client() as server:
        yield server


@pytest.fixture
def settled(pair: tuple[Front, Front]) -> Iterator[Any]:
    """Wait until what was written is in the tier."""
    name = pair[0].tiers[0]["name"]
    return lambda: pair[0].drained(name)


def large(size: int) -> bytes:
    """Bytes that differ everywhere and cost little."""
    block = fresh(1 << 16)
    return b"".join(n.to_bytes(8, "little") + block for n in range(size // len(block)))


@pytest.mark.parametrize("size", [1, 5000, 3 * MIB, 20 * MIB])
def test_a_blob_that_one_wrote_another_reads(writer: Server, reader: Server, settled: Any, size: int) -> None:
    data = large(size) if size > MIB else fresh(size)
    digest = writer.put(data)
    settled()
    assert reader.missing(digest) == []
    assert reader.read(reader.name(digest)) == data
    # It is here now.
    assert reader.read(reader.name(digest), offset=size // 2) == data[size // 2 :]


def test_batches_bring_what_is_not_here(writer: Server, reader: Server, settled: Any) -> None:
    blobs = [fresh(2000) for _ in range(30)]
    digests = [writer.put(data) for data in blobs]
    settled()
    absent = reader.digest(fresh())
    answers = reader.read_batch(*digests, absent)
    assert [answer.data for answer in answers[:-1]] == blobs
    assert answers[-1].status.code == ABSENT


@pytest.mark.parametrize("function", sorted(HASHERS))
def test_every_digest_function_passes(writer: Server, reader: Server, settled: Any, function: int) -> None:
    data = fresh(3000)
    digest = writer.put(data, function)
    settled()
    assert reader.missing(digest, digest_function=function) == []
    assert reader.read(reader.name(digest, function=function)) == data


def test_of_another_size_it_is_absent(pair: tuple[Front, Front], writer: Server, reader: Server, settled: Any) -> None:
    digest = writer.put(fresh(100))
    settled()
    other = re.Digest(hash=digest.hash, size_bytes=99)
    assert reader.missing(other) == [f"{other.hash}/99"]
    refused(lambda: reader.read(reader.name(other)), Code.NOT_FOUND)
    empty = re.Digest(hash=digest.hash, size_bytes=0)
    assert reader.missing(empty) == [f"{empty.hash}/0"]
    # Who asks for what never was shows no damage.
    assert pair[1].counts(pair[1].tiers[0]["name"])["damaged"] == 0


def result_of(server: Server) -> tuple[re.Digest, re.ActionResult]:
    """Store an action with a result that refers to a file, logs, a Tree and a root Directory; returns both."""
    inner = re.Directory(files=[re.FileNode(name="f", digest=server.put(fresh()))])
    root = re.Directory(
        files=[re.FileNode(name="g", digest=server.put(fresh()))],
        directories=[re.DirectoryNode(name="d", digest=server.put_message(inner))],
    )
    tree = re.Tree(root=root, children=[inner])
    directory = re.OutputDirectory(
        path="o", tree_digest=server.put_message(tree), root_directory_digest=server.put_message(root)
    )
    result = re.ActionResult(
        output_files=[re.OutputFile(path="f", digest=server.put(fresh()))],
        output_directories=[directory],
        stdout_digest=server.put(b"printed " + fresh()),
    )
    return server.action(), result


async def receipt_of(url: str, instance: str, action: re.Digest) -> Receipt:
    async with Client(url, instance=instance) as client:
        return await client.receipt(Digest(action.hash, action.size_bytes))


@pytest.mark.parametrize("instance", ["", "a/b"])
def test_a_result_is_found_with_all_that_it_refers_to(
    pair: tuple[Front, Front], writer: Server, reader: Server, settled: Any, instance: str
) -> None:
    action, result = result_of(writer)
    writer.store_result(action, result, instance_name=instance)
    settled()
    found = reader.result(action, instance_name=instance, inline_stdout=True)
    assert found.stdout_raw.startswith(b"printed ")
    found.stdout_raw = b""
    assert found == result
    pages = list(reader.tree(result.output_directories[0].root_directory_digest))
    assert [len(page.directories) for page in pages] == [2]
    refused(lambda: reader.result(action, instance_name="other"), Code.NOT_FOUND)
    # It is nobody's word alone that it was told: the ledger has it.
    assert action.hash in asyncio.run(receipt_of(pair[1].url, instance, action)).body.decode()


def test_a_result_without_its_blobs_is_no_result(writer: Server, reader: Server, settled: Any) -> None:
    action = writer.action()
    writer.store_result(action, re.ActionResult(stdout_digest=writer.digest(fresh())))
    settled()
    refused(lambda: reader.result(action), Code.NOT_FOUND)


def test_entries_of_http_clients_pass_as_they_came(pair: tuple[Front, Front], settled: Any) -> None:
    front, other = pair
    value, key = b"no ActionResult \x00" + fresh(), hashlib.sha256(fresh()).hexdigest()
    assert front.http("PUT", f"/a/ac/{key}", value)[0] == 200
    blob = fresh(5000)
    name = hashlib.sha256(blob).hexdigest()
    assert front.http("PUT", f"/cas/{name}", blob)[0] == 200
    settled()
    if front.tiers[0]["kind"] == "reapi":
        # It is asked for actions and blobs with their sizes, which HTTP does not say.
        assert other.http("GET", f"/a/ac/{key}")[0] == 404
        return
    assert other.http("GET", f"/a/ac/{key}") == (200, value)
    assert other.http("GET", f"/cas/{name}") == (200, blob)
    assert other.http("GET", f"/b/ac/{key}")[0] == 404


VALUES = ["/ccache/ab/{}", "/sccache/a/b/{}", "/gradle/{}", "/v1/cache/{}", "/v8/artifacts/{}?teamId=team"]


@pytest.mark.parametrize("path", VALUES)
@pytest.mark.parametrize("size", [100, 2 * MIB])
def test_values_of_build_tools_pass(pair: tuple[Front, Front], settled: Any, path: str, size: int) -> None:
    front, other = pair
    here, there = Http(front.listen), Http(other.listen)
    path, value, said = path.format(fresh(16).hex()), fresh(size), {"x-artifact-tag": "signed"}
    assert here("PUT", path, value, said).status in (200, 201, 202)
    settled()
    found = there("GET", path)
    if front.tiers[0]["kind"] == "reapi":
        # It knows no names but those of actions.
        assert found.status == 404
        return
    assert (found.status, found.body) == (200, value)
    if path.startswith("/v8/"):
        assert found.headers["x-artifact-tag"] == "signed"
        assert there("GET", path.replace("team", "other")).status == 404
    elif path.startswith("/v1/"):
        assert there("PUT", path, fresh()).status == 409
    else:
        # Who may not write there removes it here only: the next who asks brings it again.
        assert there("DELETE", path).status == 204
        assert there("GET", path).body == value
        assert here("DELETE", path).status == 204
        assert here("GET", path).status == 404
        assert there("DELETE", path).status == 204
        assert there("GET", path).status == 404
        assert here("DELETE", path).status == 404


@pytest.mark.parametrize("path", ["/ac/{}", "/sccache/{}"])
def test_what_was_removed_before_a_tier_had_it_does_not_come_back(
    pair: tuple[Front, Front], settled: Any, path: str
) -> None:
    here, there = Http(pair[0].listen), Http(pair[1].listen)
    paths = [path.format(fresh(32).hex()) for _ in range(20)]
    for name in paths:
        assert here("PUT", name, fresh(300)).status in (200, 201)
        # A back tier's queue has it, or is just about to write it.
        assert here("DELETE", name).status == 204
    settled()
    assert [there("GET", name).status for name in paths] == [404] * len(paths)
    assert [here("GET", name).status for name in paths] == [404] * len(paths)


def test_readers_at_once_share_one_fetch(pair: tuple[Front, Front], writer: Server, settled: Any) -> None:
    data = large(8 * MIB)
    digest = writer.put(data)
    settled()
    other = pair[1]
    before = other.counts(other.tiers[0]["name"])["hits"]
    with other.client() as reader:
        call = reader.channel.unary_stream("/google.bytestream.ByteStream/Read", None, None)
        name = reader.name(digest).encode()
        request = b"\x0a" + bytes([len(name)]) + name
        calls = [call(request, timeout=30) for _ in range(8)]
        assert all(sum(map(len, pieces)) > len(data) for pieces in calls)
    assert other.counts(other.tiers[0]["name"])["hits"] == before + 1
