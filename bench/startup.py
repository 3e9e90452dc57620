"""Start-up and idle memory.

Back of the envelope: an interpreter starts in 15 ms and click imports in 25, so `--help` should take under 60; a
controller opens two databases and a port (10 ms) after importing protobuf and its own modules (120 ms). Two
interpreters with protobuf and gRPC are 2 x 45 MiB.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import COMMAND, header, line

RUNS = 7
CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"
SETTLE_S = 3.0


def median_ms(command: list[str]) -> float:
    """Median wall time of a command."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def first_answer_s() -> float:
    """From starting `up` to its first answered call."""
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        command = [*COMMAND, "up", "--state", scratch, "--listen", "127.0.0.1:0", "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        listen = json.loads(process.stdout.readline())["listen"]
        with grpc.insecure_channel(listen) as channel:
            call: Any = channel.unary_unary(CAPABILITIES, None, None)
            call(b"", timeout=5)
        took = time.perf_counter() - started
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        return took


def tree_of(pid: int) -> list[int]:
    """A process and everything it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in tree_of(int(child)))]


def idle_mib() -> tuple[float, float]:
    """Proportional and resident memory of an idle controller with its worker."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [*COMMAND, "up", "--state", scratch, "--listen", "127.0.0.1:0", "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        # Idle is what is measured: the worker joins and both settle.
        time.sleep(SETTLE_S)
        pss = rss = 0
        for pid in tree_of(process.pid):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
            pss += int(rollup[rollup.index("Pss:") + 1])
            rss += int(rollup[rollup.index("Rss:") + 1])
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        return pss / 1024, rss / 1024


def main() -> None:
    """Print each figure."""
    header("start-up")
    bare = median_ms([sys.executable, "-c", "pass"])
    script = str(Path(sys.executable).with_name("buildnet"))
    installed = [script] if os.path.exists(script) else COMMAND
    line("buildnet --help", median_ms([*installed, "--help"]), "ms", "python -c pass, ms", bare)
    line("up, to its first answer", first_answer_s() * 1e3, "ms", "python -c pass, ms", bare)
    pss, rss = idle_mib()
    line("idle controller and worker, RSS", rss, "MiB", "the bar, MiB", 150)
    line("idle controller and worker, PSS", pss, "MiB", "the bar, MiB", 150)


if __name__ == "__main__":
    main()
