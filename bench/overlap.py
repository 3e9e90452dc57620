"""Actions that leave much, on one slot: whether the next one runs while the outputs of the last are on their way.

Back of the envelope: each works for 0.2 s and leaves 32 MiB, which take the worker a read, a hash and a write, and the
controller as much: some 0.1 to 0.3 s together, by the disk and the processors. One after the other an action takes the
sum; overlapped, the longer of both. The work waits and takes no processor, so that it is the slot that is measured;
what it leaves is random, so that nothing makes it smaller. The peer is the work alone.

No-ops beside it: what they take is not to be more for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line, server
from buildnet.client import connect
from buildnet.client.sync import SyncClient
from buildnet.model.action_spec import spec_of

PATH = {"PATH": "/usr/bin:/bin"}


def took_s(net: SyncClient, script: str, count: int) -> float:
    """Seconds for so many actions that are there from the beginning."""
    salt = time.time_ns()
    began_s = time.monotonic()
    submitted = [
        net.submit(spec_of(["sh", "-c", f": {salt} {number}; {script}"], variables=PATH, outputs=["out"]))
        for number in range(count)
    ]
    for info in submitted:
        result = net.result(info.id)
        assert result.exit_code == 0, result.stderr()
    return time.monotonic() - began_s


def main() -> None:
    """Print each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actions", type=int, default=12)
    parser.add_argument("--work", type=float, default=0.2, help="seconds of each")
    parser.add_argument("--mebibytes", type=int, default=32, help="that each leaves")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts")
    given = parser.parse_args()
    header("overlap")
    with server("--slots", "1") as (url, _), connect(url) as net:
        took_s(net, "true", 3)
        working = f"head -c {given.mebibytes}M /dev/urandom > out; sleep {given.work}"
        whole_s = median(took_s(net, working, given.actions) for _ in range(given.rounds)) / given.actions
        alone_s = median(took_s(net, f"{working}; rm out", given.actions) for _ in range(given.rounds)) / given.actions
        nothing_s = median(took_s(net, "true", 50) for _ in range(given.rounds)) / 50
    line(f"{given.mebibytes} MiB left, one slot", whole_s * 1e3, "ms each", "the work alone, ms", alone_s * 1e3)
    line("no-op, one slot", nothing_s * 1e3, "ms each", "the work alone, ms", alone_s * 1e3)


if __name__ == "__main__":
    main()
