"""Plans as the native launcher takes them. Adds nothing that policy did not decide."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from buildnet._native import Process
from buildnet.sandbox import Ending, Place, ending_of
from buildnet.sandbox.policy import Plan
from buildnet.sandbox.toolchain import accounts

_LOG_READ_BYTES_MAX = 256 << 10


class NativeRunning:
    """A command that the native launcher started."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def fd(self) -> int:
        """Readable when there are logs to read or the command has ended."""
        return self._process.fd

    def quiet(self) -> None:
        """Let `fd` be readable at the next news only."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._process.fd)

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


class Launched:
    """A sandbox whose commands the native launcher starts; whoever has a launcher at hand needs no `start`."""


def start(plan: Plan, place: Place) -> NativeRunning:
    """Start `plan` in `place`.

    Raises:
        NativeError: it could not be started; nothing runs.
    """
    return NativeRunning(Process.start(request_of(plan, place)))


def request_of(plan: Plan, place: Place) -> dict[str, Any]:
    """A plan in its place in the native launcher's words (`buildnet._native.Process`)."""
    return rules_of(plan) | {
        "cwd": place.cwd,
        "root": place.root,
        "root_mount": place.root_mount,
        "shown": list(plan.shown),
        "hidden": list(place.hidden),
        "files": own_files(),
        "tmp": place.tmp,
        "stdout_path": place.stdout_path,
        "stderr_path": place.stderr_path,
        "counted": list(place.counted),
        "cgroup_name": place.name,
    }


def rules_of(plan: Plan) -> dict[str, Any]:
    """What of a plan in the native launcher's words depends on no place."""
    limits = plan.limits
    return {
        "argv": list(plan.argv),
        "env": {**dict(plan.env), **dict(plan.secrets)},
        "masked": [os.fsencode(value) for _, value in plan.secrets],
        "log_size_bytes_max": limits.log_size_bytes_max,
        "timeout_s": plan.timeout_s,
        "memory_bytes": limits.memory_bytes,
        "pids_max": limits.pids_max,
        "cpu_s": limits.cpu_s,
        "cpu_milli": limits.cpu_milli,
        "cpu_is_capped": limits.cpu_is_capped,
        "disk_bytes": limits.disk_bytes,
        "network": plan.network,
        "isolation": plan.isolation,
        "devices": list(plan.devices),
    }


def own_files() -> dict[str, str]:
    """The small files that every command has of its own, by path."""
    return accounts(os.geteuid(), os.getegid())
