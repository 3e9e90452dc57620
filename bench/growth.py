"""Every row of the peers' table with 10^3, 10^5 and 10^6 blobs in the store: what a full store costs a call.

A look-up is two reads of memory that no cache holds at 10^6 blobs: 0.2 us where a call costs 30, but 200 us in a call
of 1,000 digests that costs 400 itself, unless they wait together. Nothing else grows. Slower by over a fifth is steep.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header
from bench.peers.rows import ROWS
from bench.peers.run import measure, say
from bench.peers.servers import Kind, load_binary, ours, start
from bench.peers.table import Result, cell, lines, speed
from bench.store_scale import COUNTS, build, scale

FLAT = 0.8


def filled(count: int) -> Kind:
    """A server whose store holds `count` blobs when it starts."""
    plain = ours("process")

    def command(port: int, second: int, state: Path) -> list[str]:
        scale("fill", state / "cas", count)
        return plain.command(port, second, state)

    return Kind(f"{count:,}", command)


def main() -> int:
    """Measure each row at each size in turn, and print the shares; 1 when a row is not flat."""
    parser = argparse.ArgumentParser(prog="python bench/growth.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of each run")
    parser.add_argument("--only", metavar="CALL", action="append", help="only the rows whose name holds this")
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.only or any(word in row.name for word in options.only)]
    build()
    load = load_binary()
    results: dict[tuple[str, str], list[Result]] = defaultdict(list)
    with ExitStack() as stack:
        servers = []
        for count in COUNTS:
            servers.append(start(filled(count), load))
            stack.callback(servers[-1].stop)
        for row in rows:
            for number in range(options.rounds):
                # Whoever comes first after another call is not always the same.
                for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
                    os.sync()
                    results[row.name, server.kind.name].append(measure(load, server, row, options.seconds))
            say(f"  {row.name}")
    header(f"growth, {options.rounds} rounds of {options.seconds:g} s")
    names = [server.kind.name for server in servers]
    body, steep, seen = [], [], []
    for row in rows:
        figures = [speed(row, results[row.name, name]) for name in names]
        shares = [figure / figures[0] if figure and figures[0] else None for figure in figures[1:]]
        flat = all(share is not None and share >= FLAT for share in shares)
        if not flat:
            steep.append(row.name)
        unit = "MiB/s" if row.large else "calls/s"
        verdict = "" if flat else "steep"
        body.append([row.name, unit, *map(cell, figures), *(cell(share, 2) for share in shares), verdict])
        seen += [share for share in shares if share is not None]
    head = ["blobs in the store", "", *names, *(f"{name} / {names[0]}" for name in names[1:]), ""]
    print("\n".join(lines(head, body)))
    print(f"\nmedian of the shares {statistics.median(seen):.2f}; not flat: {', '.join(steep) or 'none'}")
    return int(bool(steep))


if __name__ == "__main__":
    sys.exit(main())
