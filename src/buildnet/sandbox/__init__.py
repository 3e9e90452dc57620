"""A sandbox runs one plan and tells how it ended. It judges nothing, and it leaves no process
behind.

`policy` decides, each other module is one backend over the native launcher; one contract suite
covers them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from buildnet.sandbox.policy import Plan

Reason = Literal["", "timeout", "memory", "pids", "cpu", "log_limit", "storage_full", "sandbox_failed", "killed"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a plan runs. All paths are absolute; `cwd` is `root` or below it, `tmp` becomes the
    command's /tmp.

    `name` distinguishes this run among the machine's, for the kernel's control groups. `hidden`
    directories appear empty, where the backend can do that. `root_mount` is a descriptor of a mount that the command
    sees in the place of `root`, or -1: for `namespaces` only.
    """

    root: str
    cwd: str
    tmp: str
    stdout_path: str
    stderr_path: str
    name: str
    hidden: tuple[str, ...] = ()
    root_mount: int = -1


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended, and what it used.

    `exit_code` is what it returned, or 128 + N when signal N ended it, as shells say. `limits` says
    for memory, pids and cpu what bounded them (cgroup1, cgroup2, rlimit), `none` when nothing
    could, or `unset`.
    """

    exit_code: int
    reason: Reason
    wall_s: float
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0
    isolation: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    limits: Mapping[str, str] = field(default_factory=dict)


class Running(Protocol):
    """A started command and everything that it starts."""

    @property
    def fd(self) -> int:
        """Readable when there are logs to read or the command has ended."""
        ...

    def read_logs(self) -> list[tuple[int, int, bytes]]:
        """What it has printed since the last call: stream (1 stdout, 2 stderr), offset, bytes.
        Never blocks.
        """
        ...

    def poll(self) -> Ending | None:
        """How it ended, or None while it runs. Never blocks; once it has ended, so has everything
        it started.
        """
        ...

    def kill(self, reason: str) -> None:
        """Stop it and everything it started; `poll` tells when that is done. Safe to repeat."""
        ...


class Sandbox(Protocol):
    """One way of running commands."""

    isolation: str

    def start(self, plan: Plan, place: Place) -> Running:
        """Start a command.

        Raises:
            NativeError: it could not be started; nothing runs.
        """
        ...


def ending_of(facts: Mapping[str, Any]) -> Ending:
    """Read what the native launcher says of an ended command."""
    return Ending(
        exit_code=facts["exit_code"],
        reason=facts["reason"],
        wall_s=facts["wall_s"],
        user_s=facts["user_s"],
        system_s=facts["system_s"],
        max_rss_bytes=facts["max_rss_bytes"],
        isolation=facts["isolation"],
        stdout_bytes=facts["stdout_bytes"],
        stderr_bytes=facts["stderr_bytes"],
        limits=facts["limits"],
    )
