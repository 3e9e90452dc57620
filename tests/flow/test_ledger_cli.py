"""The ledger's command line against a running controller: who used what, receipts, filters, and hostile text."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import grpc
import pytest

from buildnet import __version__
from buildnet.cli import failures
from buildnet.cli.main import cli
from buildnet.client import connect
from buildnet.errors import InvalidRequest, NotFound
from buildnet.ledger import audit, proof_file
from buildnet.model.digest import Digest
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from tests.conftest import House, Role
from tests.flow.guarded import Guarded

ROOT = Path(__file__).parent.parent.parent
HOSTILE = "\x1b[2J\x07evil\u202e[red]\n\x9b1m"


def call(*words: str, code: int = 0) -> str:
    """What a command prints, on stderr when it fails; in this process, for there are many of them."""
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        ended = failures.guarded(
            lambda asked: cli.main(list(words), prog_name="buildnet", standalone_mode=False, obj=asked)
        )
    printed = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    assert ended == code, printed
    return printed[0] if code == 0 else printed[1]


def listed(*words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in call(*words, "--json").splitlines()]


def test_an_action_is_accounted_stated_and_proven_offline(running: Role, tmp_path: Path) -> None:
    state = str(running.ready["state"])
    receipt = tmp_path / "made.tlog-proof"
    again = tmp_path / "again.tlog-proof"
    spin = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    result = json.loads(
        call("run", "--state", state, "--json", "--receipt", str(receipt), "--", "sh", "-c", spin),
    )
    call("run", "--state", state, "--receipt", str(again), "--", "sh", "-c", spin)
    # From the cache: nothing ran, so nothing more is accounted, and the receipt is of the same entry.
    proofs = [proof_file.parse(path.read_text()) for path in (receipt, again)]
    assert proofs[0].body is not None
    assert proofs[0].body == proofs[1].body
    body = json.loads(proofs[0].body)
    (line,) = body["transfers"]
    node, caller, _, one, _, cpu_ms = line.split(" ")
    assert (node, caller, one) == (f"node:{result['worker']}", "caller:anonymous", "1")
    assert 0 < int(cpu_ms) < 60_000
    assert "cpu_from" not in body
    accounts = {(a["name"], a["unit"]): a for a in json.loads(call("ledger", "accounts", "--state", state, "--json"))}
    assert accounts[node, "cpu_ms"]["debits_posted"] == accounts[caller, "cpu_ms"]["credits_posted"] == int(cpu_ms)
    lines = listed("ledger", "statement", caller, "--state", state)
    assert [(entry["index"], entry["unit"]) for entry in lines] == [
        (result["entry_index"], "actions"),
        (result["entry_index"], "cpu_ms"),
    ]
    assert listed("ledger", "statement", caller, "--state", state, "--since", "2100-01-01T00:00") == []
    third = tmp_path / "third.tlog-proof"
    call("ledger", "receipt", result["action"], "--state", state, "--out", str(third))
    for path in (receipt, again, third):
        assert "proven" in call("ledger", "verify", str(path), "--state", state)
        assert json.loads(call("ledger", "verify", str(path), "--state", state, "--json"))["verified"]
    assert "--key" in call("ledger", "verify", str(receipt), "--state", str(tmp_path), code=125)
    third.write_text(third.read_text().replace("\nindex ", "\nindex 1"))
    assert "does not hold" in call("ledger", "verify", str(third), "--state", state, code=1)
    call("ledger", "verify", str(receipt), "--key", "a/b+00000000+AQ==", code=125)
    key = (Path(state) / "ledger" / "key.pub").read_text().strip()
    script = [sys.executable, "scripts/verify_proof.py", str(receipt), key]
    assert "proven" in subprocess.run(script, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    report = audit.verify(Path(state))
    assert report.accounts == 4


def test_kinds_times_and_ranges_are_filtered(running: Role, tmp_path: Path) -> None:
    state = str(running.ready["state"])
    call("run", "--state", state, "--", "echo", "filtered")
    everything = listed("ledger", "tail", "--state", state, "--from", "0")
    kinds = {entry["body"]["kind"] for entry in everything}
    assert {"controller.started", "node.joined", "action.published"} <= kinds
    found = listed("ledger", "tail", "--state", state, "--from", "0", "--kind", "node.joined", "--kind", "no.such")
    assert {entry["body"]["kind"] for entry in found} == {"node.joined"}
    assert listed("ledger", "tail", "--state", state, "--since", "1h")[0]["index"] == 0
    assert listed("ledger", "tail", "--state", state, "--since", "2100-01-01T00:00") == []
    exported = [json.loads(text) for text in call("ledger", "export", "--state", state, "--to", "3").splitlines()]
    held = dict(audit.iterate(Path(state)))
    assert [(entry["index"], entry["leaf"].encode()) for entry in exported] == [(i, held[i]) for i in range(3)]
    assert call("ledger", "export", "--state", state, "--from", "3", "--to", "3") == ""
    shown = call("ledger", "show", "0", "--state", state)
    assert "controller.started" in shown
    assert "no entry 999999" in call("ledger", "show", "999999", "--state", state, code=125)
    assert "is no moment" in call("ledger", "tail", "--state", state, "--since", "noon", code=125)


def test_what_is_not_there_is_said(running: Role) -> None:
    with connect(running.url) as client:
        with pytest.raises(NotFound, match="no account node:nobody"):
            next(client.statement("node:nobody"))
        with pytest.raises(InvalidRequest):
            next(client.statement("\x1b[2J"))
        with pytest.raises(NotFound, match="run it first"):
            client.receipt(Digest.of(b"never run"))


def test_a_hostile_nodes_name_never_reaches_the_ledger(house: House) -> None:
    server = house.up("--no-worker")
    hello = fleet_pb2.JoinRequest()
    hello.hello.node_id, hello.hello.boot_id, hello.hello.slots = HOSTILE, "b", 1
    hello.hello.version = __version__
    with grpc.insecure_channel(server.ready["listen"]) as channel:
        serialize, parse = fleet_pb2.JoinRequest.SerializeToString, fleet_pb2.JoinResponse.FromString
        session = channel.stream_stream("/buildnet.v1.FleetService/Join", serialize, parse)(iter([hello]), timeout=20)
        with pytest.raises(grpc.RpcError) as refused:
            next(session)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().isprintable()
    assert "evil" not in call("ledger", "tail", "--state", str(house.directory / "controller"), "--from", "0")


def test_who_asked_is_who_is_accounted(house: House, tmp_path: Path) -> None:
    server = Guarded(house.up("--slots", "1", "--anonymous", "none"))
    token = tmp_path / "token"
    token.write_text(server.token("admin", subject="dora [red]"))
    token.chmod(0o600)
    given = ("--url", server.role.url, "--token-file", str(token))
    call("run", *given, "--", "echo", "for dora")
    (account,) = json.loads(call("ledger", "accounts", *given, "--prefix", "caller:", "--json"))[:1]
    # A subject with a blank in it is told by its hash.
    assert account["name"] == f"caller:sha256:{hashlib.sha256(b'dora [red]').hexdigest()}"
    assert (account["unit"], account["credits_posted"]) == ("actions", 1)
