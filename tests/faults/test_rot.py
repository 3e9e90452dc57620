"""A byte changed in any file of a state directory: what is served is right, or the start is refused and names the file.

The store's own files are changed in native/store/tests/damage.rs; here are all the others, by a whole server.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import grpc
import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance.server import Server, allowed, fresh
from tests.faults.process import PLAIN, Process

BLOBS = (b"\x55" * 3_000, b"\x56" * 300_000)
ACTIONS = 5
NOT_FOUND = grpc.StatusCode.NOT_FOUND
SQLITE = b"SQLite format 3\x00"
START_TIMEOUT_S = 60
# Made anew by every start, or telling nothing.
UNREAD = ("lock", "controller.json", "VERSION")
# Without which there is no telling what was acknowledged. A key that is changed and still one is another key; what a
# database's log holds whole outranks the file that it goes before.
REFUSED = {"keys/ledger.key", "ledger/checkpoint", "ledger/ledger.sqlite", "ledger/tail", "term"}
# PEM has no sum: a changed letter is that of another key, or of none, by what the letter was.
KEYS = {"keys/node.key", "keys/session.key", "keys/token.key"}


def result_of(server: Server) -> re.ActionResult:
    return re.ActionResult(stdout_digest=server.digest(BLOBS[0]), stderr_digest=server.digest(BLOBS[1]))


def filled(state: Path) -> None:
    """A state directory as a killed server leaves it."""
    with Process(state) as process, Server(process.url) as server:
        for data in BLOBS:
            server.put(data)
        for number in range(ACTIONS):
            server.store_result(server.digest(b"action %d" % number), result_of(server))


def place_in(content: bytes) -> int:
    """A byte that something reads: of a database its first words, else one in the middle."""
    return 5 if content.startswith(SQLITE) else len(content) // 2


def kind_of(path: Path) -> str:
    """The file's name, without the number that turns."""
    return str(path).removesuffix(".0").removesuffix(".1")


def start(state: Path) -> tuple[str, dict[str, str]]:
    """The URL of a server that started and is running, or what the refusal says."""
    command = [*PLAIN, "up", "--no-worker", "--state", str(state), "--listen", "127.0.0.1:0", "--json"]
    with (state / "stderr").open("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                assert process.wait(START_TIMEOUT_S) != 0
                said.seek(0)
                refusal: dict[str, str] = json.loads(said.read().splitlines()[-1])["error"]
                return "", refusal
            with Server(json.loads(line)["url"]) as server:
                check(server)
            return "served", {}
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def check(server: Server) -> None:
    """Every answer is what was put, or that it is not there; and it takes new ones."""
    for data in BLOBS:
        assert server.read(server.name(server.digest(data))) == data
    for number in range(ACTIONS):
        answer = allowed(partial(server.result, server.digest(b"action %d" % number)), NOT_FOUND)
        assert answer in (None, result_of(server))
    new = server.digest(fresh())
    server.store_result(new, result_of(server))
    assert server.result(new) == result_of(server)


@pytest.mark.timeout(300)
def test_a_byte_changed_in_any_other_file_is_never_served(tmp_path: Path) -> None:
    origin, state = tmp_path / "origin", tmp_path / "state"
    filled(origin)
    paths = [path.relative_to(origin) for path in sorted(origin.rglob("*")) if path.is_file()]
    refused = set()
    for path in paths:
        content = (origin / path).read_bytes()
        if path.parts[0] == "cas" or path.name in UNREAD or not content or path.name.endswith(("-shm", "-journal")):
            continue
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(origin, state)
        at = place_in(content)
        changed = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        (state / path).write_bytes(changed)
        how, refusal = start(state)
        print(f"{path} at {at}: {how or refusal}")
        if refusal:
            refused.add(kind_of(path))
            assert path.name in refusal["message"], "it does not say which file"
            assert any(word in refusal["message"] for word in ("restore", "move", "remove")), (
                "it does not say what to do"
            )
            # What is refused is left as it was.
            assert (state / path).read_bytes() == changed
    assert REFUSED <= refused <= REFUSED | KEYS
