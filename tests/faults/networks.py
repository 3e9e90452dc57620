"""Workers in network namespaces of their own, whose links can be cut. No address or link is made outside namespaces
that were made here: the process that makes them, and the controller that it starts, are in one themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# The controller's, on the loopback device of the hub's namespace; workers reach it by their own link.
HUB = "10.209.0.1"
_INSIDE = "BUILDNET_TEST_HUB"


def refusal() -> str:
    """Why this machine lets us make no networks; "" when it does."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"{program} is not here; install util-linux and iproute2"
    tried = subprocess.run(
        ["unshare", "--net", "--", "sh", "-ec", "ip link set lo up; ip link add name near type veth peer name far"],
        capture_output=True,
        text=True,
    )
    return "" if tried.returncode == 0 else f"no network namespaces with links: {tried.stderr.strip()[:200]}"


def in_hub(arguments: Sequence[str]) -> list[str]:
    """The command that runs a Python module in a new namespace, which ends with it."""
    return ["unshare", "--net", "--", "env", f"{_INSIDE}=1", sys.executable, "-m", *arguments]


def is_hub() -> bool:
    """Whether this process was started by `in_hub`, and nobody else has made links here."""
    devices = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    # Both: an empty namespace may be somebody's container.
    return bool(os.environ.get(_INSIDE)) and devices == ["lo"]


class Link:
    """One worker's namespace and the only way out of it."""

    def __init__(self, number: int) -> None:
        self._near, far = f"hub{number}", f"far{number}"
        # It holds the namespace, and ends when this process does.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline()
        self.within = ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--")
        near, away = f"10.209.{number}.1", f"10.209.{number}.2"
        _run(
            "ip", "link", "add", "name", self._near, "type", "veth", "peer", "name", far, "netns", str(self._holder.pid)
        )
        _run("ip", "address", "add", f"{near}/30", "dev", self._near)
        _run("ip", "link", "set", self._near, "up")
        _run(*self.within, "ip", "address", "add", f"{away}/30", "dev", far)
        # Actions have namespaces of their own; the worker's loopback is for its own two ends.
        _run(*self.within, "ip", "link", "set", "lo", "up")
        _run(*self.within, "ip", "link", "set", far, "up")
        _run(*self.within, "ip", "route", "add", "default", "via", near)

    def cut(self) -> None:
        """Lose what passes from now on, both ways. No end is told: to the worker its route looks as it did."""
        _run("ip", "link", "set", self._near, "down")

    def heal(self) -> None:
        """Let it pass again. Repeat: safe."""
        _run("ip", "link", "set", self._near, "up")

    def close(self) -> None:
        """Give the namespace up; it is gone with its last process."""
        self._holder.kill()
        self._holder.wait()
        for end in (self._holder.stdin, self._holder.stdout):
            assert end is not None
            end.close()


class Hub:
    """The namespace of this process, and the links that begin in it.

    Raises:
        AssertionError: this process was not started by `in_hub`.
    """

    def __init__(self) -> None:
        assert is_hub(), "run by in_hub: addresses are only made in namespaces of ours"
        self.links: dict[str, Link] = {}
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "address", "add", f"{HUB}/32", "dev", "lo")

    def link(self, name: str) -> Link:
        """The link of a worker, made when it is asked for first."""
        if name not in self.links:
            self.links[name] = Link(len(self.links) + 1)
        return self.links[name]

    def close(self) -> None:
        """Give all of them up."""
        for link in self.links.values():
            link.close()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
