"""A controller is what its configuration file says, and what its options say against it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import House
from tests.flow.guarded import CAS, Code, Guarded

FILE = """
[controller]
slots = 2
worker = false

[cache]
size = "100 MiB"

[access]
anonymous = "read"
"""


@pytest.mark.parametrize(("options", "size_mib"), [((), 100), (("--cache-size", "200 MiB"), 200)])
def test_a_controller_is_what_its_file_and_options_say(
    house: House, tmp_path: Path, options: tuple[str, ...], size_mib: int
) -> None:
    path = tmp_path / "buildnet.toml"
    path.write_text(FILE)
    server = Guarded(house.up("--config", str(path), *options))
    assert server.role.ready["slots"] == 0
    caller = server.caller()
    assert caller.code(CAS + "BatchUpdateBlobs") is Code.PERMISSION_DENIED
    status, _, body = caller.http("GET", "/status")
    assert (status, json.loads(body)["store"]["size_bytes_max"]) == (200, size_mib << 20)


def test_what_every_command_reads_imports_nothing_of_a_controller() -> None:
    # Two thirds of the start of `buildnet actions ls` were the scheduler, the ledger and what signs tokens.
    script = "import sys, buildnet.app.config; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    imported = set(ran.stdout.split())
    assert "buildnet.app.config" in imported
    assert not imported & {"buildnet.scheduler", "buildnet.ledger", "buildnet.access", "jwt", "cryptography", "grpc"}
