"""What every Ledger promises; and what the one on disk promises beyond."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from buildnet.errors import LedgerCorrupt, NotFound, OutOfRange, StateNewer, StorageFull, TooLarge
from buildnet.ledger import audit, files, tree
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry
from buildnet.ports import Ledger
from buildnet.testing.memory_ledger import MemoryLedger


def entry(number: int) -> Entry:
    return Entry("action.published", number, {"action": f"{number:064x}/1", "cached": True})


def open_log(directory: Path, durability: str = "process") -> LedgerLog:
    return LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), durability)


@pytest.fixture(params=["memory", "process", "power"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    if request.param == "memory":
        yield MemoryLedger()
        return
    log = open_log(tmp_path, request.param)
    yield log
    await log.close()


async def test_indices_follow_each_other(ledger: Ledger) -> None:
    assert await ledger.append([entry(0)]) == 0
    assert await ledger.append([entry(1), entry(2)]) == 1
    assert await ledger.append([entry(3)]) == 3


async def test_nothing_appended_is_nothing(ledger: Ledger) -> None:
    assert await ledger.append([]) == 0
    assert await ledger.append([entry(0)]) == 0
    if isinstance(ledger, LedgerLog):
        await ledger.checkpoint()
    assert await ledger.append([]) == 1
    if isinstance(ledger, LedgerLog):
        # What would be committed of it is, before the next is.
        while ledger._committer is not None and not ledger._committer.done():
            await asyncio.wait([ledger._committer])
    assert await ledger.append([entry(1)]) == 1
    if isinstance(ledger, LedgerLog):
        assert await ledger.get(1) == entry(1).encode()


async def test_appends_at_once_keep_their_groups_together(ledger: Ledger) -> None:
    firsts = await asyncio.gather(*(ledger.append([entry(i), entry(i)]) for i in range(50)))
    assert sorted(firsts) == list(range(0, 100, 2))


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[LedgerLog]:
    log = open_log(tmp_path)
    await log.append([entry(i) for i in range(20)])
    await log.checkpoint()
    yield log
    await log.close()


async def test_entries_and_proofs_are_read_back(log: LedgerLog) -> None:
    head = log.verifier.open(await log.checkpoint())
    assert head.size == 20
    for index in (0, 7, 19):
        body = await log.get(index)
        assert body == entry(index).encode()
        path = await log.prove_inclusion(index, 20)
        assert tree.verify_inclusion(tree.leaf_hash(body), index, 20, path, head.root)
    with pytest.raises(NotFound):
        await log.get(20)
    with pytest.raises(OutOfRange):
        await log.prove_inclusion(3, 21)


async def test_a_tail_goes_on_with_what_comes(log: LedgerLog) -> None:
    tail = log.tail(18, follow=True)
    assert [(await anext(tail))[0] for _ in range(2)] == [18, 19]
    coming = asyncio.ensure_future(anext(tail))
    await log.append([entry(20)])
    assert await coming == (20, entry(20).encode())


async def test_a_body_over_the_limit_is_refused_whole(log: LedgerLog) -> None:
    with pytest.raises(TooLarge):
        await log.append([entry(20), Entry("x", 0, {"text": "y" * files.BODY_BYTES_MAX})])
    assert log.size == 20


async def test_rows_are_the_same_however_many_a_transaction_writes(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for count in (1, 63, 64, 65, 200):
        await log.append([entry(log.size + i) for i in range(count)])
        assert await log.signed_size() == log.size
    assert await log.read(0, 1000) == [entry(i).encode() for i in range(log.size)]
    await log.close()
    assert audit.verify(tmp_path).size == 393


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_full_batches_wait_for_nothing(tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(tmp_path, durability)
    monkeypatch.setattr("buildnet.ledger.log._LINGER_S", 3600.0)
    try:
        entries = [Entry("a", number) for number in range(1024)]
        for _ in range(13):
            await log.append(entries)
        async with asyncio.timeout(30):
            while log._frontier.size < 3 * 4096:
                await asyncio.sleep(0.01)
    finally:
        await log.close()


async def test_it_is_the_same_ledger_after_reopening(log: LedgerLog, tmp_path: Path) -> None:
    older = log.verifier.open(await log.checkpoint())
    await log.close()
    again = open_log(tmp_path)
    assert again.size == 20
    await again.append([entry(20)])
    newer = again.verifier.open(await again.checkpoint())
    path = await again.prove_consistency(20, 21)
    assert tree.verify_consistency(20, 21, path, older.root, newer.root)
    await again.close()
    assert audit.verify(tmp_path).size == 21


async def test_a_running_ledger_is_verified_too(log: LedgerLog, tmp_path: Path) -> None:
    report = await asyncio.to_thread(audit.verify, tmp_path, await log.checkpoint())
    assert (report.size, report.kinds) == (20, {"action.published": 20})


async def test_a_newer_ledger_is_left_alone(log: LedgerLog, tmp_path: Path) -> None:
    log._connection.execute("PRAGMA user_version = 99")
    await log.close()
    with pytest.raises(StateNewer):
        open_log(tmp_path)


async def test_rows_cannot_be_changed(log: LedgerLog) -> None:
    for statement in ("UPDATE leaf SET body = x'00'", "DELETE FROM leaf", "DELETE FROM checkpoint"):
        with pytest.raises(Exception, match="append-only"):
            log._connection.execute(statement)


async def test_a_lost_tail_is_noticed(log: LedgerLog, tmp_path: Path) -> None:
    await log.close()
    shutil.copytree(tmp_path / "ledger", tmp_path / "older")
    again = open_log(tmp_path)
    await again.append([entry(20)])
    note = await again.checkpoint()
    await again.close()
    shutil.copyfile(tmp_path / "older" / files.DATABASE, tmp_path / "ledger" / files.DATABASE)
    with pytest.raises(LedgerCorrupt, match="tail"):
        audit.verify(tmp_path)
    with pytest.raises(LedgerCorrupt, match="tail"):
        open_log(tmp_path)
    # A directory that was replaced as a whole shows nothing by itself: a checkpoint kept elsewhere does.
    assert audit.verify(tmp_path / "older").size == 20
    with pytest.raises(LedgerCorrupt, match="tail"):
        audit.verify(tmp_path / "older", note)


def test_the_key_is_private(tmp_path: Path) -> None:
    load_or_create_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


STRIDE = 61


@pytest.mark.timeout(300)
async def test_an_altered_bit_is_found_wherever_it_is(log: LedgerLog, tmp_path: Path) -> None:
    """The whole header, and every 61st byte of the rest, of every file."""
    for number in range(20, 30):
        await log.append([entry(number)])
    await log.close()
    for name in (files.DATABASE, files.CHECKPOINT, files.VERIFIER_KEY):
        path = tmp_path / "ledger" / name
        good = path.read_bytes()
        places = [*range(min(len(good), 160)), *range(160, len(good), STRIDE)]
        for place in places:
            bad = bytearray(good)
            bad[place] ^= 1 << place % 8
            path.write_bytes(bad)
            with pytest.raises(LedgerCorrupt):
                audit.verify(tmp_path)
        path.write_bytes(good)
    assert audit.verify(tmp_path).size == 30


async def test_an_altered_entry_is_named(log: LedgerLog, tmp_path: Path) -> None:
    await log.append([entry(number) for number in range(40, 90)])
    body = await log.get(log.size - 20)
    await log.close()
    path = tmp_path / "ledger" / files.DATABASE
    good = path.read_bytes()
    begin = good.index(body)
    for place in range(begin, begin + len(body)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        path.write_bytes(bad)
        with pytest.raises(LedgerCorrupt) as found:
            audit.verify(tmp_path)
        assert found.value.fields["where"] == f"entry {log.size - 20}"


APPENDER = """
import asyncio, sys
from pathlib import Path
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry

