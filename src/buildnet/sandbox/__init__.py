"""A sandbox runs one plan and tells how it ended. It judges nothing, and it leaves no process
behind.

`policy` decides, each other module is one backend over the native launcher; one contract suite
covers them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from buildnet.sandbox.policy import Plan

Reason = Literal[
    "", "timeout", "memory", "pids", "cpu", "disk", "log_limit", "storage_full", "sandbox_failed", "killed"
]
EXECUTION_ROOT: Final = "/buildnet/root"
"""Where a command finds its execution root, where the backend can choose (`native/stage/src/launch/mounts.rs`)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a plan runs. All paths are absolute paths of the machine; `cwd` is `root` or below it, `tmp` becomes the
    command's /tmp. A backend may show the command other paths: what it leaves is below `root` all the same.

    `name` distinguishes this run among the machine's, for the kernel's control groups. `hidden`
    directories appear empty, where the backend can do that. `root_mount` is a descriptor of a mount that the command
    sees in the place of `root`, or -1: for `namespaces` only. `counted` are the directories whose space is limited:
    none means `root` and `tmp`.
    """

    root: str
    cwd: str
    tmp: str
    stdout_path: str
    stderr_path: str
    name: str
    hidden: tuple[str, ...] = ()
    root_mount: int = -1
    counted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended, and what it used.

    `exit_code` is what it returned, or 128 + N when signal N ended it, as shells say. `limits` says
    for memory, pids, cpu (time), share (of the processors) and disk what bounded them (cgroup1, cgroup2, rlimit,
    watched), `none` when nothing could, or `unset`. `begun_unix_ns`: what is older it did not write.
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
    begun_unix_ns: int = 0


class Running(Protocol):
    """A started command and everything that it starts."""

    @property
    def fd(self) -> int:
        """Readable when there are logs to read or the command has ended."""
        ...

    def quiet(self) -> None:
        """Let `fd` be readable at the next news only; what came before is to be looked at after
        this: `poll`, and the sizes of the files that it prints to.
        """
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
        begun_unix_ns=facts["begun_unix_ns"],
    )
