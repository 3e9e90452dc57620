"""buildbox-casd between a client and the server: it cuts large blobs itself, and asks for them in pieces."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from http_tools import CASD, CASD_SITE, run, why_not

from tests.conftest import House, Role
from tests.flow.test_observe import samples

pytestmark = [
    pytest.mark.client,
    pytest.mark.timeout(300),
    pytest.mark.skipif(why_not(CASD) is not None, reason=str(why_not(CASD))),
]

CAS = "build.bazel.remote.execution.v2.ContentAddressableStorage/"
STOP_TIMEOUT_S = 20
MIB = 1 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Role]:
    house = House(tmp_path / "house")
    try:
        yield house.up("--no-worker")
    finally:
        house.close()


@contextmanager
def casd(server: Role, state: Path) -> Iterator[Path]:
    """A proxy in chunks, with nothing in its own cache; its socket."""
    state.mkdir()
    socket = state / "socket"
    remote = server.url.replace("grpc://", "http://")
    command = [
        CASD,
        f"--remote={remote}",
        "--enable-chunking-for-instance",
        "",
        "--bind",
        f"unix:{socket}",
        state / "cas",
    ]
    with (state / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield socket
        assert process.poll() is None, (state / "log").read_text()
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def ask(scratch: Path, socket: Path, what: str, of: str | Path) -> str:
    script = Path(__file__).parent / "casd_calls.py"
    return run(scratch, sys.executable, script, CASD_SITE, socket, what, of).stdout.strip()


def test_a_changed_blob_costs_its_changed_chunks_and_comes_back_in_chunks(server: Role, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.mkdir()
    large = sent / "large"
    large.write_bytes(os.urandom(20 * MIB))
    (sent / "small").write_bytes(os.urandom(100))

    def received() -> float:
        seen = samples(server)
        return sum(seen[key] for key in seen if key[0] == "buildnet_received_bytes_total")

    with casd(server, tmp_path / "one") as socket:
        ask(tmp_path, socket, "capture", sent)
        before = received()
        with large.open("r+b") as file:
            file.seek(10 * MIB)
            file.write(os.urandom(64))
        root = ask(tmp_path, socket, "capture", sent)
    assert samples(server)["buildnet_calls_total", f"{CAS}SpliceBlob", "OK"] == 2
    # The chunk with the change, of 2 MiB at most, and the next if their seam moved.
    assert received() - before < 5 * MIB

    with casd(server, tmp_path / "two") as socket:
        ask(tmp_path, socket, "fetch", root)
    assert samples(server)["buildnet_calls_total", f"{CAS}SplitBlob", "OK"] >= 1
    data = large.read_bytes()
    (brought,) = (tmp_path / "two" / "cas").rglob(hashlib.sha256(data).hexdigest()[2:])
    assert brought.read_bytes() == data
