"""A graph of 10,000 actions: processor time of its acceptance, and how soon its first action starts.

Prints what the controller's process and this one used, beside the wall: on a machine that others use, only the first
two mean anything. The first action writes down when it ran: that is compared with when the graph was accepted. The
worker has looked at its machine's tools before. The peer is the same number of actions submitted one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from buildnet.client import connect
from buildnet.client.sync import SyncClient
from buildnet.model.action_spec import ActionSpec, OutputInput, spec_of

_TICKS_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in seconds (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


def graph(count: int, salt: str) -> dict[str, ActionSpec]:
    """Layers of a hundred, each action taking two outputs of the layer below, as a build does."""
    specs = {}
    for number in range(count):
        layer, place = divmod(number, 100)
        inputs = [
            OutputInput(f"in/{side}", f"a{(layer - 1) * 100 + (place + side) % 100}", "out/o")
            for side in ((0, 1) if layer else ())
        ]
        specs[f"a{number}"] = spec_of(
            ["sh", "-c", f": {salt} {number}; date +%s%N > out/o"],
            inputs=inputs,
            variables={"PATH": "/usr/bin:/bin"},
            outputs=["out/o"],
        )
    return specs


def announced(net: SyncClient) -> None:
    """Return once the worker has said which tools it has: on a new state directory it asks dozens of programs."""
    next(news for news in net.watch_resources() if any(resource.kind == "tool" for resource in news.present))


def main() -> int:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actions", type=int, default=10_000)
    parser.add_argument("--singles", type=int, default=500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "buildnet.cli.main", "up", "--state", scratch, "--listen", "127.0.0.1:0"]
        server = subprocess.Popen([*command, "--slots", "2", "--json"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            with connect(ready["url"]) as net:
                net.run(["true"])
                announced(net)
                specs = graph(given.actions, scratch)
                used_s, own_s, began_s = cpu_s(server.pid), time.process_time(), time.monotonic()
                accepted = net.start_graph(specs)
                wall_s = time.monotonic() - began_s
                server_s, client_s = cpu_s(server.pid) - used_s, time.process_time() - own_s
                accepted_at_ns = time.time_ns()
                ran = Path(scratch, "ran")
                net.result(accepted.ids["a0"]).outputs["out/o"].download(ran)
                later_ms = (int(ran.read_text()) - accepted_at_ns) / 1e6
                print(f"{given.actions} actions accepted: server {server_s:.2f} s CPU, client {client_s:.2f} s CPU, "
                      f"wall {wall_s:.2f} s; the first ran {abs(later_ms):.0f} ms "
                      f"{'later' if later_ms >= 0 else 'before that'}")  # fmt: skip
                net.cancel_graph(accepted.id)
                used_s = cpu_s(server.pid)
                singles = [net.submit(specs[f"a{number % 100}"]) for number in range(given.singles)]
                each_ms = 1000 * (cpu_s(server.pid) - used_s) / given.singles
                for info in singles:
                    net.cancel(info.id)
                print(f"one by one: server {each_ms:.3f} ms CPU each, as against "
                      f"{1000 * server_s / given.actions:.3f} ms in the graph")  # fmt: skip
        finally:
            server.terminate()
            server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
