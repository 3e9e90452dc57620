"""The launcher: one small process from which all actions are forked. It ends with its worker and leaves nothing; its
own death costs the actions that need it, and no other.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildnet._native import NativeError, Process, launcher_pid, start_launcher
from tests.flow.test_process import (
    END_WITHIN_S,
    SOURCE,
    follow,
    needs_memory_group,
    needs_network_namespace,
    plan_in,
    python,
    shown_with_token,
    wait_for_end,
    with_token,
)

HOLDER = """
import json, signal, sys
from buildnet._native import Process, launcher_pid
process = Process.start(json.load(sys.stdin))
print(launcher_pid(), flush=True)
signal.pause()
"""


@pytest.fixture
def launcher() -> int:
    """The launcher of this process, running."""
    start_launcher()
    pid = launcher_pid()
    assert pid is not None
    return pid


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Holder:
    """A worker that is nothing but one running action."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin", "BUILDNET_TOKEN": "a-secret"},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(plan))
        self.process.stdin.close()
        self.launcher = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(END_WITHIN_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def held(tmp_path: Path, isolation: str, token: str) -> Iterator[Holder]:
    holder = Holder(plan_in(tmp_path, ["sleep", token], isolation=isolation, memory_bytes=64 << 20))
    yield holder
    holder.kill()


def test_it_dies_with_a_worker_that_is_killed(held: Holder, token: str) -> None:
    watched = [os.pidfd_open(pid) for pid in [held.launcher, *shown_with_token(token)]]
    held.kill()
    wait_for_end(watched)


@needs_memory_group
def test_it_removes_the_control_groups_of_a_worker_that_is_killed(held: Holder, token: str) -> None:
    groups = [
        path
        for line in Path(f"/proc/{shown_with_token(token)[0]}/cgroup").read_text().splitlines()
        for path in Path("/sys/fs/cgroup").rglob(line.rpartition("/")[2])
        if path.name.startswith(f"{held.process.pid}-")
    ]
    assert groups
    watched = os.pidfd_open(held.launcher)
    held.kill()
    wait_for_end([watched])
    assert not any(path.exists() for path in groups)


def test_it_holds_nothing_of_the_workers(held: Holder) -> None:
    seen = Path(f"/proc/{held.launcher}")
    assert b"a-secret" not in (seen / "environ").read_bytes()
    # Beside standard error, which is the worker's: the socket, what tells of ended children, and networks.
    held_open = [os.readlink(fd) for fd in (seen / "fd").iterdir() if fd.name != "2"]
    kinds = sorted({name.partition("[")[0] for name in held_open if name != "/dev/null"})
    assert kinds in (["anon_inode:", "socket:"], ["anon_inode:", "net:", "socket:"])
    assert sum(name.startswith("socket:") for name in held_open) == 1
    assert len(list((seen / "task").iterdir())) == 1


def test_a_terminals_interrupt_does_not_reach_it(held: Holder) -> None:
    assert os.getsid(held.launcher) == held.launcher


def test_it_outlives_a_killed_command(launcher: int, tmp_path: Path, isolation: str, token: str) -> None:
    process = Process.start(plan_in(tmp_path, ["sleep", token], isolation=isolation))
    for pid in shown_with_token(token):
        os.kill(pid, signal.SIGKILL)
    ended = follow(process)
    assert (ended.exit_code, ended.reason) == (137, "")
    assert follow(Process.start(plan_in(tmp_path, ["true"], isolation=isolation))).exit_code == 0
    assert launcher_pid() == launcher


def test_a_command_inherits_no_descriptor(tmp_path: Path, isolation: str) -> None:
    # The fourth is the directory that is listed.
    ended = follow(Process.start(plan_in(tmp_path, ["ls", "/proc/self/fd"], isolation=isolation)))
    assert ended.stdout.split() == [b"0", b"1", b"2", b"3"]


def test_a_new_one_comes_when_it_has_died(launcher: int, tmp_path: Path, isolation: str, token: str) -> None:
    process = Process.start(plan_in(tmp_path, ["sleep", token], isolation=isolation))
    watched = [os.pidfd_open(pid) for pid in shown_with_token(token)]
    ended = os.pidfd_open(launcher)
    os.kill(launcher, signal.SIGKILL)
    wait_for_end([ended])
    assert follow(Process.start(plan_in(tmp_path / "..", ["true"], isolation=isolation))).exit_code == 0
    assert launcher_pid() not in (None, launcher)
    if isolation == "namespaces":
        # It is told as a fault of the machine, not as a result of the command.
        assert follow(process).reason == "sandbox_failed"
    else:
        # Its supervisor needs no launcher, and still obeys.
        process.kill("killed")
        assert follow(process).reason == "killed"
    wait_for_end(watched)


def test_what_a_killed_supervisor_leaves_is_killed(launcher: int, tmp_path: Path, isolation: str, token: str) -> None:
    script = f"setsid sleep {token} & setsid sleep {token} & wait"
    process = Process.start(plan_in(tmp_path, ["sh", "-c", script], isolation=isolation))
    pids: list[int] = []
    while len(pids) < 2:
        pids = shown_with_token(token)
    watched = [os.pidfd_open(pid) for pid in pids]
    supervisor = parent_of(pids[0])
    while parent_of(supervisor) != launcher:
        supervisor = parent_of(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    assert follow(process).reason == "sandbox_failed"
    wait_for_end(watched)
    assert with_token(token) == []


def test_a_command_that_is_too_long_is_refused_and_the_next_one_runs(tmp_path: Path, isolation: str) -> None:
    for argument in ("x" * (3 << 20), "y" * (17 << 20)):
        with pytest.raises(NativeError, match="too l"):
            Process.start(plan_in(tmp_path, ["true", argument], isolation=isolation))
    assert follow(Process.start(plan_in(tmp_path, ["true"], isolation=isolation))).exit_code == 0


def test_a_worker_without_an_interpreter_says_so() -> None:
    code = "import sys; sys.executable = ''; from buildnet._native import start_launcher; start_launcher()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": SOURCE}, check=False)
    assert done.returncode == 1
    assert "sys.executable names no interpreter" in done.stderr


def test_the_end_is_told_where_it_is_waited_for(tmp_path: Path, isolation: str) -> None:
    for _ in range(20):
        process = Process.start(plan_in(tmp_path, ["true"], isolation=isolation, pids_max=32, memory_bytes=64 << 20))
        assert select.select([process.fd], [], [], END_WITHIN_S)[0]
        ended = follow(process)
        assert (ended.exit_code, ended.reason) == (0, "")


@needs_network_namespace
def test_a_network_is_used_again_only_when_nothing_was_sent_in_it(tmp_path: Path) -> None:
    # SO_NETNS_COOKIE (Linux 5.14): inode numbers of namespaces are given again.
    cookie = """
        import socket
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        print(int.from_bytes(one.getsockopt(socket.SOL_SOCKET, 71, 8), "little"))
    """
    send = """
        one.bind(("127.0.0.1", 0))
        one.sendto(b"x", one.getsockname())
    """

    def seen(code: str) -> list[int]:
        plans = [plan_in(tmp_path, list(python(code))) for _ in range(6)]
        return [int(follow(Process.start(plan)).stdout) for plan in plans]

    # The launcher may learn of an end a moment after this process does, so there may be a few in turn.
    assert len(set(seen(cookie))) < 6
    assert len(set(seen(cookie + send))) == 6
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        assert int.from_bytes(own.getsockopt(socket.SOL_SOCKET, 71, 8), "little") not in seen(cookie)
