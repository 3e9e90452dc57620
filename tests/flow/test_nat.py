"""A worker behind NAT joins by its line, works, and comes back when the router has forgotten it: all of it outbound."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from buildnet.ledger import audit
from tests.conftest import COMMAND, House
from tests.faults import networks
from tests.flow.authority import Authority
from tests.flow.guarded import Guarded

pytestmark = pytest.mark.skipif(bool(why := networks.nat_refusal()), reason=why)
TIMEOUT_S = 60
LISTEN = """
import socket, sys
with socket.create_server(("0.0.0.0", int(sys.argv[1]))):
    print("listening", flush=True)
    sys.stdin.read()
"""
DIAL = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)"
PORT = "9"


@pytest.fixture
def nat() -> Iterator[networks.Nat]:
    made = networks.Nat()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def dial(end: networks.Namespace) -> str:
    words = [*end.within, sys.executable, "-c", DIAL, networks.PRIVATE, PORT]
    return subprocess.run(words, capture_output=True, text=True).stderr


def test_nobody_outside_can_dial_a_worker_behind_nat(nat: networks.Nat) -> None:
    with started(*nat.worker.within, sys.executable, "-c", LISTEN, PORT) as listener:
        assert line_of(listener) == "listening\n"
        assert dial(nat.worker) == ""
        assert "Network is unreachable" in dial(nat.controller)
        # Not by a route that somebody adds either.
        nat.controller.run("ip", "route", "add", f"{networks.PRIVATE}/32", "via", networks.ROUTER[0])
        assert "timed out" in dial(nat.controller)


@pytest.mark.timeout(120)
def test_a_worker_behind_nat_works_and_comes_back_when_the_router_has_forgotten_it(
    house: House, nat: networks.Nat, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "authority")
    files = authority.issue("controller", address=networks.PUBLIC)
    tls = ("--tls-cert", str(files.certificate), "--tls-key", str(files.key))
    role = house.up("--no-worker", *tls, listen=f"{networks.PUBLIC}:0", within=nat.controller.within)
    (token := tmp_path / "token").write_text(Guarded(role, authority.file).token("admin"))
    shown = ("--url", role.url, "--ca-file", str(authority.file), "--token-file", str(token))
    buildnet = (*nat.controller.within, *COMMAND)
    house.join(role.ready["join"], "--slots", "1", within=nat.worker.within)

    source, made = tmp_path / "in", tmp_path / "out"
    source.write_text("carried\n")
    files_named = ("--input", source.name, "--output", made.name)
    ran = subprocess.run(
        [*buildnet, "run", *shown, *files_named, "--", "sh", "-c", "cat in in > out; echo made"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=tmp_path,
    )
    assert (ran.stdout, made.read_text()) == ("made\n", "carried\ncarried\n"), ran.stderr

    # Where commands see it: their /tmp is their own.
    with tempfile.TemporaryDirectory(dir=Path.home()) as gates:
        gate = Path(gates, "gate")
        script = f"echo before; while ! test -e {gate}; do sleep 0.05; done; echo through"
        with (
            started(*buildnet, "ledger", "tail", *shown, "-f", "--json", "--kind", "action.adopted") as adopted,
            started(*buildnet, "run", *shown, "--effect", "read=ambient", "--", "sh", "-c", script) as running,
        ):
            assert line_of(running) == "before\n"
            nat.forget()
            assert line_of(adopted)
            gate.touch()
            assert running.communicate(timeout=TIMEOUT_S)[0] == "through\n"
            assert running.returncode == 0
    assert role.stop() == 0
    told = [json.loads(body) for _, body in audit.iterate(house.directory / "controller")]
    peers = [body["peer"].rpartition(":")[0] for body in told if body["kind"] == "session.opened"]
    # It came by the router's addresses alone, first the one and then the other.
    assert list(dict.fromkeys(peers)) == list(networks.ROUTER)
    kinds = [body["kind"] for body in told]
    # Both actions were given once and told once: the second went on where it ran.
    assert (kinds.count("action.assigned"), kinds.count("action.published")) == (2, 2)
