"""Every row of the peers' table with 10^3, 10^5 and 10^6 blobs and as many results: what a full store costs a call.

Hits and FindMissingBlobs ask for any of them, at random: what no cache holds is what a full store adds. Slower by over
a fifth is steep. A share is the median of those of each round, in which the sizes are measured one after another.
Beside it stands what a call costs the server's processor time: what else runs on the machine takes little of that.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header
from bench.peers.rows import ROWS, Row
from bench.peers.run import measure, say
from bench.peers.servers import Running, load_binary, ours, start
from bench.peers.table import Result, cell, speed
from bench.store_scale import COUNTS

FLAT = 0.8
FAMILY = 16
BLOB_BYTES = 512
BATCH = 10
FILL_TIMEOUT_S = 600
# 64 MiB each: what is written over all rounds has to fit the disk.
LARGE_CALLS = 8
NAME_WIDTH = 28
WIDTHS = (7, 8, 8, 8, 7, 7, 7, 7, 7)


def fill(load: Path, server: Running, count: int) -> None:
    """Put so many blobs and so many results."""
    most = ["--seconds", str(FILL_TIMEOUT_S), "--warmup", "0", "--family", str(FAMILY), "--json"]
    for call, calls in (
        (("batch-update", "--size", str(BLOB_BYTES)), count // BATCH),
        (("update-action-result",), count),
    ):
        command = [str(load), "run", "--url", server.url, *most, "--calls", str(calls), "--call", *call]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=FILL_TIMEOUT_S)


def scattered(row: Row, count: int) -> Row:
    """The row, asking for any of what was put."""
    if row.large:
        return replace(row, arguments=(*row.arguments, "--calls", str(LARGE_CALLS)))
    known = ("--family", str(FAMILY), "--stored", str(count))
    if row.name.startswith("find-missing"):
        return replace(row, arguments=(*row.arguments, *known, "--size", str(BLOB_BYTES)))
    if row.name.startswith("get-action-result-hit"):
        return replace(row, arguments=(*row.arguments, *known))
    return row


def share(row: Row, rounds: list[Result], smallest: list[Result]) -> float | None:
    """The median of what each round shows of the smallest store's speed; nothing where one failed."""
    pairs = [(speed(row, [one]), speed(row, [other])) for one, other in zip(rounds, smallest, strict=True)]
    shares = [one / other for one, other in pairs if one and other]
    return statistics.median(shares) if len(shares) == len(pairs) else None


def cost(rounds: list[Result]) -> float | None:
    """Microseconds of the server's processor for a call."""
    seen = [float(one["server_cpu_us_per_call"]) for one in rounds if "server_cpu_us_per_call" in one]
    return statistics.median(seen) if len(seen) == len(rounds) else None


def show(name: str, words: list[str]) -> None:
    """One line of the table, now."""
    cells = [word.rjust(width) for word, width in zip(words, WIDTHS, strict=True)]
    print(" ".join([name.ljust(NAME_WIDTH), *cells]).rstrip(), flush=True)


def main() -> int:
    """Measure each row at each size in turn, and print it; 1 when a row is not flat."""
    parser = argparse.ArgumentParser(prog="python bench/growth.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts")
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds of each run")
    parser.add_argument("--only", metavar="CALL", action="append", help="only the rows whose name holds this")
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.only or any(word in row.name for word in options.only)]
    load = load_binary()
    kind = replace(ours("process"), name="growth")
    steep, seen = [], []
    with ExitStack() as stack:
        servers: list[tuple[int, Running]] = []
        for count in COUNTS:
            server = start(kind, load)
            stack.callback(server.stop)
            servers.append((count, server))
            fill(load, server, count)
            say(f"  {count:,} blobs and results are there")
        header(f"growth, {options.rounds} rounds of {options.seconds:g} s; a share is of {COUNTS[0]:,}'s speed")
        counts = [f"{count:.0e}".replace("e+0", "e") for count in COUNTS]
        show("", ["", *counts, *(f"{name} of" for name in counts[1:]), *(f"{name} us" for name in counts)])
        for row in rows:
            results: dict[int, list[Result]] = defaultdict(list)
            for number in range(options.rounds):
                # Whoever comes first after another call is not always the same.
                turn = number % len(servers)
                for count, server in servers[turn:] + servers[:turn]:
                    os.sync()
                    results[count].append(measure(load, server, scattered(row, count), options.seconds))
            shares = [share(row, results[count], results[COUNTS[0]]) for count in COUNTS[1:]]
            flat = all(part is not None and part >= FLAT for part in shares)
            steep += [] if flat else [row.name]
            seen += [part for part in shares if part is not None]
            figures = [cell(speed(row, results[count])) for count in COUNTS]
            costs = [cell(cost(results[count]), 1) for count in COUNTS]
            unit = "MiB/s" if row.large else "calls/s"
            show(row.name, [unit, *figures, *(cell(part, 2) for part in shares), *costs])
    print(f"median of the shares {statistics.median(seen):.2f}; not flat: {', '.join(steep) or 'none'}")
    return int(bool(steep))


if __name__ == "__main__":
    sys.exit(main())
