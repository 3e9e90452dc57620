"""What a ledger says came last before the newest start, which is what an earlier controller may not have told whole."""

from __future__ import annotations

from pathlib import Path

from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.ledger.queries import LAST_WORDS_MS, LastWords, last_words
from buildnet.model.entry import Entry

NOW_MS = 1_000_000_000


def action(kind: str, at_unix_ms: int, **facts: int) -> Entry:
    return Entry(f"action.{kind}", at_unix_ms, {"action": "a/1", "instance": "red", **facts})


def started(at_unix_ms: int) -> Entry:
    return Entry("controller.started", at_unix_ms, {"term": 1})


async def said(directory: Path, *entries: Entry) -> LastWords:
    log = LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), "process")
    try:
        await log.append(entries)
        return await log.look(last_words)
    finally:
        await log.close()


async def test_a_first_start_has_nothing_before_it(tmp_path: Path) -> None:
    assert (await said(tmp_path, started(NOW_MS))).since_unix_ms is None


async def test_the_last_seconds_before_the_start_are_counted(tmp_path: Path) -> None:
    last = await said(
        tmp_path,
        started(1),
        action("submitted", NOW_MS - LAST_WORDS_MS - 1),
        action("assigned", NOW_MS - LAST_WORDS_MS - 1, fence=7),
        action("submitted", NOW_MS - LAST_WORDS_MS),
        action("submitted", NOW_MS - 1),
        action("published", NOW_MS, fence=6),
        # However long the machine was off: what counts is the time of the last entry before.
        started(NOW_MS + 86_400_000),
        action("submitted", NOW_MS + 86_400_001),
    )
    assert last == LastWords(NOW_MS - LAST_WORDS_MS, last.submitted, 7)
    assert last.submitted == {("red", "a/1"): 2}


async def test_no_lease_is_below_every_fence(tmp_path: Path) -> None:
    last = await said(tmp_path, started(1), action("submitted", NOW_MS), started(NOW_MS))
    assert last.fence == 0
