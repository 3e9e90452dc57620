"""What a worker has fetched outlives it, and takes no more room than it was given."""

from __future__ import annotations

import os
import re
from pathlib import Path

from buildnet.client import SyncClient, connect
from tests.conftest import House, Role
from tests.http_calls import Http

SMALL = 1 << 20
CACHE_BYTES = 64 << 20


def sent_bytes(server: Role) -> int:
    """What the controller has sent of blobs."""
    text = Http(server.ready["listen"])("GET", "/metrics").body.decode()
    sent = re.findall(r'buildnet_sent_bytes_total\{method="[^"]*(?:/Read|BatchReadBlobs)"\} (\d+)', text)
    assert sent, text
    return sum(map(int, sent))


def size_of(client: SyncClient, script: str, source: Path) -> bytes:
    result = client.run(["/bin/sh", "-c", script], inputs={"input": source}, env={"PATH": "/usr/bin:/bin"})
    assert result.exit_code == 0, result
    return result.stdout()


def taken_bytes(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def test_a_worker_that_is_started_again_fetches_nothing_anew(house: House) -> None:
    server = house.up("--no-worker")
    source = house.directory / "input"
    source.write_bytes(os.urandom(8 * SMALL))
    with connect(server.url) as client:
        worker = house.join(server.url, "--slots", "1")
        assert int(size_of(client, "wc -c < input", source)) == 8 * SMALL
        fetched = sent_bytes(server)
        assert fetched >= 8 * SMALL
        assert worker.stop() == 0
        house.join(server.url, "--slots", "1")
        # Another action over the same input.
        assert int(size_of(client, "wc -c < input; :", source)) == 8 * SMALL
        assert sent_bytes(server) - fetched < SMALL


def test_a_worker_evicts_past_its_cache_size(house: House) -> None:
    server = house.up("--no-worker")
    house.join(server.url, "--slots", "1", "--cache-size", f"{CACHE_BYTES}B", "--cache-keep", "0s")
    cache = house.directory / "worker" / "cas"
    source = house.directory / "input"
    source.mkdir()
    with connect(server.url) as client:
        for _ in range(8):
            for number in range(8):
                (source / f"{number}").write_bytes(os.urandom(2 * SMALL))
            assert int(size_of(client, "cat input/* | wc -c", source)) == 16 * SMALL
    # Twice as much went through it.
    assert taken_bytes(cache) <= CACHE_BYTES
