"""With cgroup v2, actions stand below whatever group was handed to the worker, and what bounds it bounds them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.flow.test_process import END_WITHIN_S, SOURCE

ROOT = Path(__file__).parent.parent.parent
MEMORY_BYTES_MAX = 96 << 20

WORKER = """
import json, sys
from pathlib import Path
from buildnet._native import Process
from tests.flow.test_process import follow, plan_in

place, argv, amounts = json.loads(sys.argv[1])
where = follow(Process.start(plan_in(Path(place), ["cat", "/proc/self/cgroup"], **amounts)))
ended = follow(Process.start(plan_in(Path(place), argv, **amounts)))
print(json.dumps({
    "worker": Path("/proc/self/cgroup").read_text(),
    "action": where.stdout.decode(),
    "limits": ended.limits,
    "reason": ended.reason,
    "exit_code": ended.exit_code,
}))
"""

MOUNTED = """
umount -R -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -o "remount,bind,$1" /sys/fs/cgroup
shift && exec "$@"
"""


class Group:
    """A group of version 2 beside this process's own, which others may be started in."""

    def __init__(self, home: Path) -> None:
        self.path = home / f"buildnet-test-{os.getpid()}"
        self.path.mkdir()

    def hand_over(self) -> None:
        os.setxattr(self.path, "user.delegate", b"1")

    def run(self, place: Path, argv: list[str], before: tuple[str, ...] = (), **amounts: int) -> dict[str, Any]:
        """What a worker in it says of an action."""
        code = [*before, sys.executable, "-c", WORKER, json.dumps([str(place), argv, amounts])]
        ran = subprocess.run(
            ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh", *code],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{SOURCE}:{ROOT}"},
            capture_output=True,
            text=True,
            timeout=END_WITHIN_S * 4,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        said: dict[str, Any] = json.loads(ran.stdout)
        return said

    def names(self, text: str) -> str:
        """A line of /proc/PID/cgroup as a path below this group, or the whole line."""
        path = text.strip().removeprefix("0::")
        return path.rpartition(f"/{self.path.name}")[2] if f"/{self.path.name}" in path else path

    def remove(self) -> None:
        for path in sorted(self.path.rglob("*/"), reverse=True):
            with suppress(FileNotFoundError):
                path.rmdir()
        self.path.rmdir()


def _home() -> Path | None:
    """The nearest group around this process that gives its own memory and pids to others."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mount = next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)
    own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    if mount is None:
        return None
    here = mount / own.removeprefix("0::/")
    for path in (here, *here.parents):
        given = path / "cgroup.subtree_control"
        if not given.exists():
            return None
        if {"memory", "pids"} <= set(given.read_text().split()) and os.access(path, os.W_OK):
            return path
    return None


@pytest.fixture
def group() -> Iterator[Group]:
    home = _home()
    if home is None:
        pytest.skip("no group of cgroup v2 around this process has memory and pids to give")
    group = Group(home)
    yield group
    group.remove()


def test_actions_stand_within_what_was_handed_over(group: Group, tmp_path: Path) -> None:
    group.hand_over()
    said = group.run(tmp_path, ["sh", "-c", "head -c 400M /dev/zero | tail"], memory_bytes=64 << 20, pids_max=64)
    assert (said["reason"], said["exit_code"]) == ("memory", 137)
    assert (said["limits"]["memory"], said["limits"]["pids"]) == ("cgroup2", "cgroup2")
    assert group.names(said["worker"]) == "/buildnet-self"
    assert group.names(said["action"]).startswith("/buildnet/")
    # Nothing is left but where the worker stood, which systemd removes with the group.
    assert [path.name for path in group.path.iterdir() if path.is_dir()] == ["buildnet-self"]


def test_what_bounds_the_worker_bounds_its_actions(group: Group, tmp_path: Path) -> None:
    group.hand_over()
    (group.path / "memory.max").write_text(str(MEMORY_BYTES_MAX))
    (group.path / "memory.swap.max").write_text("0")
    said = group.run(tmp_path, ["sh", "-c", "head -c 400M /dev/zero | tail"], memory_bytes=1 << 30)
    assert (said["reason"], said["exit_code"]) == ("memory", 137)


def test_a_group_that_was_not_handed_over_stays_as_it_is(group: Group, tmp_path: Path) -> None:
    said = group.run(tmp_path, ["true"], memory_bytes=64 << 20)
    assert (said["reason"], said["exit_code"], said["limits"]["memory"]) == ("", 0, "cgroup2")
    assert group.names(said["worker"]) == ""
    # Its actions stand beside it.
    assert not group.names(said["action"]).startswith("/buildnet")
    assert not any(path.is_dir() for path in group.path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a namespace of groups as a container's runtime does")
@pytest.mark.parametrize("option", ["rw", "ro"])
def test_a_containers_root_is_its_own_to_divide_if_it_can_be_written(group: Group, tmp_path: Path, option: str) -> None:
    contained = ("unshare", "--cgroup", "--mount", "sh", "-c", MOUNTED, "sh", option)
    said = group.run(tmp_path, ["true"], contained, memory_bytes=256 << 20, pids_max=64)
    assert (said["reason"], said["exit_code"]) == ("", 0)
    if option == "rw":
        assert (said["limits"]["memory"], said["limits"]["pids"]) == ("cgroup2", "cgroup2")
        assert said["worker"] == "0::/buildnet-self\n"
        assert said["action"].startswith("0::/buildnet/")
    else:
        assert (said["limits"]["memory"], said["limits"]["pids"]) == ("rlimit", "none")
        assert said["worker"] == "0::/\n"
