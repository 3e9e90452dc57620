"""Workers in network namespaces of their own, whose links can be cut, or that are behind NAT. No address, link or rule
is made outside namespaces that were made here.
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
# The networks of a Nat: RFC 5737's for examples, and a private one of RFC 1918.
PUBLIC = "203.0.113.1"
ROUTER = ("203.0.113.2", "203.0.113.3")
_GATEWAY = "192.168.77.1"
PRIVATE = "192.168.77.2"
# What begins outside gets no further than the router; nor does what it knows nothing of any more, which a router that
# picks up connections in their middle would pass on and have answered by a reset.
_RULES = """
table ip nat {
  chain out { type nat hook postrouting priority 100; oifname "outside" masquerade; }
}
table ip filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "inside" ct state new accept
  }
}
"""
_FORGETFUL = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose"


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


def nat_refusal() -> str:
    """Why this machine lets us make no NAT; "" when it does."""
    if why := refusal():
        return why
    if shutil.which("nft") is None:
        return "nft is not here; install nftables"
    tried = subprocess.run(
        ["unshare", "--net", "--", "sh", "-ec", f"nft -f -; {_FORGETFUL}"], input=_RULES, capture_output=True, text=True
    )
    return "" if tried.returncode == 0 else f"no NAT in network namespaces: {tried.stderr.strip()[:200]}"


def in_hub(arguments: Sequence[str]) -> list[str]:
    """The command that runs a Python module in a new namespace, which ends with it."""
    return ["unshare", "--net", "--", "env", f"{_INSIDE}=1", sys.executable, "-m", *arguments]


def is_hub() -> bool:
    """Whether this process was started by `in_hub`, and nobody else has made links here."""
    devices = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    # Both: an empty namespace may be somebody's container.
    return bool(os.environ.get(_INSIDE)) and devices == ["lo"]


class Namespace:
    """A network namespace with a loopback device and nothing else."""

    def __init__(self) -> None:
        # It holds the namespace, and ends when this process does.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline()
        self.pid = str(self._holder.pid)
        self.within = ("nsenter", f"--net=/proc/{self.pid}/ns/net", "--")
        # Actions have namespaces of their own; the worker's loopback is for its own two ends.
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command: str, said: str = "") -> None:
        """Run a command in it, `said` being its standard input."""
        _run(*self.within, *command, said=said)

    def close(self) -> None:
        """Give it up; it is gone with its last process."""
        self._holder.kill()
        self._holder.wait()
        for end in (self._holder.stdin, self._holder.stdout):
            assert end is not None
            end.close()


class Link(Namespace):
    """One worker's namespace and the only way out of it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._near, far = f"hub{number}", f"far{number}"
        near, away = f"10.209.{number}.1", f"10.209.{number}.2"
        _run("ip", "link", "add", "name", self._near, "type", "veth", "peer", "name", far, "netns", self.pid)
        _run("ip", "address", "add", f"{near}/30", "dev", self._near)
        _run("ip", "link", "set", self._near, "up")
        self.run("ip", "address", "add", f"{away}/30", "dev", far)
        self.run("ip", "link", "set", far, "up")
        self.run("ip", "route", "add", "default", "via", near)

    def cut(self) -> None:
        """Lose what passes from now on, both ways. No end is told: to the worker its route looks as it did."""
        _run("ip", "link", "set", self._near, "down")

    def heal(self) -> None:
        """Let it pass again. Repeat: safe."""
        _run("ip", "link", "set", self._near, "up")


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


class Nat:
    """A controller on a public address, and a worker behind a router that translates its address: what begins inside
    passes, and nothing else does. The controller knows no way to the worker's network.
    """

    def __init__(self) -> None:
        self.controller, self.router, self.worker = self._all = (Namespace(), Namespace(), Namespace())
        for device, peer, addresses in (
            ("outside", self.controller, (ROUTER[0], PUBLIC)),
            ("inside", self.worker, (_GATEWAY, PRIVATE)),
        ):
            self.router.run(
                "ip", "link", "add", "name", device, "type", "veth", "peer", "name", "uplink", "netns", peer.pid
            )
            for end, name, address in ((self.router, device, addresses[0]), (peer, "uplink", addresses[1])):
                end.run("ip", "address", "add", f"{address}/24", "dev", name)
                end.run("ip", "link", "set", name, "up")
        self.worker.run("ip", "route", "add", "default", "via", _GATEWAY)
        self.router.run("sh", "-ec", f"nft -f -; {_FORGETFUL}", said=_RULES)

    def forget(self) -> None:
        """Give the router another public address: it forgets what it translated, and tells no end. Once only."""
        self.router.run("ip", "address", "delete", f"{ROUTER[0]}/24", "dev", "outside")
        self.router.run("ip", "address", "add", f"{ROUTER[1]}/24", "dev", "outside")

    def close(self) -> None:
        """Give all of it up."""
        for namespace in self._all:
            namespace.close()


def _run(*command: str, said: str = "") -> None:
    subprocess.run(command, input=said, text=True, check=True, capture_output=True)
