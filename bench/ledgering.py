"""What the ledger costs a published action: the same no-op actions with it and without, in turns, in one run.

Without it: a subclass that keeps entries in memory (buildnet.testing.memory_ledger, which passes the ledger's contract
suite) takes the place of the ledger in this script's own server process. A server has no such option.

Back of the envelope: an action is three entries, written together when it is published: some 30 us in the loop
(encoding, accounts, the tail), 30 us in the thread that commits, and a part of one transaction a second, some 3 ms: at
300 a second 70 us of the 2-3 ms that controller, worker and client spend together: 3 %.

The figure is the ratio of processor time of all processes for an action: where all processors are busy that is the
ratio of the rates, and others' work on the machine changes it little.

    python bench/ledgering.py [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.actions import load, worker
from bench.lines import COMMAND, header, line, server
from bench.processes import cpu_s
from buildnet.ledger.log import LedgerLog
from buildnet.model.entry import Entry
from buildnet.testing.memory_ledger import MemoryLedger

UNLEDGERED = [sys.executable, __file__, "--be-server"]


class Unledgered(LedgerLog):
    """A ledger that is opened, holds the controller's start, and takes everything else in memory."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._memory = MemoryLedger()
        self._begun = False

    async def append(self, entries: Sequence[Entry]) -> int:
        """Keep the entries for as long as the server runs, after the first."""
        if not self._begun:
            self._begun = True
            return await super().append(entries)
        return self.size + await self._memory.append(entries)


class Cost(NamedTuple):
    """Of one action, in milliseconds of processor time, and actions a second."""

    all_ms: float
    controller_ms: float
    per_s: float


def serve_unledgered(arguments: list[str]) -> None:
    """Be a server whose ledger is that."""
    from buildnet.app import grounds
    from buildnet.cli.main import main as command_line

    vars(grounds)["LedgerLog"] = Unledgered
    sys.argv = ["buildnet", *arguments]
    command_line()


def measure(command: list[str], seconds: float) -> Cost:
    """One server, one worker of two slots, 64 clients."""
    with server("--no-worker", command=command) as (url, controller), worker(url, 2, "process") as working:
        load(url, "--calls", "200", "--seconds", "5", "--warmup", "0")
        before = cpu_s(controller), cpu_s(working)
        busy = load(url, "--streams", "64", "--connections", "4", "--seconds", str(seconds), "--warmup", "0")
        after = cpu_s(controller), cpu_s(working)
    controller_ms, worker_ms = ((after[i] - before[i]) / busy["calls"] * 1e3 for i in (0, 1))
    client_ms = busy["load_cpu_us_per_call"] / 1e3
    return Cost(controller_ms + worker_ms + client_ms, controller_ms, busy["calls_per_s"])


def main() -> None:
    """Print what one action costs with and without, and the ratio."""
    if sys.argv[1:2] == ["--be-server"]:
        serve_unledgered(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each; the medians count")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each round")
    parsed = parser.parse_args()
    header("ledgering, no-op actions in process isolation, 2 slots, 64 clients")
    kept: list[Cost] = []
    without: list[Cost] = []
    for number in range(parsed.rounds):
        kept.append(measure(COMMAND, parsed.seconds))
        without.append(measure(UNLEDGERED, parsed.seconds))
        both = f"{kept[-1].all_ms:.2f} ms ledgered, {without[-1].all_ms:.2f} ms without"
        print(f"    round {number + 1}: {both}", flush=True)

    def median(costs: list[Cost], place: int) -> float:
        return statistics.median(cost[place] for cost in costs)

    line("CPU of all, ledgered", median(kept, 0), "ms/action", "without", median(without, 0))
    line("CPU of the controller, ledgered", median(kept, 1), "ms/action", "without", median(without, 1))
    line("actions, ledgered", median(kept, 2), "actions/s", "without", median(without, 2))


if __name__ == "__main__":
    main()
