"""`buildnet fleet` as a person and as a script use it, on real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from buildnet._native import probe_isolation
from buildnet.cli import fleet, options
from buildnet.cli.main import cli
from buildnet.client import NodeInfo, connect
from buildnet.errors import NoCapableWorker, TooLarge
from buildnet.model.amounts import Amounts
from buildnet.model.resource import Resource
from tests.conftest import COMMAND, House, Role


def command(*arguments: str) -> str:
    """What a command prints, in this process: a dozen interpreters need not start for it."""
    ended = CliRunner().invoke(cli, ["fleet", *arguments], catch_exceptions=False)
    assert ended.exit_code == 0
    return ended.stdout


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, Role]]:
    """A controller without a worker of its own, for workers to join."""
    house = House(tmp_path_factory.mktemp("town"))
    try:
        yield house, house.up("--no-worker")
    finally:
        house.close()


def node_of(url: str) -> str:
    with connect(url) as client:
        (node,) = client.fleet_nodes()
    return node.node


def test_a_person_sees_cordons_and_drains(town: tuple[House, Role]) -> None:
    house, server = town
    worker = house.join(server.url, "--slots", "2", name="one")
    node = node_of(server.url)
    table = command("ls", "--url", server.url).splitlines()
    assert table[0].split() == ["NODE", "STATE", "TIER", "HOST", "RUNNING", "SLOTS", "VERSION", "SEEN", "NOTE"]
    assert table[1].split()[:3] == [node[:12], "active", "trusted"]
    shown = command("show", "--url", server.url, node[:6])
    assert node in shown
    assert "offers       os=linux" in shown
    assert re.search(r"^capacity     [1-9]\d* cpus?, .* of memory, .* of disk", shown, re.MULTILINE)
    assert "in use       nothing\n" in shown
    assert command("cordon", "--url", server.url, node[:6]) == f"{node} is cordoned\n"
    (listed,) = json.loads(command("ls", "--url", server.url, "--json"))
    assert (listed["node"], listed["state"], listed["cordoned"]) == (node, "cordoned", True)
    assert command("uncordon", "--url", server.url, node) == f"{node} is given work\n"
    assert command("drain", "--wait", "--url", server.url, node) == f"{node} has left\n"
    # The worker's own process ends, and well.
    assert worker.process.wait(20) == 0
    assert command("ls", "--url", server.url).splitlines()[1:] == []
    assert "left" in command("ls", "--all", "--url", server.url)


def test_what_one_action_may_use_is_shown_and_required(town: tuple[House, Role]) -> None:
    house, server = town
    limits = ("--memory-max", "512 MiB", "--pids-max", "99", "--disk-max", "1 GiB", "--log-max", "1 MiB")
    worker = house.join(server.url, "--slots", "1", *limits, name="bounded")
    node = node_of(server.url)
    # It is announced once the worker has looked around.
    while "each action" not in (shown := command("show", "--url", server.url, node)):
        pass
    assert "each action  512.0 MiB of memory, 1.0 GiB of disk, 99 processes, 1.0 MiB of log\n" in shown
    with connect(server.url) as client:
        require = ["sandbox.memory_bytes_max>=512MiB", "sandbox.pids_max<100"]
        assert client.run(["/bin/sh", "-c", ":"], require=require).exit_code == 0
        with pytest.raises(TooLarge, match=f"more than the worker keeps \\({1 << 20} bytes\\)"):
            client.run(["/bin/sh", "-c", "head -c 2M /dev/zero"], env={"PATH": "/usr/bin:/bin"})
    worker.stop()


def test_a_removed_node_is_told_how_it_may_return(town: tuple[House, Role]) -> None:
    house, server = town
    worker = house.join(server.url, "--slots", "1", name="two")
    node = node_of(server.url)
    assert command("rm", "--url", server.url, node) == f"{node} is removed\n"
    worker.stop()
    arguments = ["join", server.url, "--state", str(house.directory / "two"), "--json"]
    ended = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 125
    assert f"buildnet fleet allow {node}" in ended.stderr
    assert command("allow", "--url", server.url, node[:8]) == f"{node} may join\n"
    again = house.join(server.url, "--slots", "1", name="two")
    assert node_of(server.url) == node
    again.stop()


def test_ctrl_c_ends_the_waiting_and_not_the_drain(town: tuple[House, Role]) -> None:
    house, server = town
    worker = house.join(server.url, "--slots", "1", name="three")
    node = node_of(server.url)
    gate = Path.home() / f".buildnet-test-{os.getpid()}"
    gate.mkdir()
    try:
        script = f"while test -d {gate}; do sleep 0.05; done"
        run = subprocess.Popen(
            [*COMMAND, "run", "--url", server.url, "--effect", "read=ambient", "--", "/bin/sh", "-c", script]
        )
        with connect(server.url) as client:
            while not client.fleet_find(node).running:
                pass
            found = client.fleet_find(node)
            assert found.capacity is not None
            # An action that asks for nothing is counted as a slot's worth of the processors.
            assert found.used == Amounts(min(1000, found.capacity.cpu_milli))
        shown = command("show", "--url", server.url, node)
        assert f"in use       {found.used.text}\n" in shown
        arguments = ["drain", "--wait", "--url", server.url, node]
        waiting = subprocess.Popen([*COMMAND, "fleet", *arguments], stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == f"buildnet: {node[:12]} runs 1 more\n"
        waiting.send_signal(signal.SIGINT)
        assert "the drain goes on" in waiting.stderr.read()
        assert waiting.wait(20) == 130
        waiting.stderr.close()
        with connect(server.url) as client:
            assert client.fleet_find(node).state == "draining"
    finally:
        gate.rmdir()
    assert run.wait(30) == 0
    assert worker.process.wait(20) == 0


@pytest.mark.skipif(not probe_isolation()["cgroup_cpu"], reason="no control groups that share out processors")
def test_the_local_worker_has_the_limits_of_up(house: House) -> None:
    server = house.up("--slots", "1", "--cpu-limit", "strict", "--memory-max", "256 MiB", "--pids-max", "77")
    with connect(server.url) as client:
        while not (nodes := client.fleet_nodes()):
            pass
    while "each action" not in (shown := command("show", "--url", server.url, nodes[0].node)):
        pass
    told = next(line for line in shown.splitlines() if line.startswith("each action"))
    for words in ("256.0 MiB of memory", "77 processes", "1.0 GiB of log", "no cpus beyond those that it asked for"):
        assert words in told


def test_a_worker_offers_the_processors_and_gives_the_memory_that_it_is_told_to(house: House) -> None:
    server = house.up("--slots", "3", "--cpus", "0.5", "--memory-max", "1 GiB")
    with connect(server.url) as client:
        while not (nodes := client.fleet_nodes()):
            pass
        assert nodes[0].capacity is not None
        assert (nodes[0].slots, nodes[0].capacity.cpu_milli) == (3, 500)
        assert "0.5 cpus, " in command("show", "--url", server.url, nodes[0].node)
        with pytest.raises(NoCapableWorker, match=r"has 1 cpu: .* has 0.5 cpus, "):
            client.run(["/bin/true"], resources=Amounts(1000))
        with pytest.raises(NoCapableWorker, match=r"has 2 GiB of memory: .* gives one action 1 GiB of memory; "):
            client.run(["/bin/true"], resources=Amounts(memory_bytes=2 << 30))


def test_the_local_worker_that_was_drained_stays_away(house: House) -> None:
    server = house.up("--slots", "1")
    with connect(server.url) as client:
        while not (nodes := client.fleet_nodes()):
            pass
    command("drain", "--wait", "--state", server.ready["state"], nodes[0].node)
    # A restart would have come within half a second; joining another worker takes longer.
    house.join(server.url, "--slots", "1", name="other")
    with connect(server.url) as client:
        assert [node.state for node in client.fleet_nodes() if node.node == nodes[0].node] == []
        assert client.run(["/bin/true"]).exit_code == 0


HOSTILE = NodeInfo(
    node="n\x1b[31m" * 2,
    state="active",
    hostname="\x1b[2J[bold]evil\n\x9b31m",
    version="\x07",
    slots=1,
    asked_by="a\x00b",
    clock_skew_s=2.5,
    joined_at_unix_s=1e300,
    properties={"p\x1b": ["v\r"]},
)


class HostileServer:
    """A server that says what it likes."""

    url = "grpc://nowhere"

    def __enter__(self) -> HostileServer:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def fleet_nodes(self, **_: Any) -> list[NodeInfo]:
        return [HOSTILE]

    def fleet_find(self, _: str) -> NodeInfo:
        return HOSTILE

    def fleet_cordon(self, _: str) -> NodeInfo:
        return HOSTILE

    def fleet_watch(self, **_: Any) -> Iterator[NodeInfo | None]:
        return iter([None, HOSTILE])

    def actions(self, **_: Any) -> list[Any]:
        return []

    def resources(self, **_: Any) -> Iterator[tuple[str, Resource]]:
        facts = (("disk_bytes_max", -1), ("memory_bytes_max", "\x1b[31m"), ("pids_max", 10**18))
        return iter([("x", Resource("sandbox", "\x1b]0;evil\x07", attributes=facts))])


@pytest.mark.parametrize("arguments", [["ls"], ["show", "x"], ["watch"], ["cordon", "x"], ["ls", "--json"]])
def test_what_a_terminal_would_obey_is_written_out(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "connected", lambda *_: HostileServer())
    ended = CliRunner().invoke(fleet.command, arguments, catch_exceptions=False)
    assert ended.exit_code == 0
    assert not set(ended.output) & {"\x1b", "\x07", "\x00", "\r", "\x9b"}
    if arguments == ["ls"]:
        assert "[bold]evil" in ended.output
        assert "clock +2.5 s" in ended.output
        assert len(ended.output.splitlines()) == 2
