"""Appends to the ledger, every batch durable and under a signed checkpoint.

Back of the envelope: a batch is one transaction, two to three syncs of 0.3 ms, and a signature of 0.1 ms; an entry is
two rows and two hashes, some 15 us in Python. A batch of 128 should take 4 ms: 30,000 entries/s. The peer is bare
SQLite committing the same bodies with the same settings: what the tree and the signature cost is the ratio.
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
from buildnet.model.entry import Entry

ENTRIES = 12_800


def entry(number: int) -> Entry:
    """An entry of usual size."""
    return Entry("action.published", number, {"action": f"{number:064x}/143", "worker": "w" * 32, "exit_code": 0})


async def ours(directory: Path, batch: int) -> float:
    """Entries a second."""
    log = LedgerLog.open(directory, load_or_create_key(directory.parent / "key"), "power")
    groups = [[entry(i) for i in range(start, start + batch)] for start in range(0, ENTRIES, batch)]
    started = time.perf_counter()
    for group in groups:
        await log.append(group)
    took = time.perf_counter() - started
    await log.close()
    return ENTRIES / took


def bare(path: Path, batch: int) -> float:
    """Entries a second into one table of SQLite."""
    connection = sqlite3.connect(path, isolation_level=None)
    files.configure(connection, "power")
    connection.execute("CREATE TABLE leaf (seq INTEGER PRIMARY KEY, body BLOB)")
    groups = [[(entry(i).encode(),) for i in range(start, start + batch)] for start in range(0, ENTRIES, batch)]
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
        with tempfile.TemporaryDirectory(prefix="buildnet-bench-") as scratch:
            rate = asyncio.run(ours(Path(scratch, "ledger"), batch))
            peer = bare(Path(scratch, "bare.sqlite"), batch)
            line(f"batches of {batch} ({batch / rate * 1e3:.1f} ms)", rate, "entries/s", "bare SQLite", peer)


if __name__ == "__main__":
    main()
