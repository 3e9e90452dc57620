"""What the ledger costs a published action: the same no-op actions with it and without, in turns, in one server.

Without it: a subclass that keeps entries in memory (buildnet.testing.memory_ledger, which passes the ledger's contract
suite) takes the place of the ledger in this script's own server process, and a signal to that process puts it in and
out of use. A server has neither such an option nor such a signal.

Back of the envelope: an action is three entries, written together when it is published: some 30 us in the loop
(encoding, accounts, the tail), 30 us in the thread that commits, and a part of one transaction a second, some 3 ms: at
300 a second 70 us of the 2-3 ms that controller, worker and client spend together: 3 %.

Slices of load go with, without, without, with, and so on, so that what drifts (the machine, the history that the server
keeps) bears on both alike; each with is compared with its neighbour without. Printed is the mean of those ratios, and
what it may be off by: one standard error. That the ledger grew in each slice with it, by three entries an action, and
by none in those without, is checked.

    python bench/ledgering.py [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.actions import load, load_many, worker
from bench.lines import header, server
from bench.processes import below_cpu_s, cpu_s
from buildnet.ledger.log import LedgerLog
from buildnet.model.entry import Entry
from buildnet.testing.memory_ledger import MemoryLedger

SWITCHED = [sys.executable, __file__, "--be-server"]


class Switched(LedgerLog):
    """A ledger that takes entries in memory alone while it is switched off; a signal switches it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._memory = MemoryLedger()
        self._on = True
        signal.signal(signal.SIGUSR1, lambda *_: self._switch())

    def _switch(self) -> None:
        self._on = not self._on

    async def append(self, entries: Sequence[Entry]) -> int:
        """Keep the entries, or have them for as long as the server runs."""
        if self._on:
            return await super().append(entries)
        return self.size + await self._memory.append(entries)


class Cost(NamedTuple):
    """Of one action: processor time of all, and of the controller, in milliseconds; and actions a second."""

    all_ms: float
    controller_ms: float
    per_s: float


def serve_switched(arguments: list[str]) -> None:
    """Be a server whose ledger is that."""
    from buildnet.app import grounds
    from buildnet.cli.main import main as command_line

    vars(grounds)["LedgerLog"] = Switched
    sys.argv = ["buildnet", *arguments]
    command_line()


def entries(url: str) -> int:
    """How many entries the ledger has, once all that it was given is in its database."""
    with urlopen(f"{url.replace('grpc', 'http', 1)}/ledger/checkpoint", timeout=30) as note:
        return int(note.read().splitlines()[1])


def measure(url: str, controller: int, working: int, seconds: float, *, ledgered: bool) -> Cost:
    """One slice: one worker of two slots, 64 clients."""
    first, before = entries(url), (cpu_s(controller), cpu_s(working) + below_cpu_s(working))
    busy = load_many(url, seconds)
    grown, after = entries(url) - first, (cpu_s(controller), cpu_s(working) + below_cpu_s(working))
    assert (grown >= 3 * busy["calls"]) if ledgered else not grown, f"{grown} entries of {busy['calls']} actions"
    controller_ms, worker_ms = ((after[i] - before[i]) / busy["calls"] * 1e3 for i in (0, 1))
    return Cost(controller_ms + worker_ms + busy["load_cpu_us_per_call"] / 1e3, controller_ms, busy["calls_per_s"])


def told(name: str, pairs: Sequence[tuple[float, float]], unit: str) -> None:
    """Print the medians of both, the mean of their ratios and its standard error."""
    logs = [math.log(kept / without) for kept, without in pairs]
    mean, off = statistics.mean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    kept, without = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = math.exp(mean)
    print(
        f"  {name:34} {kept:10.2f} {unit:9} without: {without:.2f}  ratio {ratio:.3f}, give or take {ratio * off:.3f}"
    )


def main() -> None:
    """Print what one action costs with and without, and the ratio."""
    if sys.argv[1:2] == ["--be-server"]:
        serve_switched(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="pairs of slices, two at least")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each slice")
    parsed = parser.parse_args()
    header("ledgering, no-op actions in process isolation, 2 slots, 64 clients")
    pairs: list[tuple[Cost, Cost]] = []
    with server("--no-worker", command=SWITCHED) as (url, controller), worker(url, 2, "process") as working:
        load(url, "--calls", "200", "--seconds", "5", "--warmup", "0")
        ledgered = True
        for _ in range(max(2, parsed.rounds)):
            costs: dict[bool, Cost] = {}
            for turn in range(2):
                costs[ledgered] = measure(url, controller, working, parsed.seconds, ledgered=ledgered)
                if not turn:
                    ledgered = not ledgered
                    os.kill(controller, signal.SIGUSR1)
            pairs.append((costs[True], costs[False]))
    for place, name, unit in (
        (0, "CPU of all", "ms/action"),
        (1, "CPU of the controller", "ms/action"),
        (2, "actions", "/s"),
    ):
        told(f"{name}, ledgered", [(kept[place], without[place]) for kept, without in pairs], unit)


if __name__ == "__main__":
    main()
