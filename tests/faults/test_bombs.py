"""Streams of zstd that hold far more than was declared: refused at what was declared, by every way in, and soon.

One that is believed costs memory and seconds for a few kilobytes sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs
from tests.conformance import zstd
from tests.conformance.digests import text_of
from tests.conformance.server import INVALID, PIECE_BYTES, Code, Server, fresh, refused
from tests.faults.process import Process
from tests.http_calls import Http

if not zstd.AVAILABLE:
    pytest.skip("SKIPPED LOUDLY: no module compresses zstd here", allow_module_level=True)

# 4 GiB in half a megabyte: what unpacks it whole is seen by its memory and its processor time.
FRAME_BYTES = 64 << 20
FRAMES = 64
DECLARED_BYTES = 10_000
GROWTH_BYTES_MAX = 32 << 20
CPU_S_MAX = 1.0


@pytest.fixture(scope="module", params=[zstd.compress, zstd.compress_unsized], ids=["sized", "unsized"])
def bomb(request: pytest.FixtureRequest) -> bytes:
    frame: bytes = request.param(bytes(FRAME_BYTES))
    assert len(frame) * FRAMES < 1 << 20
    return frame * FRAMES


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with Process(tmp_path_factory.mktemp("bombs") / "state") as process:
        yield process


def in_a_batch(process: Process, server: Server, digest: re.Digest, bomb: bytes) -> None:
    assert server.update((digest, bomb), compressor=re.Compressor.ZSTD) == {text_of(digest): INVALID}


def in_a_stream(process: Process, server: Server, digest: re.Digest, bomb: bytes) -> None:
    name = server.upload_name(digest, kind="compressed-blobs/zstd")
    pieces = range(0, len(bomb), PIECE_BYTES)
    messages = [
        bs.WriteRequest(
            resource_name=name,
            write_offset=at,
            data=bomb[at : at + PIECE_BYTES],
            finish_write=at + PIECE_BYTES >= len(bomb),
        )
        for at in pieces
    ]
    refused(lambda: server.write(messages), Code.INVALID_ARGUMENT)


def over_http(process: Process, server: Server, digest: re.Digest, bomb: bytes) -> None:
    call = Http(process.url.removeprefix("grpc://"))
    headers = {"Content-Encoding": "zstd", "X-Digest-SizeBytes": str(digest.size_bytes)}
    assert call("PUT", f"/cas/{digest.hash}", bomb, headers).status == 400


@pytest.mark.timeout(120)
@pytest.mark.parametrize("send", [in_a_batch, in_a_stream, over_http])
def test_a_bomb_costs_what_was_declared(
    process: Process, bomb: bytes, send: Callable[[Process, Server, re.Digest, bytes], None]
) -> None:
    with Server(process.url) as server:
        known = server.put(fresh(2000))
        digest = re.Digest(hash=server.digest(fresh(9)).hash, size_bytes=DECLARED_BYTES)
        # The way itself, once, so that what it takes at first is not counted.
        send(process, server, digest, bomb[: len(bomb) // FRAMES])
        resident, spent_s = process.peak_bytes(), process.cpu_s()
        began = time.monotonic()
        for _ in range(8):
            send(process, server, digest, bomb)
        spent_s, took_s = process.cpu_s() - spent_s, time.monotonic() - began
        print(f"eight bombs: {spent_s:.2f} s of processor, {took_s:.2f} s")
        assert process.peak_bytes() - resident < GROWTH_BYTES_MAX
        assert spent_s < CPU_S_MAX
        assert server.missing(digest, known) == [text_of(digest)]
