"""Blobs durable, entry committed, cache written, client told: in this order or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from buildnet.errors import BlobsMissing, LeaseLost, StorageFull
from buildnet.model.action import ActionKey, Lease, Outcome
from buildnet.model.caller import Caller
from buildnet.model.digest import EMPTY
from buildnet.model.entry import Entry
from buildnet.scheduler.publish import OrderedPublisher

LEASE = Lease(7, ActionKey("i", EMPTY), "v", 1, 10.0)


class Books:
    """Every port of the publisher, writing down in which order it was asked."""

    def __init__(self, missing: Sequence[str] = (), *, full: bool = False) -> None:
        self.order: list[str] = []
        self.entries: list[Entry] = []
        self._missing = missing
        self._full = full

    def now_unix_ms(self) -> int:
        return 5

    def monotonic_s(self) -> float:
        return 0.0

    async def missing_of_result(self, result: bytes) -> Sequence[str]:
        self.order.append("blobs")
        return self._missing

    async def append(self, entries: Sequence[Entry]) -> int:
        self.order.append("ledger")
        if self._full:
            raise StorageFull("no room")
        self.entries += entries
        return 41

    async def get(self, key: ActionKey) -> bytes | None:
        return None

    async def put(self, key: ActionKey, result: bytes, entry_index: int) -> None:
        assert entry_index == 41
        self.order.append("cache")


def publisher(books: Books) -> OrderedPublisher:
    return OrderedPublisher(books, books, books, books)


async def test_the_order_of_the_law() -> None:
    books = Books()
    outcome = await publisher(books).publish(LEASE, Outcome("ok", b"r"), cacheable=True)
    assert books.order == ["blobs", "ledger", "cache"]
    assert outcome.entry_index == 41
    assert books.entries[0].fields["fence"] == 7


@pytest.mark.parametrize(
    ("caller", "outcome", "line"),
    [
        ("", Outcome("ok", b"r"), "node:v caller:anonymous actions 1"),
        ("dora", Outcome("ok", b"r", cpu_ms=12, cpu_from="usage"), "node:v caller:dora actions 1 cpu_ms 12"),
        ("dora", Outcome("ok", b"r", cpu_ms=9, cpu_from="wall"), "node:v caller:dora actions 1 cpu_ms 9"),
    ],
)
async def test_what_a_node_gave_to_whom_is_accounted(caller: str, outcome: Outcome, line: str) -> None:
    books = Books()
    await publisher(books).publish(replace(LEASE, caller=caller), outcome, cacheable=True)
    fields = books.entries[0].fields
    assert fields["transfers"] == [line]
    # A time that was not measured says so.
    assert fields.get("cpu_from") == ("wall" if outcome.cpu_from == "wall" else None)


@pytest.mark.parametrize(("exit_code", "cacheable"), [(1, True), (0, False)])
async def test_what_is_not_to_be_cached_is_still_in_the_ledger(exit_code: int, cacheable: bool) -> None:
    books = Books()
    await publisher(books).publish(LEASE, Outcome("ok", b"r", exit_code=exit_code), cacheable=cacheable)
    assert books.order == ["blobs", "ledger"]
    assert books.entries[0].fields["cached"] is False


async def test_nothing_is_written_of_a_result_whose_blobs_are_absent() -> None:
    books = Books(missing=["x/1"])
    with pytest.raises(BlobsMissing):
        await publisher(books).publish(LEASE, Outcome("ok", b"r"), cacheable=True)
    assert books.order == ["blobs"]


async def test_nothing_is_cached_that_the_ledger_refused() -> None:
    books = Books(full=True)
    with pytest.raises(StorageFull):
        await publisher(books).publish(LEASE, Outcome("ok", b"r"), cacheable=True)
    assert books.order == ["blobs", "ledger"]


async def test_an_untrusted_node_speaks_for_nobody_but_a_namespace() -> None:
    books = Books()
    wary = OrderedPublisher(books, books, books, books, trusts=lambda node: node != "v")
    with pytest.raises(LeaseLost, match="node v was trusted"):
        await wary.publish(LEASE, Outcome("ok", b"r"), cacheable=True)
    assert books.order == []
    apart = replace(LEASE, key=ActionKey(Caller(namespace="pr").written("i"), EMPTY))
    await wary.publish(apart, Outcome("ok", b"r"), cacheable=True)
    await wary.publish(replace(LEASE, worker="w"), Outcome("ok", b"r"), cacheable=True)
    assert books.order == ["blobs", "ledger", "cache"] * 2
