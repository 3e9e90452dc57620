"""An action that names a secret has its value, wherever the secret is offered, and no log, blob or listing shows it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from buildnet.client import connect
from buildnet.client.results import LogPiece
from buildnet.errors import BuildNetError
from tests.conftest import COMMAND, House

VALUE = "correct horse battery"
PRINTS = 'printf "%s" "$TOKEN" | wc -c; echo "it is $TOKEN."; echo "$TOKEN" >&2; echo "$TOKEN" | tr a-z b-za > out'


def kept(house: House, mode: int = 0o600) -> Path:
    path = house.directory / "npm"
    path.write_text(VALUE + "\n")
    path.chmod(mode)
    return path


def test_a_secret_reaches_the_command_that_names_it_and_no_log(house: House) -> None:
    config = house.directory / "buildnet.toml"
    kept(house)
    config.write_text('[worker]\nsecrets = { npm-token = "npm" }\n')
    server = house.up("--slots", "1", "--config", str(config))
    heard: list[LogPiece] = []
    with connect(server.url) as client:
        ran = client.run(
            ["/bin/sh", "-c", PRINTS], secrets={"TOKEN": "npm-token"}, outputs=["out"], on_log=heard.append
        )
        assert ran.exit_code == 0
        assert ran.stdout().decode().split("\n", 1) == [str(len(VALUE)), f"it is {'*' * len(VALUE)}.\n"]
        assert ran.stderr().decode() == f"{'*' * len(VALUE)}\n"
        assert VALUE.encode() not in b"".join(piece.data for piece in heard)
        without = client.run(["/bin/sh", "-c", "echo ${TOKEN-none}"])
        assert without.stdout() == b"none\n", "what does not name it does not have it"
        with pytest.raises(BuildNetError, match="secret") as refused:
            client.run(["/bin/true"], secrets={"TOKEN": "another"})
        assert refused.value.code in ("no_capable_worker", "invalid_request")
    listed = subprocess.run(
        [*COMMAND, "fleet", "ls", "--json", "--url", server.url], capture_output=True, text=True, timeout=60
    )
    assert "npm-token" in listed.stdout
    assert VALUE not in listed.stdout
    state = house.directory
    found = [path for path in state.rglob("*") if path.is_file() and VALUE.encode() in path.read_bytes()]
    assert found == [house.directory / "npm"], "the value is in no file but its own"


def test_a_file_that_others_may_read_is_refused_before_anything_starts(house: House) -> None:
    path = kept(house, 0o644)
    for words in (["up", "--listen", "127.0.0.1:0"], ["join", "grpc://127.0.0.1:1"]):
        command = [*COMMAND, *words, "--state", str(house.directory / words[0]), "--secret", f"npm={path}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 125
        assert "chmod 600" in ended.stderr
        assert VALUE not in ended.stderr


@pytest.mark.parametrize("text", ["correct horse", "npm=", "=file"])
def test_a_text_that_is_no_name_and_file_is_not_repeated(house: House, text: str) -> None:
    ended = subprocess.run([*COMMAND, "join", "grpc://127.0.0.1:1", "--secret", text], capture_output=True, text=True)
    assert ended.returncode == 125
    assert "NAME=FILE" in ended.stderr
    assert "horse" not in ended.stderr
