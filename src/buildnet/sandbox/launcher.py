"""Plans as the native launcher takes them. Adds nothing that policy did not decide."""

from __future__ import annotations

from typing import Any

from buildnet._native import Process
from buildnet.sandbox import Ending, Place, ending_of
from buildnet.sandbox.policy import Plan

_LOG_READ_BYTES_MAX = 256 << 10


class NativeRunning:
    """A command that the native launcher started."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def fd(self) -> int:
        """Readable when there are logs to read or the command has ended."""
        return self._process.fd

    def read_logs(self) -> list[tuple[int, int, bytes]]:
        """What it has printed since the last call."""
        return self._process.read_logs(_LOG_READ_BYTES_MAX)

    def poll(self) -> Ending | None:
        """How it ended, or None while it runs."""
        facts = self._process.poll()
        return None if facts is None else ending_of(facts)

    def kill(self, reason: str) -> None:
        """Stop it and everything it started."""
        self._process.kill(reason)


def start(plan: Plan, place: Place) -> NativeRunning:
    """Start `plan` in `place`.

    Raises:
        NativeError: it could not be started; nothing runs.
    """
    return NativeRunning(Process.start(_request(plan, place)))


def _request(plan: Plan, place: Place) -> dict[str, Any]:
    return {
        "argv": list(plan.argv),
        "env": dict(plan.env),
        "cwd": place.cwd,
        "writable": [place.root],
        "root_mount": place.root_mount,
        "hidden": list(place.hidden),
        "tmp": place.tmp,
        "stdout_path": place.stdout_path,
        "stderr_path": place.stderr_path,
        "log_size_bytes_max": plan.limits.log_size_bytes_max,
        "timeout_s": plan.timeout_s,
        "memory_bytes": plan.limits.memory_bytes,
        "pids_max": plan.limits.pids_max,
        "cpu_s": plan.limits.cpu_s,
        "network": plan.network,
        "isolation": plan.isolation,
        "cgroup_name": place.name,
    }
