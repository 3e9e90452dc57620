"""Whole roles, started and ended as a person or a power switch would."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildnet.client import Client, connect
from buildnet.errors import Cancelled, InvalidRequest, StorageFull
from buildnet.ledger import audit
from tests.conftest import COMMAND, House


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd)


@pytest.fixture
def gate() -> Iterator[Path]:
    """A file that an action can wait for if it may read the machine: not below /tmp, which it has of its own."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as directory:
        yield Path(directory) / "gate"


MACHINE = {"read": "ambient"}


async def until_executing(client: Client, count: int) -> None:
    """Wait until so many actions execute: a condition, bounded by the test's timeout."""
    while sum(info.state == "executing" for info in await client.actions()) < count:
        await asyncio.sleep(0.02)


def published(state: Path) -> list[str]:
    entries = [json.loads(body) for _, body in audit.iterate(state)]
    return [entry["action"] for entry in entries if entry["kind"] == "action.published"]


async def test_a_killed_workers_action_runs_elsewhere_within_five_seconds(house: House, gate: Path) -> None:
    server = house.up("--no-worker")
    victim = house.join(server.url, "--slots", "1", name="one")
    async with Client(server.url) as client:
        # It ends at once when the gate is open, and that is only after the first worker is dead.
        script = f"while ! test -e {gate}; do sleep 0.05; done"
        command = ["/bin/sh", "-c", script]
        running = asyncio.ensure_future(client.run(command, env={"PATH": "/usr/bin:/bin"}, effects=MACHINE))
        await until_executing(client, 1)
        house.join(server.url, "--slots", "1", name="two")
        victim.kill()
        killed = time.monotonic()
        gate.touch()
        result = await running
        assert time.monotonic() - killed < 5
        assert result.exit_code == 0
        first = (await client.actions())[0].worker
        again = house.join(server.url, "--slots", "1", name="one")
        assert again.ready["ready"]
        assert result.worker == first
    assert len(published(house.directory / "controller")) == 1


async def test_an_action_waits_for_its_only_worker_to_return(house: House) -> None:
    server = house.up("--no-worker")
    victim = house.join(server.url, "--slots", "1", name="one")
    async with Client(server.url) as client:
        running = asyncio.ensure_future(client.run(["/bin/sleep", "1"]))
        await until_executing(client, 1)
        victim.kill()
        house.join(server.url, "--slots", "1", name="one")
        assert (await running).exit_code == 0
    assert len(published(house.directory / "controller")) == 1


async def test_a_killed_controller_loses_nothing_that_it_acknowledged(house: House) -> None:
    server = house.up("--slots", "2")
    async with Client(server.url) as client:
        results = await asyncio.gather(
            *(client.run(["/bin/sh", "-c", f"echo {i} > o"], outputs=["o"]) for i in range(8))
        )
    server.kill()
    state = house.directory / "controller"
    assert audit.verify(state).kinds["action.published"] == 8
    # Its worker notices that nobody is there, and is stopped with it; a new controller starts its own.
    again = house.up("--slots", "1", listen=server.ready["listen"])
    async with Client(again.url) as client:
        for i, result in enumerate(results):
            cached = await client.run(["/bin/sh", "-c", f"echo {i} > o"], outputs=["o"])
            assert cached.cached
            assert cached.outputs["o"].digest == result.outputs["o"].digest


async def test_equal_actions_at_once_run_once(house: House) -> None:
    server = house.up("--slots", "2")
    async with Client(server.url) as client:
        results = await asyncio.gather(*(client.run(["/bin/sh", "-c", "sleep 0.3; echo x"]) for _ in range(6)))
    assert len({result.stdout_digest for result in results}) == 1
    assert len(published(house.directory / "controller")) == 1


async def test_a_cancelled_operation_stops_its_command(house: House, tmp_path: Path) -> None:
    server = house.up("--slots", "1")
    async with Client(server.url) as client:
        running = asyncio.ensure_future(client.run(["/bin/sleep", "1000"]))
        await until_executing(client, 1)
        await client.cancel((await client.actions())[0].id)
        with pytest.raises(Cancelled):
            await running
        # The slot is free again.
        assert (await client.run(["/bin/true"])).exit_code == 0


async def test_output_comes_while_the_action_runs(house: House, gate: Path) -> None:
    server = house.up("--slots", "1")
    seen: list[bytes] = []

    def on_log(piece: object) -> None:
        seen.append(piece.data)  # type: ignore[attr-defined]
        gate.touch()

    async with Client(server.url) as client:
        script = f"echo begun; while ! test -e {gate}; do sleep 0.05; done; echo ended"
        command = ["/bin/sh", "-c", script]
        result = await client.run(command, env={"PATH": "/bin"}, effects=MACHINE, timeout_s=20, on_log=on_log)
    assert result.exit_code == 0
    assert b"".join(seen) == b"begun\nended\n"


