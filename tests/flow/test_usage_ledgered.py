"""What callers take from the cache, send to it and are refused is in the ledger's accounts, and they balance."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from buildnet.client import Client
from buildnet.errors import Overloaded
from buildnet.ledger import audit
from buildnet.ledger.book import Book, postings_of
from tests.conftest import COMMAND, House
from tests.http_calls import Http

BLOB = b"x" * 100_000


def entries(state: Path) -> list[dict[str, Any]]:
    """All of them; the accounts have taken each, and what is kept of them is what they say."""
    assert audit.verify(state).size
    return [json.loads(body) for _, body in audit.iterate(state)]


def sums(told: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[int, int]]:
    """Debits and credits by account and unit."""
    book = Book()
    for index, entry in enumerate(told):
        if (postings := postings_of(entry)) is not None:
            book.apply(index, entry["at_unix_ms"], postings)
    found = {(a.name, a.unit): (a.debits_posted, a.credits_posted) for a in book.accounts.all()}
    for unit in {unit for _, unit in found}:
        assert sum(left - came for (_, u), (left, came) in found.items() if u == unit) == 0
    return found


async def test_what_the_cache_gave_and_took_is_accounted_for(house: House) -> None:
    server = house.up("--slots", "1")
    call = Http(server.ready["listen"])
    name = hashlib.sha256(BLOB).hexdigest()
    assert call("PUT", f"/cas/{name}", BLOB).status == 200
    for _ in range(3):
        assert call("GET", f"/cas/{name}").body == BLOB
    assert call("GET", f"/ac/{'0' * 64}").status == 404
    async with Client(server.url) as client:
        assert not (await client.run(["/bin/echo", "once"])).cached
        assert (await client.run(["/bin/echo", "once"])).cached
    assert server.stop() == 0
    told = entries(house.directory / "controller")
    kinds = Counter(entry["kind"] for entry in told)
    assert kinds["action.published"] == 1
    assert kinds["cache.read"] >= 1
    assert kinds["cache.written"] >= 1
    assert kinds["cache.kept"] == 1
    found = sums(told)
    # One from the node, and one from the cache; what was not there is none.
    assert found["caller:anonymous", "actions"] == (0, 2)
    assert found["cache:read", "actions"] == (1, 0)
    sent, got = found["caller:anonymous", "bytes"]
    assert 3 * len(BLOB) <= got < 3 * len(BLOB) + 50_000
    assert len(BLOB) <= sent < len(BLOB) + 50_000
    stored = found["cache:store", "bytes"][1]
    assert len(BLOB) <= stored <= sent + found.get(("worker:anonymous", "bytes"), (0, 0))[0] + 50_000
    reads = [entry for entry in told if entry["kind"] == "cache.read"]
    assert sum(entry["results"] for entry in reads) == 1
    assert sum(entry["reads"] for entry in reads) >= 3


def test_bytes_are_accounted_for_as_they_came_and_not_as_they_were_announced(house: House) -> None:
    server = house.up("--no-worker")
    call = Http(server.ready["listen"])
    # Announced and never sent.
    with call.raw() as connection:
        connection.sendall(b"PUT /gradle/huge HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")
    # Sent and never announced.
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(BLOB), BLOB) for _ in range(3))
    with call.raw() as connection:
        head = b"PUT /gradle/pieces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + chunks + b"0\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 201 ")
    assert server.stop() == 0
    sent = sums(entries(house.directory / "controller"))["caller:anonymous", "bytes"][0]
    assert sent == 3 * len(BLOB)


async def test_who_is_over_a_quota_is_counted(house: House, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[[scheduler.share]]\nuser = "*"\nqueued_max = 0\n')
    server = house.up("--no-worker", "--config", str(config))
    async with Client(server.url) as client:
        for number in range(2):
            with pytest.raises(Overloaded, match="quota"):
                await client.run(["/bin/echo", str(number)])
    assert server.stop() == 0
    told = entries(house.directory / "controller")
    refused = [entry for entry in told if entry["kind"] == "quota.refused"]
    assert sum(entry["actions"] for entry in refused) == sums(told)["quota:refused", "actions"][1] >= 2
    assert all(line.startswith("caller:anonymous quota:refused actions ") for e in refused for line in e["transfers"])


def test_what_is_evicted_leaves_the_account_of_the_store(house: House) -> None:
    server = house.up("--no-worker", "--cache-keep", "0s")
    call = Http(server.ready["listen"])
    for number in range(20):
        blob = bytes([number]) * 200_000
        assert call("PUT", f"/cas/{hashlib.sha256(blob).hexdigest()}", blob).status == 200
    collected = subprocess.run(
        [*COMMAND, "cas", "gc", "--to", "0", "--url", server.url], capture_output=True, text=True
    )
    assert collected.returncode == 0, collected.stderr
    assert server.stop() == 0
    told = entries(house.directory / "controller")
    evicted = [entry for entry in told if entry["kind"] == "cache.evicted"]
    assert sum(entry["records"] for entry in evicted) >= 1
    assert sums(told)["cache:evicted", "bytes"][1] >= 1
