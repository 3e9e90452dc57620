"""What processes of a benchmark used, as the kernel counts it. Linux only."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_s(pid: int) -> float:
    """Processor time that a process has taken, user and system, threads included."""
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS


def ended_children_cpu_s(pid: int) -> float:
    """The same of its children that ended and were waited for, with theirs."""
    fields = _fields(pid)
    return (int(fields[13]) + int(fields[14])) / _TICKS


def below_cpu_s(pid: int) -> float:
    """The same of all that it started, and what they did: what lives, and what has ended and was waited for."""
    spent_s, unseen = ended_children_cpu_s(pid), children(pid)
    while unseen:
        child = unseen.pop()
        with suppress(FileNotFoundError, ProcessLookupError):
            # One that ends meanwhile is counted by whoever waits for it.
            spent_s += cpu_s(child) + ended_children_cpu_s(child)
            unseen += children(child)
    return spent_s


def peak_mib(pid: int) -> float:
    """The most memory that a process ever had."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    return [
        int(word) for path in Path(f"/proc/{pid}/task").iterdir() for word in (path / "children").read_text().split()
    ]