def test_a_port_in_use_is_named_with_its_remedy(house: House, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = command("up", "--state", str(tmp_path / "s"), "--listen", listen)
    assert ended.returncode == 125
    assert listen in ended.stderr
    assert "choose another port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_two_controllers_cannot_share_a_state_directory(house: House) -> None:
    server = house.up("--no-worker")
    ended = command("up", "--state", server.ready["state"], "--listen", "127.0.0.1:0", "--json")
    assert ended.returncode == 125
    assert json.loads(ended.stderr)["error"]["code"] == "state_locked"


def test_a_newer_state_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("9\n")
    ended = command("up", "--state", str(tmp_path), "--listen", "127.0.0.1:0")
    assert (ended.returncode, "upgrade" in ended.stderr) == (125, True)
    assert list(tmp_path.iterdir()) == [tmp_path / "VERSION"]


def test_it_refuses_to_listen_beyond_this_machine(tmp_path: Path) -> None:
    ended = command("up", "--state", str(tmp_path / "s"), "--listen", "0.0.0.0:0")
    assert (ended.returncode, "tls-cert" in ended.stderr) == (125, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly(house: House, number: signal.Signals) -> None:
    server = house.up("--slots", "1")
    state = Path(server.ready["state"])
    with connect(server.url) as client:
        assert client.run(["/bin/true"]).exit_code == 0
    server.process.send_signal(number)
    assert server.process.wait(20) == 0
    assert not (state / "controller.json").exists()
    assert audit.verify(state).size > 0
    assert not list((state / "worker" / "scratch").iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_command_that_is_told_to_end_takes_back_what_it_asked_for(
    house: House, number: signal.Signals, code: int
) -> None:
    # `timeout 60 buildnet run …` and every build server end a command by SIGTERM.
    server = house.up("--slots", "1")
    async with Client(server.url) as client:
        asked = await asyncio.create_subprocess_exec(*COMMAND, "run", "--url", server.url, "--", "sleep", "60")
        await until_executing(client, 1)
        asked.send_signal(number)
        assert await asyncio.wait_for(asked.wait(), 20) == code
        while (state := (await client.actions())[0].state) == "executing":
            await asyncio.sleep(0.02)
        assert state == "cancelled"


def test_a_full_disk_refuses_writes_and_serves_reads(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small filesystem needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", str(disk)], check=True)
    house = House(disk)
    try:
        server = house.up("--no-worker")
        with connect(server.url) as client:
            kept = client.upload(os.urandom(1 << 20))
            large = tmp_path / "large"
            large.write_bytes(os.urandom(90 << 20))
            with pytest.raises(StorageFull):
                client.upload(large)
            assert len(client.read(kept)) == 1 << 20
            assert not list((disk / "controller" / "cas" / "tmp").iterdir())
    finally:
        house.close()
        subprocess.run(["umount", str(disk)], check=True)


# The command line.


def test_run_exits_as_the_action_did_and_brings_outputs(house: House, tmp_path: Path) -> None:
    server = house.up("--slots", "1")
    (tmp_path / "in.txt").write_text("hello\n")
    base = ["run", "--url", server.url, "--input", "in.txt", "--output", "out", "--"]
    script = "cat in.txt; echo oops >&2; mkdir out; cp in.txt out/copy; exit 3"
    ended = command(*base, "sh", "-c", script, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "hello\n", "oops\n")
    assert (tmp_path / "out" / "copy").read_text() == "hello\n"
    shown = command("actions", "ls", "--url", server.url, "--json")
    assert json.loads(shown.stdout)[0]["exit_code"] == 3


def test_blobs_and_trees_come_back(house: House, tmp_path: Path) -> None:
    server = house.up("--no-worker")
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "sub" / "x").write_text("x")
    (tmp_path / "d" / "run").write_text("#!/bin/sh\n")
    (tmp_path / "d" / "run").chmod(0o755)
    digest = command("cas", "put", "--url", server.url, "d", cwd=tmp_path).stdout.strip()
    command("cas", "get", "--url", server.url, "--tree", "-o", "e", digest, cwd=tmp_path)
    assert (tmp_path / "e" / "sub" / "x").read_text() == "x"
    assert os.access(tmp_path / "e" / "run", os.X_OK)
    blob = command("cas", "put", "--url", server.url, "d/sub/x", cwd=tmp_path).stdout.strip()
    assert command("cas", "get", "--url", server.url, blob).stdout == "x"


def test_errors_are_one_line_with_their_remedy(tmp_path: Path) -> None:
    ended = command("actions", "ls", "--state", str(tmp_path))
    assert ended.returncode == 125
    assert "buildnet up" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    ended = command("run", "--url", "grpc://127.0.0.1:1", "--json", "--", "true")
    assert json.loads(ended.stderr)["error"]["code"] == "node_down"


def test_doctor_finds_the_server_and_the_kernels_abilities(house: House) -> None:
    server = house.up("--slots", "1")
    ended = command("doctor", "--url", server.url, "--json")
    findings = {finding["check"]: finding["state"] for finding in json.loads(ended.stdout)}
    assert (ended.returncode, findings["server"]) == (0, "ok")
    assert {"mount_namespace", "cgroup_memory", "disk"} <= findings.keys()
    assert "REMEDY" in command("doctor", "--state", server.ready["state"]).stdout


def test_verify_finds_a_flipped_byte(house: House, tmp_path: Path) -> None:
    server = house.up("--slots", "1")
    with connect(server.url) as client:
        client.run(["/bin/true"])
    assert command("ledger", "verify", "--state", server.ready["state"]).returncode == 0
    server.stop()
    database = Path(server.ready["state"]) / "ledger" / "ledger.sqlite"
    data = bytearray(database.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    database.write_bytes(data)
    ended = command("ledger", "verify", "--state", server.ready["state"])
    assert ended.returncode == 1
    assert ended.stderr


def test_a_bad_input_path_is_refused(house: House, tmp_path: Path) -> None:
    server = house.up("--no-worker")
    with connect(server.url) as client:
        for dest in ("../x", "/x", "a/../../x"):
            with pytest.raises(InvalidRequest):
                client.run(["true"], inputs={dest: b""})
