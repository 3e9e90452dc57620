"""Appends to the ledger, every batch durable and under a signed checkpoint, with and without accounting.

Back of the envelope: a batch is one transaction, two to three syncs of 0.3 ms, and a signature of 0.1 ms; an entry is
two rows and two hashes, some 15 us in Python. A batch of 128 should take 4 ms: 30,000 entries/s. An entry that
accounts for an action and its processor time is parsed, and four sums change: some 10 us more; the rows of balances are
written once a batch. The peer is bare SQLite committing the same bodies with the same settings: what the tree, the
accounts and the signature cost is the ratio.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line
from buildnet.ledger import files
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry, Value

ENTRIES = 12_800


def entry(number: int, *, accounting: bool) -> Entry:
    """An entry of usual size; accounts of eight nodes and eight callers."""
    fields: dict[str, Value] = {"action": f"{number:064x}/143", "worker": "w" * 32, "exit_code": 0}
    if accounting:
        fields["transfers"] = [f"node:{number % 8:032x} caller:{number % 7} actions 1 cpu_ms {number % 5000}"]
    return Entry("action.published", number, fields)


async def ours(directory: Path, batch: int, *, accounting: bool) -> float:
    """Entries a second."""
    log = LedgerLog.open(directory, load_or_create_key(directory.parent / "key"), "power")
    groups = [
        [entry(i, accounting=accounting) for i in range(start, start + batch)] for start in range(0, ENTRIES, batch)
    ]
    started = time.perf_counter()
    for group in groups:
        await log.append(group)
    took = time.perf_counter() - started
    await log.close()
    return ENTRIES / took


def bare(path: Path, batch: int, *, accounting: bool) -> float:
    """Entries a second into one table of SQLite."""
    connection = sqlite3.connect(path, isolation_level=None)
    files.configure(connection, "power")
    connection.execute("CREATE TABLE leaf (seq INTEGER PRIMARY KEY, body BLOB)")
    groups = [
        [(entry(i, accounting=accounting).encode(),) for i in range(start, start + batch)]
        for start in range(0, ENTRIES, batch)
    ]
    started = time.perf_counter()
    for group in groups:
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO leaf (body) VALUES (?)", group)
        connection.execute("COMMIT")
    took = time.perf_counter() - started
    connection.close()
    return ENTRIES / took


def main() -> None:
    """Print each figure."""
    header("ledger, durable against power loss")
    for batch in (16, 128, 1024):
        for accounting in (False, True):
            with tempfile.TemporaryDirectory(prefix="buildnet-bench-") as scratch:
                rate = asyncio.run(ours(Path(scratch, "ledger"), batch, accounting=accounting))
                peer = bare(Path(scratch, "bare.sqlite"), batch, accounting=accounting)
                what = f"batches of {batch}{', accounted' if accounting else ''} ({batch / rate * 1e3:.1f} ms)"
                line(what, rate, "entries/s", "bare SQLite", peer)


if __name__ == "__main__":
    main()
