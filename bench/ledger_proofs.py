"""Inclusion proofs at 10^6 entries: made from the database, verified, as a file, and a tile of the tree.

Back of the envelope: a path has 20 hashes, or a few more rows where the tree's right edge is hashed anew: one query for
them, some 3 us a row in Python, and 0.1 ms for the hop to the reading thread and back: 0.2 ms. Verifying is 20 SHA-256,
1 us each, and one Ed25519 verification, 0.1 ms. A tile of level 1 is one query for 256 rows, each on a page of its own:
256 reads of 16 KiB, 5 us each: 1.3 ms. The peers are the figures that were asked for: a proof in 0.5 ms, verified in
1 ms.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line
from buildnet.ledger import proof_file, tree
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry

ENTRIES = 1_000_000
BATCH = 4096
ROUNDS = 500


def entry(number: int) -> Entry:
    """An entry of usual size."""
    return Entry("action.published", number, {"action": f"{number:064x}/143", "worker": "w" * 32, "exit_code": 0})


async def filled(directory: Path) -> LedgerLog:
    """A ledger of ENTRIES entries."""
    log = LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), "process")
    for start in range(0, ENTRIES, BATCH):
        await log.append([entry(number) for number in range(start, min(start + BATCH, ENTRIES))])
        # So that the database keeps up, and nothing is refused.
        await log.signed_size()
    return log


async def median_us(work: Callable[[int], Awaitable[object]], indices: list[int]) -> float:
    """The median of one round in microseconds of this process's processors, which others' work does not lengthen."""
    took = []
    for index in indices:
        started = time.process_time()
        await work(index)
        took.append(time.process_time() - started)
    return sorted(took)[len(took) // 2] * 1e6


async def measure(directory: Path) -> None:
    """Print each figure."""
    log = await filled(directory)
    note = await log.checkpoint()
    head = log.verifier.open(note)
    chosen = random.Random(1)
    indices = [chosen.randrange(ENTRIES) for _ in range(ROUNDS)]
    paths = {index: await log.prove_inclusion(index, head.size) for index in indices}
    bodies = {index: await log.get(index) for index in indices}
    files = {index: proof_file.to_text(index, paths[index], note, bodies[index]) for index in indices}

    async def prove(index: int) -> None:
        await log.prove_inclusion(index, head.size)

    async def verify(index: int) -> None:
        opened = log.verifier.open(note)
        assert tree.verify_inclusion(tree.leaf_hash(bodies[index]), index, head.size, paths[index], opened.root)

    async def verify_file(index: int) -> None:
        proof_file.verify(files[index], log.verifier.text)

    async def tile(index: int) -> None:
        assert len(await log.nodes(8, index // 65536 % (ENTRIES // 65536) * 256, 256)) == 256

    line("proof made", await median_us(prove, indices), "us", "at most", 500)
    line("proof and signature verified", await median_us(verify, indices), "us", "at most", 1000)
    line("proof file verified", await median_us(verify_file, indices), "us", "at most", 1000)
    line("tile of level 1 read", await median_us(tile, indices), "us", "envelope", 1300)
    await log.close()


def main() -> None:
    """Measure in a directory that is removed."""
    header(f"ledger proofs, {ENTRIES:,} entries")
    with tempfile.TemporaryDirectory(prefix="buildnet-bench-") as scratch:
        asyncio.run(measure(Path(scratch)))


if __name__ == "__main__":
    main()
