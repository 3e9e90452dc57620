"""How every benchmark prints: figure, what it is measured against, and their ratio; machine and date first."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

COMMAND = [sys.executable, "-m", "buildnet.cli.main"]


def header(what: str) -> None:
    """State the machine and the date."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    print(f"{what}: {len(os.sched_getaffinity(0))} cores, {platform.machine()}, Linux {platform.release()}, {now} UTC")


def line(name: str, value: float, unit: str, peer: str, peer_value: float) -> None:
    """Print one figure beside its peer."""
    print(f"  {name:34} {value:10.1f} {unit:9} {peer}: {peer_value:.1f}  ratio {value / peer_value:.2f}")


@contextmanager
def server(*arguments: str, command: Sequence[str] = COMMAND) -> Iterator[tuple[str, int]]:
    """A controller on a free port; yields its URL and process id. `command` is what takes `up` and its options."""
    with tempfile.TemporaryDirectory(prefix="buildnet-bench-") as scratch:
        up = [*command, "up", "--state", str(Path(scratch, "s")), "--listen", "127.0.0.1:0", "--json", *arguments]
        process = subprocess.Popen(up, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
