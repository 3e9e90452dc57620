"""Actions whose inputs, results or outputs are in a tier alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from buildnet.client import Client
from tests.engines import Fronts, Valkey

BUILD = ["/bin/sh", "-c", "mkdir -p d && cat in > d/o && echo done"]


@pytest.fixture
def fronts(tmp_path: Path) -> Iterator[Fronts]:
    fronts = Fronts(tmp_path)
    try:
        yield fronts
    finally:
        fronts.close()


@pytest.fixture
def hot(tmp_path: Path) -> Iterator[Valkey]:
    engine = Valkey(tmp_path / "hot")
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()


async def test_what_ran_at_one_server_is_a_hit_at_another(hot: Valkey, fronts: Fronts, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"what goes in\n")
    first = fronts.start(hot.table(write="through"), worker=True)
    async with Client(first.url) as client:
        ran = await client.run(BUILD, inputs={"in": source}, outputs=["d"], env={"PATH": "/usr/bin:/bin"})
        assert ran.exit_code == 0
        assert not ran.cached
    second = fronts.start(hot.table())
    async with Client(second.url) as client:
        again = await client.run(BUILD, inputs={"in": source}, outputs=["d"], env={"PATH": "/usr/bin:/bin"})
        assert again.cached
        assert again.outputs["d"].digest == ran.outputs["d"].digest


async def test_inputs_that_only_a_tier_has_reach_a_worker(hot: Valkey, fronts: Fronts, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"what goes in\n")
    first = fronts.start(hot.table(write="through"))
    async with Client(first.url) as client:
        digest = await client.upload(source)
    second = fronts.start(hot.table(), worker=True)
    async with Client(second.url) as client:
        # The client sends what it is told to be missing, and the file is not.
        ran = await client.run(BUILD, inputs={"in": source}, outputs=["d"], env={"PATH": "/usr/bin:/bin"})
        assert ran.exit_code == 0
    assert digest
    assert second.counts("hot")["hits"] >= 1


async def test_a_long_log_reaches_a_tier_though_it_was_not_uploaded(hot: Valkey, fronts: Fronts) -> None:
    first = fronts.start(hot.table(write="through", blob_size_max="8 MiB"), worker=True)
    async with Client(first.url) as client:
        # No entry of the cache, which would bring it there.
        ran = await client.run(["/bin/sh", "-c", "seq 300000; exit 3"], env={"PATH": "/usr/bin:/bin"})
    assert ran.exit_code == 3
    assert ran.stdout_digest is not None
    name = f"buildnet:cas:sha256:{ran.stdout_digest.hash}"
    assert hot.ask("STRLEN", name) == b":%d\r\n" % ran.stdout_digest.size_bytes
