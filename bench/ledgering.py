"""What the ledger costs a published action: the same no-op actions with it and without, in turns, in one server.

Without it: a subclass that keeps entries in memory (buildnet.testing.memory_ledger, which passes the ledger's contract
suite) takes the place of the ledger in this script's own server process, and a signal to that process puts it in and
out of use. A server has neither such an option nor such a signal.

Back of the envelope: an action is three entries, written together when it is published: some 20 us in the loop
(encoding, accounts, the tail) and 15 us in the thread that commits, where nothing else runs; two to four times that
where the caches are the actions' too: 100 us of the 4 ms that controller, worker and client spend together: 2.5 %.

One load goes on all the time; the ledger is put in and out of use beneath it, with, without, without, with, and so on,
so that what drifts (the machine, the history that the server keeps) bears on both alike, and each slice with it is
compared with its neighbour without. Each ends when all that the ledger was given is in its database, so what a slice
left to do is its own. Printed is the mean of those ratios, and what it may be off by: one standard error. That the
ledger grew in each slice with it, by three entries an action, and by none in those without, is checked.

    python bench/ledgering.py [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.actions import MANY, STREAMS, load, load_command, spent_s, worker
from bench.lines import header, server
from bench.processes import cpu_s
from buildnet.ledger.log import LedgerLog
from buildnet.model.entry import Entry
from buildnet.testing.memory_ledger import MemoryLedger

# Of the server's metrics, a row.
EXECUTED = 'buildnet_calls_total{method="build.bazel.remote.execution.v2.Execution/Execute",code="OK"}'
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


class Seen(NamedTuple):
    """A moment: actions that ended, entries in the database, processor seconds of all and of the controller."""

    at_s: float
    actions: int
    entries: int
    all_s: float
    controller_s: float


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


def actions(url: str) -> int:
    """How many actions the server has answered."""
    with urlopen(f"{url.replace('grpc', 'http', 1)}/metrics", timeout=30) as page:
        (line,) = (row for row in page.read().decode().splitlines() if EXECUTED in row)
    return int(float(line.rpartition(" ")[2]))


def look(url: str, controller: int, others: Sequence[int]) -> Seen:
    """This moment, once the ledger's database has all."""
    held = entries(url)
    controller_s = cpu_s(controller)
    return Seen(time.monotonic(), actions(url), held, controller_s + spent_s(others), controller_s)


def cost(before: Seen, after: Seen, *, ledgered: bool) -> Cost:
    """What an action took between two moments."""
    count, grown = after.actions - before.actions, after.entries - before.entries
    # Those under way at a moment have some of their entries before it and some after it.
    assert (grown > 3 * (count - 2 * STREAMS)) if ledgered else not grown, f"{grown} entries of {count} actions"
    all_ms, controller_ms = ((after[i] - before[i]) / count * 1e3 for i in (3, 4))
    return Cost(all_ms, controller_ms, count / (after.at_s - before.at_s))


@contextmanager
def loaded(url: str, seconds: float) -> Iterator[int]:
    """A load that goes on for as long as this does; every answer is checked. Yields its process id."""
    process = subprocess.Popen(load_command(url, *MANY, "--seconds", str(seconds)), stdout=subprocess.DEVNULL)
    try:
        yield process.pid
        assert process.poll() is None, "the load ended before the measurement"
    finally:
        process.kill()
        process.wait()


def measured(url: str, controller: int, others: Sequence[int], rounds: int, seconds: float) -> list[tuple[Cost, Cost]]:
    """Pairs of what an action costs, ledgered and not."""
    pairs: list[tuple[Cost, Cost]] = []
    before = look(url, controller, others)
    for number in range(rounds):
        costs: dict[bool, Cost] = {}
        first = number % 2 == 0
        for ledgered in (first, not first):
            # Between the two of a pair it changes. What comes while the ledger is asked is the slice's without it.
            changes = ledgered is first
            time.sleep(seconds)
            if changes and ledgered:
                os.kill(controller, signal.SIGUSR1)
            after = look(url, controller, others)
            if changes and not ledgered:
                os.kill(controller, signal.SIGUSR1)
            costs[ledgered], before = cost(before, after, ledgered=ledgered), after
        pairs.append((costs[True], costs[False]))
    return pairs


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
    parser.add_argument("--rounds", type=int, default=40, help="pairs of slices, two at least")
    parser.add_argument("--seconds", type=float, default=1.5, help="seconds of each slice")
    parsed = parser.parse_args()
    header("ledgering, no-op actions in process isolation, 2 slots, 64 clients")
    rounds = max(2, parsed.rounds)
    with server("--no-worker", command=SWITCHED) as (url, controller), worker(url, 2, "process") as working:
        load(url, "--calls", "200", "--seconds", "5", "--warmup", "0")
        with loaded(url, 4 * rounds * parsed.seconds + 60) as client:
            pairs = measured(url, controller, (working, client), rounds, parsed.seconds)
    for place, name, unit in (
        (0, "CPU of all", "ms/action"),
        (1, "CPU of the controller", "ms/action"),
        (2, "actions", "/s"),
    ):
        told(f"{name}, ledgered", [(kept[place], without[place]) for kept, without in pairs], unit)


if __name__ == "__main__":
    main()