async def main(directory):
    log = LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), "process")
    for number in range(100_000):
        print(await log.append([Entry("action.published", number)]), flush=True)

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("after", [1, 40])
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, after: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", APPENDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(after)]
    child.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().splitlines() if line]
    child.wait()
    child.stdout.close()
    report = audit.verify(tmp_path)
    assert report.size + report.waiting >= max(acknowledged) + 1
    held = report.size + report.waiting

    async def reopened() -> int:
        log = open_log(tmp_path)
        size = await log.signed_size()
        await log.close()
        return size

    assert asyncio.run(reopened()) == held
    again = audit.verify(tmp_path)
    assert (again.size, again.waiting) == (held, 0)


async def waiting_in_the_tail(log: LedgerLog, directory: Path) -> Path:
    """A copy of a ledger of 20 entries and three more that only the tail holds, as a kill would leave it."""
    await log.checkpoint()
    for number in range(20, 23):
        await log.append([entry(number)])
    shutil.copytree(directory / "ledger", directory / "killed" / "ledger")
    return directory / "killed"


async def test_an_altered_byte_of_the_tail_is_found_or_costs_the_last_entry(log: LedgerLog, tmp_path: Path) -> None:
    killed = await waiting_in_the_tail(log, tmp_path)
    path = next(path for path in (killed / "ledger").glob("tail.*") if path.stat().st_size)
    good = path.read_bytes()
    assert audit.verify(killed).waiting == 3
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        path.write_bytes(bad)
        if place < 2 * len(good) // 3:
            with pytest.raises(LedgerCorrupt):
                audit.verify(killed)
        else:
            # As a write that broke off: whether its append was acknowledged cannot be told.
            assert audit.verify(killed).waiting == 2
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert audit.verify(killed).waiting == length * 3 // len(good)


async def test_a_database_that_cannot_be_written_keeps_its_entries(
    log: LedgerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(bodies: list[bytes]) -> int:
        raise StorageFull("the disk is full")

    await log.checkpoint()
    with monkeypatch.context() as patched:
        patched.setattr(log, "_commit", full)
        assert await log.append([entry(20)]) == 20
        with pytest.raises(StorageFull):
            await log.checkpoint()
        await log.close()
    again = open_log(tmp_path)
    assert await again.get(20) == entry(20).encode()
    await again.close()
