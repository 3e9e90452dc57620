"""A statement has every posting of its account, whenever the view that finds them was made, and of this ledger only."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from buildnet.errors import StateCorrupt
from buildnet.ledger import queries, statements
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.ledger.statements import Posting, Statements
from buildnet.model.entry import Entry

USED = "node:n1 caller:dora actions 1 cpu_ms 20"


def open_log(directory: Path) -> LedgerLog:
    return LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), "process")


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[LedgerLog]:
    log = open_log(tmp_path)
    yield log
    await log.close()


async def statement(log: LedgerLog, view: Statements, account: str, at_once: int = 3) -> list[Posting]:
    size = await log.signed_size()
    while await log.look(view.follow(size)):
        continue
    found: list[Posting] = []
    last = -1
    while entries := await log.look(view.entries(account, last, at_once)):
        last = entries[-1]
        found += await log.look(statements.postings(account, entries))
    return found


async def test_holds_and_their_ends_are_on_it(log: LedgerLog, tmp_path: Path) -> None:
    view = Statements(tmp_path / "views")
    await log.append(
        [
            Entry("controller.started", 10, {}),
            Entry("action.published", 20, {"action": "a", "transfers": [USED]}),
            Entry("x", 30, {"transfers": ["hold 0 caller:dora node:n1 bytes 8"]}),
        ]
    )
    assert [line.index for line in await statement(log, view, "caller:dora")] == [1, 1, 2]
    await log.append(
        [
            Entry("x", 40, {"transfers": ["post 2.0 3"]}),
            Entry("x", 60, {"transfers": ["hold 0 caller:dora node:n1 bytes 8", "void 4.0"]}),
        ]
    )
    lines = await statement(log, view, "caller:dora")
    assert [(p.index, p.at_unix_ms, p.debit, p.credit, p.unit, p.amount, p.status) for p in lines] == [
        (1, 20, "node:n1", "caller:dora", "actions", 1, "posted"),
        (1, 20, "node:n1", "caller:dora", "cpu_ms", 20, "posted"),
        (2, 30, "caller:dora", "node:n1", "bytes", 8, "pending"),
        (3, 40, "caller:dora", "node:n1", "bytes", 3, "posted"),
        (4, 60, "caller:dora", "node:n1", "bytes", 8, "pending"),
        (4, 60, "caller:dora", "node:n1", "bytes", 8, "voided"),
    ]
    assert await statement(log, view, "caller:dor") == []
    view.close()


async def test_it_is_what_reading_every_entry_would_find(log: LedgerLog, tmp_path: Path) -> None:
    chosen = random.Random(5)
    view = Statements(tmp_path / "views")
    moved: list[tuple[int, str, str, int]] = []
    for turn in range(6):
        for _ in range(40):
            debit, credit = chosen.sample(range(9), 2)
            amount = chosen.randrange(1000)
            moved.append((log.size, f"node:n{debit}", f"node:n{credit}", amount))
            await log.append([Entry("x", log.size, {"transfers": [f"node:n{debit} node:n{credit} bytes {amount}"]})])
        for account in ("node:n0", "node:n8"):
            expected = [one for one in moved if account in one[1:3]]
            lines = await statement(log, view, account, at_once=7)
            assert [(p.index, p.debit, p.credit, p.amount) for p in lines] == expected
        if turn % 2:
            view.close()
            view = Statements(tmp_path / "views")
    view.close()


async def test_much_is_read_in_pieces(log: LedgerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "ROWS_MAX", 10)
    await log.append([Entry("x", 1, {"transfers": [USED]}) for _ in range(25)])
    view = Statements(tmp_path / "views")
    size = await log.signed_size()
    assert [await log.look(view.follow(size)) for _ in range(4)] == [True, True, False, False]
    assert await log.look(view.entries("node:n1", 19, 100)) == [20, 21, 22, 23, 24]
    view.close()


async def test_of_another_ledger_it_is_made_anew(log: LedgerLog, tmp_path: Path) -> None:
    await log.append([Entry("x", 1, {"transfers": [USED]}) for _ in range(5)])
    view = Statements(tmp_path / "views")
    assert len(await statement(log, view, "node:n1")) == 10
    view.close()
    shutil.copytree(tmp_path / "views", tmp_path / "other" / "views")
    other = open_log(tmp_path / "other")
    await other.append([Entry("x", 2, {"transfers": [USED]}) for _ in range(7)])
    view = Statements(tmp_path / "other" / "views")
    assert [line.at_unix_ms for line in await statement(other, view, "node:n1")] == [2] * 14
    view.close()
    await other.close()


async def test_a_damaged_one_is_named_with_its_remedy(log: LedgerLog, tmp_path: Path) -> None:
    await log.append([Entry("x", 1, {"transfers": [USED]})])
    view = Statements(tmp_path / "views")
    (tmp_path / "views").mkdir()
    path = tmp_path / "views" / statements.FILE
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StateCorrupt, match="remove it"):
        await statement(log, view, "node:n1")
    path.unlink()
    assert len(await statement(log, view, "node:n1")) == 2
    view.close()
