"""What callers did is told once, summed up, in entries that fit and whose transfers the accounts take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from buildnet.app.usage_record import UsageRecord
from buildnet.ledger import usage
from buildnet.ledger.book import Book, postings_of
from buildnet.ledger.usage import StoreAccount, Used
from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.digest import Digest
from buildnet.model.entry import Entry, Value
from buildnet.ports import Progress
from buildnet.scheduler.operation import Operation

NOTHING = {"bytes_written": 0, "evicted": 0, "evicted_bytes": 0, "used_bytes": 0}
HOUR_MS = 3_600_000


class Told:
    """Entries as they are recorded, each accounted for at once."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Mapping[str, Value]]] = []
        self.book = Book()

    def record(self, kind: str, facts: Mapping[str, Value]) -> None:
        entry = Entry(kind, 1, facts)
        assert len(entry.encode()) <= 8 << 10
        postings = postings_of(facts)
        assert postings is not None
        self.book.apply(len(self.entries), 1, postings)
        self.entries.append((kind, facts))

    def sums(self, name: str, unit: str) -> tuple[int, int]:
        account = self.book.accounts.find(name, unit)
        assert account is not None, name
        return account.debits_posted, account.credits_posted


def operation(caller: str, outcome: Outcome) -> Operation:
    wanted = Wanted(ActionKey("", Digest("a" * 64, 1)), (), 60.0, caller=caller)
    return Operation("o", wanted, 0, progress=Progress("completed", outcome))


def test_what_callers_did_is_told_once() -> None:
    told = Told()
    taken: list[list[dict[str, Any]]] = [
        [
            {"subject": "acme/alice", "worker": False, "results": 2, "reads": 1, "read_bytes": 300}
            | {"writes": 1, "written_bytes": 50},
            {"subject": "acme/alice", "worker": True, "results": 0, "reads": 1, "read_bytes": 7}
            | {"writes": 0, "written_bytes": 0},
            {"subject": None, "worker": False, "results": 0, "reads": 0, "read_bytes": 0}
            | {"writes": 4, "written_bytes": 9},
        ]
    ]
    watch = UsageRecord(lambda: NOTHING, told.record, lambda: 0.0)
    watch.over(lambda: taken.pop() if taken else [])
    watch.ended(operation("acme/alice", Outcome("ok", b"", cached=True)))
    watch.ended(operation("bob", Outcome("overloaded", None, "full")))
    watch.ended(operation("bob", Outcome("ok", b"")))
    watch.look()
    assert [(kind, facts["transfers"]) for kind, facts in told.entries] == [
        (
            "cache.read",
            [
                "cache:read caller:acme/alice actions 2 bytes 300",
                "cache:read worker:acme/alice bytes 7",
                "cache:read caller:acme/alice actions 1",
            ],
        ),
        ("cache.written", ["caller:acme/alice cache:written bytes 50", "callers:others cache:written bytes 9"]),
        ("quota.refused", ["caller:bob quota:refused actions 1"]),
    ]
    assert told.sums("caller:acme/alice", "actions") == (0, 3)
    watch.look()
    watch.look(last=True)
    assert len(told.entries) == 3


def test_many_callers_make_entries_that_fit() -> None:
    told = Told()
    used = [Used("x" * 99 + str(number), worker=False, reads=1, read_bytes=1 << 62) for number in range(100)]
    for facts in usage.read(used):
        told.record("cache.read", facts)
    assert sum(len(cast(list[str], facts["transfers"])) for _, facts in told.entries) == 100
    assert told.sums(usage.READ, "bytes") == (100 << 62, 0)


def test_a_store_is_accounted_for_by_its_counters() -> None:
    told = Told()
    account = StoreAccount({**NOTHING, "used_bytes": 1000}, 0)
    grown = {"bytes_written": 4000, "evicted": 2, "evicted_bytes": 2000, "used_bytes": 3000}
    account.look(grown, HOUR_MS // 2)
    for kind, facts in (("cache.kept", account.kept(grown)), ("cache.evicted", account.evicted(grown))):
        assert facts is not None
        told.record(kind, facts)
    assert [facts["transfers"] for _, facts in told.entries] == [
        ["cache:written cache:store bytes 4000", "cache:store cache:kept byte_hours 1000"],
        ["cache:store cache:evicted bytes 2000"],
    ]
    assert account.evicted(grown) is None
    assert account.kept(grown) is None
    # An hour of three thousand bytes, in steps that are each less than a byte's hour.
    for step in range(1, 3601):
        account.look(grown, HOUR_MS // 2 + step * 1000)
    facts = account.kept(grown)
    assert facts is not None
    assert facts["transfers"] == ["cache:store cache:kept byte_hours 3000"]


def test_an_idle_server_tells_of_what_it_keeps_each_hour() -> None:
    told, times = Told(), [0.0]
    watch = UsageRecord(lambda: {**NOTHING, "used_bytes": 7}, told.record, lambda: times[-1])
    for now_s in (10.0, 3599.0):
        times.append(now_s)
        watch.look()
    assert told.entries == []
    times.append(3600.0)
    watch.look()
    assert [kind for kind, _ in told.entries] == ["cache.kept"]


@pytest.mark.parametrize("unit", ["actions", "bytes"])
def test_a_caller_that_did_nothing_is_not_told(unit: str) -> None:
    nobody = replace(Used("a", worker=False), reads=1)
    assert list(usage.read([nobody])) == list(usage.written([nobody])) == list(usage.refused({"a": 0})) == []
