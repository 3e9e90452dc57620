"""The view follows its ledger, goes on where it stopped, and is made anew where what was kept is not of this ledger."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from buildnet.edge.web.view import View
from buildnet.errors import StateCorrupt, StorageFull
from buildnet.ledger import follower
from buildnet.ledger.follower import FILE, Follower
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry


def open_log(directory: Path) -> LedgerLog:
    return LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), "process")


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[LedgerLog]:
    log = open_log(tmp_path)
    yield log
    await log.close()


def following(log: LedgerLog, directory: Path) -> Follower:
    return Follower(log, directory / "views", asyncio.get_running_loop().time)


def ran(number: int, at_unix_ms: int = 1) -> list[Entry]:
    named: dict[str, str | int] = {"action": f"a{number}", "instance": ""}
    return [
        Entry("action.submitted", at_unix_ms, {**named, "operation": f"o{number}"}),
        Entry("action.published", at_unix_ms, {**named, "fence": number, "worker": "n", "exit_code": 0}),
    ]


def operations(view: Follower) -> list[str]:
    return [run.operation for run in view.views.actions.ended()]


async def test_it_knows_what_is_acknowledged_and_goes_on_where_it_stopped(log: LedgerLog, tmp_path: Path) -> None:
    first = following(log, tmp_path)
    await log.append(ran(1))
    await first.catch_up()
    assert (operations(first), first.behind) == (["o1"], 0)
    await first.close()
    await log.append(ran(2))
    second = following(log, tmp_path)
    await second.catch_up()
    assert operations(second) == ["o2", "o1"]
    # Entries that it had read are not read again.
    assert second.views.kinds["action.submitted"] == 2


@pytest.mark.parametrize("damage", [b"", b"no view", None])
async def test_a_damaged_one_is_made_anew_and_said(
    log: LedgerLog, tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    await log.append(ran(1))
    first = following(log, tmp_path)
    await first.catch_up()
    await first.close()
    path = tmp_path / "views" / FILE
    text = path.read_bytes()
    path.write_bytes(text.replace(b"o1", b"o2") if damage is None else damage)
    second = following(log, tmp_path)
    with caplog.at_level(logging.WARNING):
        await second.catch_up()
    assert operations(second) == ["o1"]
    assert [f"{path} is made anew" in record.getMessage() for record in caplog.records] == [True]
    await second.close()
    assert path.read_bytes() == text


async def test_of_another_ledger_it_is_made_anew(
    log: LedgerLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await log.append(ran(1))
    first = following(log, tmp_path)
    await first.catch_up()
    await first.close()
    for name, entries in (("other", ran(2, 2)), ("shorter", ran(1)[:1])):
        elsewhere = tmp_path / name
        shutil.copytree(tmp_path / "views", elsewhere / "views")
        other = open_log(elsewhere)
        await other.append(entries)
        view = following(other, elsewhere)
        caplog.clear()
        await view.catch_up()
        assert view.views.size == len(entries)
        assert "of another ledger" in caplog.text
        await other.close()


async def test_of_a_long_way_it_says_how_long_it_is(
    log: LedgerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "AT_ONCE_MAX", 5)
    await log.append([entry for number in range(10) for entry in ran(number)])
    await log.signed_size()
    view = following(log, tmp_path)
    await view.catch_up()
    assert (view.behind, operations(view)) == (20, [])
    task = asyncio.ensure_future(view.run())
    try:
        async with asyncio.timeout(20):
            while view.behind:
                await asyncio.sleep(0)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert len(operations(view)) == 10


async def test_many_who_ask_at_once_have_each_entry_taken_once(log: LedgerLog, tmp_path: Path) -> None:
    view = following(log, tmp_path)
    await log.append([entry for number in range(1500) for entry in ran(number)])
    await asyncio.gather(*(view.catch_up() for _ in range(8)))
    assert (view.views.size, view.views.kinds["action.published"]) == (3000, 1500)


@pytest.mark.parametrize(("most", "reads_any"), [(3000, False), (600, True), (0, True)])
async def test_what_was_just_committed_is_not_read_again_unless_it_was_much(
    log: LedgerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, reads_any: bool
) -> None:
    monkeypatch.setattr(follower, "_HANDED_MAX", most)
    reads: list[int] = []
    read = log.read

    async def seen(start: int, count: int) -> list[bytes]:
        reads.append(start)
        return await read(start, count)

    monkeypatch.setattr(log, "read", seen)
    view = following(log, tmp_path)
    for number in range(0, 1500, 100):
        await log.append([entry for one in range(number, number + 100) for entry in ran(one)])
        await log.signed_size()
        if number == 700:
            # Where it is in the midst of what it was handed.
            await view.catch_up()
    await view.catch_up()
    assert (view.views.size, view.views.kinds["action.published"], bool(reads)) == (3000, 1500, reads_any)
    assert len(operations(view)) == len(set(operations(view))) == 1000


async def test_a_full_disk_leaves_what_is_known(
    log: LedgerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(kept: object) -> int:
        raise StorageFull("the ledger cannot be written; make room")

    await log.append([Entry("node.cordoned", 1, {"node": "n"})])
    follower = following(log, tmp_path)
    await follower.catch_up()
    # Nobody has joined and nothing has run: the services that it joins are not asked.
    view = View(log, follower, *(cast("Any", None),) * 3)
    with monkeypatch.context() as patched:
        patched.setattr(log, "_commit", full)
        await log.append([Entry("node.removed", 2, {"node": "n"})])
        nodes = (await view.current()).nodes()
        assert (nodes["absent"][0]["state"], nodes["behind"]) == ("left", 1)
    async with asyncio.timeout(20):
        while (nodes := (await view.current()).nodes())["behind"]:
            # The ledger tries again after a second.
            await asyncio.sleep(0.05)
    assert nodes["absent"][0]["state"] == "removed"


async def test_what_is_no_entry_is_said_with_its_place(
    log: LedgerLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await log.append([*ran(1), Entry("results.updated", 1, {"results": 5})])
    view = following(log, tmp_path)
    with pytest.raises(StateCorrupt, match="entry 2"):
        await view.catch_up()
    assert operations(view) == ["o1"]
    await view.close()
    # What came before it is kept as what it is.
    again = following(log, tmp_path)
    with pytest.raises(StateCorrupt, match="entry 2"):
        await again.catch_up()
    assert again.views.kinds == view.views.kinds
    assert "another ledger" not in caplog.text
