"""What the port promises of operations and leases, for the store on disk and the one in memory."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest

from buildnet.errors import InvariantBroken, StateCorrupt, StateNewer
from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.amounts import Amounts
from buildnet.model.digest import Digest
from buildnet.model.history import Requested
from buildnet.model.operation import GraphTerms, Intended, Stored, StoredGraph, StoredLease, StoredOperation
from buildnet.ports import OperationStore
from buildnet.queue import store as stores
from buildnet.queue.records import RESULT_BYTES_MAX
from buildnet.queue.store import SqliteOperations
from buildnet.testing.scheduler_fakes import MemoryOperations

KEY = ActionKey("team\x01kept apart", Digest("ab" * 32, 7))
WANTED = Wanted(
    KEY,
    frozenset({("os", "linux"), ("require", "gcc>=12")}),
    12.5,
    3,
    do_not_cache=True,
    skip_cache_lookup=True,
    asked=Amounts(1500, 4 << 30, 5, 1),
    share=("lab", "ann", "i1"),
    near=(7, 9),
    pinned="v",
)
LEASE = Lease((3 << 32) + 1, KEY, "v", 2, 12.5, "ann", Amounts(2000))
TERMS = GraphTerms("team\x01kept apart", "ann", True, Requested("bazel", "i1", "//a", "Link"), '["ann"]')
GRAPH = StoredGraph("g", 2, TERMS, 1_000, (("o2", "compile ä"), ("o3", "link")), b"\x00actions" * 9)
FULL = Outcome("ok", b"\x00\xff", "m", "v", 1, ("x/1",), True, 5, 6, "usage")


def operation(number: int, **changes: object) -> StoredOperation:
    plain = StoredOperation(number, f"o{number}", replace(WANTED, caller="ann"), 1_000 + number, "mine")
    return replace(plain, **changes)  # type: ignore[arg-type]


class Place:
    """One store, opened again as after a kill: without a word of goodbye."""

    def __init__(self, kind: str, directory: Path) -> None:
        self._kind, self._directory = kind, directory
        self._memory = MemoryOperations()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[OperationStore]:
        if self._kind == "memory":
            self._memory = self._memory.survivor()
            yield self._memory
            return
        opened = SqliteOperations.open(self._directory, self._kind)
        try:
            yield opened
        finally:
            await opened.close()

    async def found(self) -> Stored:
        async with self.opened() as store:
            stored = await store.load()
            return Stored(list(stored.operations), list(stored.leases), list(stored.graphs))


@pytest.fixture(params=["process", "power", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path / "queue")


async def test_a_new_store_holds_nothing(place: Place) -> None:
    assert await place.found() == Stored([], [], [])


async def test_what_was_kept_is_found_in_order(place: Place) -> None:
    async with place.opened() as store:
        for number in (2, 1, 3):
            store.begin(operation(number))
        store.lease(LEASE, 1, alone=True)
        store.intend(LEASE.fence, Intended(FULL, cacheable=True, ledger_size=9))
        await store.kept()
    found = await place.found()
    assert found.operations == [operation(1), operation(2), operation(3)]
    assert found.leases == [StoredLease(LEASE, 1, True, Intended(FULL, True, 9))]


async def test_what_ended_says_how_and_what_is_forgotten_is_gone(place: Place) -> None:
    ended = operation(1, outcome=FULL, completed_at_unix_ms=5_000)
    async with place.opened() as store:
        store.begin(operation(1))
        store.begin(operation(2))
        store.lease(LEASE, 1, alone=False)
        store.end(ended)
        store.release(LEASE.fence)
        store.forget([2])
        await store.kept()
    assert await place.found() == Stored([ended], [], [])


async def test_a_graph_is_kept_with_those_of_its_operations_that_began_or_ended(place: Place) -> None:
    cancelled = operation(3, outcome=replace(FULL, code="cancelled", result=None), completed_at_unix_ms=5_000)
    async with place.opened() as store:
        store.begin_graph(GRAPH)
        store.begin(operation(2))
        store.conclude(cancelled)
        await store.kept()
    assert await place.found() == Stored([operation(2), cancelled], [], [GRAPH])
    async with place.opened() as store:
        store.begin(operation(4))
        store.forget_graph(GRAPH.numbers)
        await store.kept()
    assert await place.found() == Stored([operation(4)], [], [])


async def test_a_store_of_version_1_is_read_and_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    place = Place("process", directory)
    async with place.opened() as store:
        store.begin(operation(1))
        await store.kept()
    # Version 1 had the same tables, and none of graphs.
    with sqlite3.connect(directory / stores.DATABASE) as connection:
        connection.execute("DROP TABLE graph")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    async with place.opened() as store:
        store.begin_graph(GRAPH)
        await store.kept()
    assert await place.found() == Stored([operation(1)], [], [GRAPH])


async def test_what_is_said_of_what_is_not_there_changes_nothing(place: Place) -> None:
    async with place.opened() as store:
        store.end(operation(1, outcome=FULL, completed_at_unix_ms=1))
        store.intend(7, Intended(FULL, cacheable=True, ledger_size=0))
        store.release(7)
        store.forget([7])
        store.forget_graph(range(7, 9))
        await store.kept()
    assert await place.found() == Stored([], [], [])


def test_the_values_that_are_kept_here_have_no_default_left_out() -> None:
    """A field that is added to one of these is to be kept too: give it a value in WANTED, LEASE or FULL."""
    kept = replace(WANTED, caller="ann"), LEASE, FULL, TERMS, TERMS.requested
    left = [
        f"{type(value).__name__}.{f.name}"
        for value in kept
        for f in fields(value)
        if getattr(value, f.name) == f.default
    ]
    assert not left


async def test_a_large_result_is_kept_unless_the_cache_has_it(tmp_path: Path) -> None:
    place = Place("process", tmp_path / "queue")
    large = replace(FULL, result=b"r" * (RESULT_BYTES_MAX + 1), exit_code=0)
    cached = operation(1, outcome=large, wanted=replace(WANTED, do_not_cache=False))
    apart = operation(2, outcome=large)
    failed = operation(3, outcome=replace(large, exit_code=1), wanted=cached.wanted)
    async with place.opened() as store:
        for one in (cached, apart, failed):
            store.begin(one)
            store.end(one)
        await store.kept()
    found = [one.outcome for one in (await place.found()).operations]
    assert found == [replace(large, result=None), large, replace(large, exit_code=1)]


async def test_a_store_that_cannot_be_written_says_so_and_loses_nothing(tmp_path: Path) -> None:
    directory, away = tmp_path / "queue", tmp_path / "away"
    opened = SqliteOperations.open(directory, "process")
    try:
        directory.rename(away)
        opened.begin(operation(1))
        with pytest.raises(StateCorrupt, match="cannot be written"):
            await opened.kept()
        away.rename(directory)
        await opened.kept()
        assert (await opened.load()).operations == [operation(1)]
    finally:
        await opened.close()


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_what_the_database_does_not_have_yet_is_found_after_a_kill(tmp_path: Path, durability: str) -> None:
    directory, left = tmp_path / "queue", tmp_path / "left"
    opened = SqliteOperations.open(directory, durability)
    other = sqlite3.connect(directory / stores.DATABASE, isolation_level=None)
    try:
        opened._connection.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        for number in (1, 2):
            opened.begin(operation(number))
        opened.lease(LEASE, 1, alone=False)
        await opened.kept()
        opened.forget([2])
        await opened.kept()
        shutil.copytree(directory, left)
    finally:
        other.close()
        await opened.close()
    for place in (left, directory):
        again = SqliteOperations.open(place, durability)
        found = await again.load()
        await again.close()
        assert (found.operations, found.leases) == ([operation(1)], [StoredLease(LEASE, 1, alone=False)])


async def test_a_row_that_cannot_be_kept_keeps_no_other_from_the_disk(tmp_path: Path) -> None:
    opened = SqliteOperations.open(tmp_path / "queue", "process")
    try:
        opened.begin(operation(1 << 70))
        with pytest.raises(InvariantBroken):
            await opened.kept()
        opened.begin(operation(1))
        await opened.kept()
        assert (await opened.load()).operations == [operation(1)]
    finally:
        await opened.close()


async def test_a_newer_store_is_refused_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    await SqliteOperations.open(directory, "process").close()
    path = directory / stores.DATABASE
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {stores.SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StateNewer):
        SqliteOperations.open(directory, "process")
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StateCorrupt, match="move it aside"):
        SqliteOperations.open(directory, "process")
