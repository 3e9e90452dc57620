"""A witness of others, github.com/transparency-dev/witness, cosigns our ledger as it grows, and no fork of it."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from buildnet._native import SigningKey
from buildnet.edge.web.witnesses import Witnesses
from buildnet.ledger import note as notes
from buildnet.ledger.cosignature import Cosigner
from buildnet.ledger.cosigned import Cosigned
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry

HERE = Path(__file__).parent / "witness"
BUILD_S = 600
SEED = bytes(range(64, 96))
WITNESS = Cosigner("witness.example/foreign", SigningKey(SEED))
# Why a module or a newer Go could not be had: not for us to judge.
ABSENT = ("dial tcp", "lookup", "403 Forbidden", "toolchain not available", "requires go >=")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The witness, built from tests/oracles/witness; its modules are pinned by go.sum."""
    if shutil.which("go") is None:
        pytest.skip("go is not on PATH: no foreign witness was asked")
    program = tmp_path_factory.mktemp("witness") / "witness"
    command = ["go", "build", "-mod=readonly", "-buildvcs=false", "-o", str(program), "."]
    built = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=BUILD_S)
    if built.returncode and any(reason in built.stderr for reason in ABSENT):
        pytest.skip(f"no foreign witness was asked, its modules cannot be had: {built.stderr.strip()[-300:]}")
    assert built.returncode == 0, built.stderr
    return program


def open_log(directory: Path) -> LedgerLog:
    return LedgerLog.open(directory / "ledger", load_or_create_key(directory / "key"), "process")


@pytest.fixture
def url(program: Path, tmp_path: Path) -> Iterator[str]:
    """Where the witness listens for the ledger whose key is in `tmp_path`."""
    log_key = load_or_create_key(tmp_path / "key").verifier.text
    raw = bytes([notes.ED25519]) + SEED
    signer = f"PRIVATE+KEY+{WITNESS.key.name}+{WITNESS.key.key_id.hex()}+{base64.b64encode(raw).decode()}"
    process = subprocess.Popen(
        [str(program), signer, log_key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.stdout.close()
        assert process.wait(20) == 0


@pytest.mark.timeout(BUILD_S + 60)
async def test_it_cosigns_what_grows_and_no_fork(url: str, tmp_path: Path) -> None:
    ledger = open_log(tmp_path)
    await ledger.append([Entry("action.published", number) for number in range(5)])
    await ledger.checkpoint()
    shutil.copytree(tmp_path / "ledger", tmp_path / "fork" / "ledger")
    shutil.copyfile(tmp_path / "key", tmp_path / "fork" / "key")
    async with httpx2.AsyncClient() as client:
        cosigned = Cosigned.open(tmp_path / "ledger", ledger.verifier, ledger.size)
        asked = Witnesses(ledger, cosigned, [(url, WITNESS.key)], client, 10)
        for size in (5, 6, 300):
            await ledger.append([Entry("action.published", number) for number in range(ledger.size, size)])
            await asked.ask()
            assert cosigned.note is not None, asked.standings()
            assert ledger.verifier.open(cosigned.note).size == size
            assert WITNESS.key.of(*notes.split(cosigned.note))
        # One that starts anew is told by the witness which size it saw last.
        await ledger.append([Entry("action.published", 1)])
        again = Witnesses(
            ledger, Cosigned.open(tmp_path, ledger.verifier, ledger.size), [(url, WITNESS.key)], client, 10
        )
        await again.ask()
        assert (again.standings()[0]["cosigned"], again.standings()[0]["size"]) == (1, 301)
        fork = open_log(tmp_path / "fork")
        await fork.append([Entry("action.failed", number) for number in range(400)])
        kept = Cosigned.open(tmp_path / "fork" / "ledger", fork.verifier, fork.size)
        refused = Witnesses(fork, kept, [(url, WITNESS.key)], client, 10)
        await refused.ask()
        await fork.close()
    (standing,) = refused.standings()
    assert (standing["cosigned"], standing["failed"]) == (0, 1)
    assert "422" in standing["error"]
    assert kept.note is None
    await ledger.close()
