"""What a killed controller had not told is told by the next: exactly that."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from buildnet.app import recorder
from buildnet.app.recorder import LedgerRecorder
from buildnet.app.unsaid import unsaid
from buildnet.ledger.queries import LastWords
from buildnet.model.action import ActionKey, Lease, Wanted
from buildnet.model.digest import Digest
from buildnet.model.entry import Entry
from buildnet.model.operation import StoredOperation
from buildnet.scheduler.recovery import Recovered, Waiting
from buildnet.testing.memory_ledger import MemoryLedger

THEN_MS = 1_000_000
DIGEST = Digest("a" * 64, 142)


def waiting(
    number: int, *, at_ms: int = THEN_MS, instance: str = "", alone: bool = False, fence: int | None = None
) -> Waiting:
    key = ActionKey(instance, DIGEST)
    wanted = Wanted(key, frozenset(), 60.0, do_not_cache=alone)
    lease = None if fence is None else Lease(fence, key, "worker", 1, 60.0)
    return Waiting(StoredOperation(number, f"operation-{number}", wanted, at_ms), lease)


def told(held: Sequence[Waiting], last: LastWords) -> list[tuple[str, object]]:
    entries = unsaid(Recovered(waiting=held), last, THEN_MS + 9)
    assert all(entry.at_unix_ms == THEN_MS + 9 for entry in entries)
    return [(entry.kind, entry.fields.get("fence", entry.fields["instance"])) for entry in entries]


def last(*submitted: str, fence: int | None = 0) -> LastWords:
    return LastWords(THEN_MS - 5_000, Counter((instance, DIGEST.text) for instance in submitted), fence)


def test_a_submission_that_the_ledger_lacks_is_told() -> None:
    assert told([waiting(1)], last()) == [("action.submitted", "")]
    assert told([waiting(1)], last("")) == []
    assert told([waiting(1)], last("other")) == [("action.submitted", "")]


def test_what_joined_another_submission_is_not_told_apart() -> None:
    assert told([waiting(1), waiting(2)], last()) == [("action.submitted", "")]
    assert told([waiting(1), waiting(2)], last("")) == []


def test_what_is_never_joined_is_told_each_time() -> None:
    apart = [waiting(1, alone=True), waiting(2, alone=True)]
    assert told(apart, last("")) == [("action.submitted", "")]
    assert len(told(apart, last())) == 2


def test_what_came_long_before_the_last_entry_was_told_then() -> None:
    assert told([waiting(1, at_ms=THEN_MS - 5_001)], last()) == []


def test_leases_newer_than_the_last_one_told_are_told_in_order() -> None:
    held = [waiting(1, fence=9), waiting(2, fence=7), waiting(3, fence=8)]
    assert told(held, last("", "", "", fence=7)) == [("action.assigned", 8), ("action.assigned", 9)]
    assert told(held, last("", "", "", fence=None)) == [], "how far it came is not known"


def test_a_new_ledger_is_not_told_what_was_before_it() -> None:
    assert told([waiting(1, fence=9)], LastWords()) == []


class Counted(MemoryLedger):
    """A ledger that counts how often it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[list[str]] = []

    async def append(self, entries: Sequence[Entry]) -> int:
        self.writes.append([entry.kind for entry in entries])
        return await super().append(entries)


async def test_what_the_queue_keeps_is_written_with_what_comes_next() -> None:
    ledger = Counted()
    written = LedgerRecorder(ledger)
    written.record(Entry("action.submitted", 1))
    written.record(Entry("action.assigned", 2))
    await asyncio.sleep(recorder._LINGER_S)
    assert ledger.writes == []
    assert await written.append([Entry("action.published", 3)]) == 2
    assert ledger.writes == [["action.submitted", "action.assigned", "action.published"]]
    await written.close()


async def test_what_nobody_else_keeps_does_not_wait_for_what_is_kept() -> None:
    ledger = Counted()
    written = LedgerRecorder(ledger)
    written.record(Entry("action.submitted", 1))
    written.record(Entry("action.cancelled", 2))
    async with asyncio.timeout(recorder._PATIENT_LINGER_S):
        while not ledger.writes:
            await asyncio.sleep(0)
    assert ledger.writes == [["action.submitted", "action.cancelled"]]
    await written.close()


async def test_a_long_queue_is_written_in_pieces() -> None:
    ledger = Counted()
    written = LedgerRecorder(ledger)
    for number in range(600):
        written.record(Entry("action.submitted", number))
    await written.close()
    assert [len(kinds) for kinds in ledger.writes] == [256, 256, 88]
    assert [entry.at_unix_ms for entry in ledger._entries] == list(range(600))
