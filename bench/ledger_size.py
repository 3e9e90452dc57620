"""A ledger of a million entries, in the mix that actions make: its size, and how long it takes to open, prove, verify.

Back of the envelope, a million entries: opening reads 20 nodes, and every balance: under 0.1 s. An inclusion proof
reads 20 nodes by their place: 0.2 ms; its check is 20 hashes and a signature: 0.3 ms. A full verification parses,
encodes, hashes and compares each entry, some 15 us: 15 s. On disk an entry is its body, two nodes of 40 bytes and its
share of what fills no page, some 4 %: 285 + 80 + 15 bytes.

    python bench/ledger_size.py [ENTRIES]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line
from buildnet.ledger import audit, files
from buildnet.ledger.follower import Follower
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.ledger.receipt import Receipt
from buildnet.ledger.views import Views
from buildnet.model.entry import Entry, Value

ENTRIES = 1_000_000
BATCH = 3 * 1024
PROOFS = 500
# As many as the follower reads at once.
READ = 500


def entries(number: int) -> list[Entry]:
    """The three entries of one action, as the controller writes them."""
    action: dict[str, Value] = {"action": f"{number:064x}/143", "instance": ""}
    lease: dict[str, Value] = {"worker": f"{number % 64:032x}", "fence": (1 << 32) + number, "attempt": 1}
    ended: dict[str, Value] = {"exit_code": 0, "cached": True, "result_sha256": f"{number:064x}"}
    used = f"node:{number % 64:032x} caller:user-{number % 50} actions 1 cpu_ms {number % 90_000}"
    now_ms = 1_900_000_000_000 + number
    return [
        Entry("action.submitted", now_ms, {**action, "operation": f"{number:032x}"}),
        Entry("action.assigned", now_ms, {**action, **lease}),
        Entry("action.published", now_ms, {**action, **lease, **ended, "transfers": [used]}),
    ]


async def fill(directory: Path, count: int) -> tuple[float, int]:
    """Entries a second of a ledger that survives a killed process, and the bytes of all bodies."""
    log = LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), "process")
    started = time.perf_counter()
    for start in range(0, count, BATCH):
        group = [entry for number in range(start // 3, (start + BATCH) // 3) for entry in entries(number)]
        group = group[: count - start]
        await log.append(group)
        await log.signed_size()
    took_s = time.perf_counter() - started
    await log.close()
    return count / took_s, sum(len(body) for _, body in audit.iterate(directory))


async def prove(directory: Path, count: int) -> tuple[float, float, float]:
    """Seconds to open, to prove one entry, and to check a proof."""
    key = load_or_create_key(directory / "key")
    started = time.perf_counter()
    log = LedgerLog.open(directory / "ledger", key, "process")
    opened_s = time.perf_counter() - started
    note = await log.checkpoint()
    indices = [number * 7919 % count for number in range(PROOFS)]
    started = time.perf_counter()
    paths = [await log.prove_inclusion(index, count) for index in indices]
    proven_s = (time.perf_counter() - started) / PROOFS
    vkey = log.verifier.text
    receipts = [
        Receipt(index, await log.get(index), tuple(path), note, vkey)
        for index, path in zip(indices, paths, strict=True)
    ]
    started = time.perf_counter()
    for receipt in receipts:
        receipt.verify()
    checked_s = (time.perf_counter() - started) / PROOFS
    await log.close()
    return opened_s, proven_s, checked_s


async def follow(directory: Path, count: int) -> tuple[float, float, float]:
    """Seconds to read every entry, and to make a view of them; bytes that the view holds of an action that ended."""
    log = LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), "process")
    started = time.perf_counter()
    for start in range(0, count, READ):
        await log.read(start, READ)
    read_s = time.perf_counter() - started
    started = time.perf_counter()
    view = Follower(log, directory / "views", time.monotonic)
    reading = asyncio.ensure_future(view.run())
    await view.reached(count)
    followed_s = time.perf_counter() - started
    reading.cancel()
    bodies = await log.read(0, READ)
    tracemalloc.start()
    held = Views()
    held.apply(bodies)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    await log.close()
    return read_s, followed_s, held_bytes / sum(1 for _ in held.actions.ended())


def main() -> None:
    """Print each figure beside its bound."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ENTRIES
    header(f"a ledger of {count:,} entries")
    with tempfile.TemporaryDirectory(prefix="buildnet-bench-") as scratch:
        directory = Path(scratch)
        rate, body_bytes = asyncio.run(fill(directory, count))
        line("appended", rate, "entries/s", "asked", 25_000.0)
        disk_bytes = (directory / "ledger" / files.DATABASE).stat().st_size
        line("on disk", disk_bytes / count, "bytes/entry", "bodies alone", body_bytes / count)
        opened_s, proven_s, checked_s = asyncio.run(prove(directory, count))
        line("opening", opened_s * 1e3, "ms", "bound", 1000.0)
        line("inclusion proof", proven_s * 1e6, "us", "bound", 500.0)
        line("checking a receipt", checked_s * 1e6, "us", "bound", 1000.0)
        read_s, followed_s, held_bytes = asyncio.run(follow(directory, count))
        line("view made anew", followed_s / count * 1e6, "us/entry", "reading alone", read_s / count * 1e6)
        line("view in memory", held_bytes, "bytes/action", "bound", 1024.0)
        report = audit.verify(directory)
        line("full verification", report.seconds, "s", "bound", 30.0 * count / ENTRIES)


if __name__ == "__main__":
    main()
