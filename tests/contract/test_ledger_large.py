"""A ledger whose pages of pointers have been split is as sound as a small one."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildnet.errors import LedgerCorrupt
from buildnet.ledger import audit, files
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry

# One entry fills a page, so that so few of them take three levels of the tree of pages, and split the middle one.
BODY_BYTES = 7_900
ENTRIES = 7_200
BATCH = 600


async def test_a_ledger_of_three_levels_of_pages_verifies(tmp_path: Path) -> None:
    log = LedgerLog.open(tmp_path / "ledger", load_or_create_key(tmp_path / "key"), "process")
    for start in range(0, ENTRIES, BATCH):
        await log.append([Entry("test", number, {"text": "x" * BODY_BYTES}) for number in range(start, start + BATCH)])
        await log.signed_size()
    await log.close()
    assert audit.verify(tmp_path).size == ENTRIES
    database = tmp_path / "ledger" / files.DATABASE
    with database.open("r+b") as file:
        file.seek(database.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(LedgerCorrupt):
        audit.verify(tmp_path)
