"""A server process to be killed, filled or starved, and always ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PLAIN = [sys.executable, "-m", "buildnet.cli.main"]


def small_store(segment_bytes: int, size_bytes_max: int, keep_s: int) -> list[str]:
    """The command of a server whose segments and store are small."""
    return [sys.executable, "-m", "tests.faults.small_store", *map(str, (segment_bytes, size_bytes_max, keep_s))]


class NotReady(AssertionError):
    """A server ended before it was ready."""


class Process:
    """`buildnet up --no-worker` over `state`, ready when made. `ready_s` is from its start to its first answer."""

    def __init__(self, state: Path, *arguments: str, command: list[str] | None = None) -> None:
        began = time.monotonic()
        self.process = subprocess.Popen(
            [
                *(command or PLAIN),
                *("up", "--no-worker", "--state", str(state), "--listen", "127.0.0.1:0", "--json"),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "BUILDNET_STATE": str(state / "nowhere")},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.ready_s = time.monotonic() - began
        if not line:
            raise NotReady(f"the server ended with {self.process.wait()} before it was ready")
        self.ready: dict[str, Any] = json.loads(line)

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def resident_bytes(self) -> int:
        """What it holds in memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def peak_bytes(self) -> int:
        """What it held in memory at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def cpu_s(self) -> float:
        """Processor time of all its threads."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
