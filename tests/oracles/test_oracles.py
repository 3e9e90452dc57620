"""The field's own code agrees: Go's sumdb packages and torchwood verify notes, proofs and tiles, and refuse altered
ones; pymerkle proves the same paths; a log in Go has its trees cosigned by our witness."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymerkle import InmemoryTree, MerkleProof, verify_inclusion
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from buildnet.edge.web.ledger import routes
from buildnet.edge.web.witness import routes as witness_routes
from buildnet.ledger import note as notes
from buildnet.ledger import tiles, tree
from buildnet.ledger.checkpoint import Signer
from buildnet.ledger.cosigned import Cosigned
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.ledger.tiles import Tile
from buildnet.ledger.witness_state import Witness
from buildnet.model.entry import Entry
from tests.ledgers import SIGNER, WITNESS, Log, log_of
from tests.served import served, served_here

HERE = Path(__file__).parent
BUILD_S = 400
NOW = 1_700_000_000

Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """The Go program, built from tests/oracles; its modules are pinned by go.sum."""
    if shutil.which("go") is None:
        pytest.skip("go is not on PATH: the Go oracles were not asked")
    program = tmp_path_factory.mktemp("oracle") / "oracle"
    command = ["go", "build", "-mod=readonly", "-buildvcs=false", "-o", str(program), "."]
    built = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=BUILD_S)
    if built.returncode and ("dial tcp" in built.stderr or "lookup" in built.stderr):
        pytest.skip(f"the Go oracles were not asked, their modules cannot be had: {built.stderr.strip()[-300:]}")
    assert built.returncode == 0, built.stderr

    def ask(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(program), *arguments], input=stdin, capture_output=True, text=True, timeout=100)

    return ask


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def inclusion(log: Log, index: int) -> dict[str, Any]:
    size = len(log.bodies)
    path = [b64(one) for one in tree.prove_inclusion(index, size, log.node)]
    return {
        "kind": "inclusion",
        "path": path,
        "size": size,
        "root": b64(log.head.root),
        "index": index,
        "body": b64(log.bodies[index]),
    }


def consistency(log: Log, older: int) -> dict[str, Any]:
    before = Log(log.bodies[:older])
    return {
        "kind": "consistency",
        "path": [b64(one) for one in tree.prove_consistency(older, len(log.bodies), log.node)],
        "size": len(log.bodies),
        "root": b64(log.head.root),
        "older": older,
        "older_root": b64(before.head.root),
    }


def cosigned(note: str) -> str:
    text, signed = notes.split(note)
    return notes.join(text, [*signed, WITNESS.cosign(text, NOW)])


def flipped(text: str, place: int) -> str:
    raw = bytearray(base64.b64decode(text))
    raw[place] ^= 1
    return b64(bytes(raw))


@pytest.mark.timeout(BUILD_S)
def test_go_judges_as_we_do(oracle: Ask) -> None:
    good: list[dict[str, Any]] = []
    for size in (1, 2, 3, 7, 8, 9, 100, 257):
        log = log_of(size)
        good += [inclusion(log, index) for index in {0, size // 2, size - 1}]
        good += [consistency(log, older) for older in {1, (size + 1) // 2, size}]
        good.append({"kind": "note", "note": log.note, "keys": [SIGNER.verifier.text]})
        both = {"keys": [SIGNER.verifier.text], "witnesses": [WITNESS.key.text]}
        good.append({"kind": "note", "note": cosigned(log.note), **both})
    bad: list[dict[str, Any]] = []
    for question in good:
        if question["kind"] == "note":
            signed = question["note"]
            bad.append({**question, "note": signed.replace("example.org/log\n", "example.org/lag\n", 1)})
            bad.append(
                {**question, "note": signed[:-8] + ("AAAA" if signed[-8:-4] != "AAAA" else "BBBB") + signed[-4:]}
            )
        else:
            name = "body" if question["kind"] == "inclusion" else "older_root"
            bad.append({**question, name: flipped(question[name], 0)})
            if question["path"]:
                bad.append({**question, "path": [flipped(question["path"][0], 31), *question["path"][1:]]})
    answered = oracle("judge", stdin=json.dumps(good + bad))
    assert answered.returncode == 0, answered.stderr
    answers = json.loads(answered.stdout)
    assert answers == [True] * len(good) + [False] * len(bad), answered.stderr


def plain(log: Log, alter: Tile | None = None, place: int = 0) -> Starlette:
    """The log as files would serve it, one tile of it perhaps altered."""

    async def checkpoint(request: Request) -> Response:
        return Response(cosigned(log.note) if "cosigned" in request.query_params else log.note)

    async def tile(request: Request) -> Response:
        wanted = Tile.parse(request.path_params["path"])
        content = bytearray(log.content(wanted))
        if wanted == alter:
            content[place] ^= 1
        return Response(bytes(content))

    return Starlette(routes=[Route("/checkpoint", checkpoint), Route("/tile/{path:path}", tile)])


@pytest.mark.timeout(BUILD_S)
def test_a_monitor_in_go_reads_every_entry_and_refuses_altered_tiles(oracle: Ask) -> None:
    log = log_of(70_000 // 64)
    with served(plain(log)) as url:
        answered = oracle("monitor", url, SIGNER.verifier.text, WITNESS.key.text)
    assert answered.returncode == 0, answered.stderr
    digest = hashlib.sha256(b"".join(log.bodies)).hexdigest()
    assert json.loads(answered.stdout) == {"origin": "example.org/log", "size": len(log.bodies), "sha256": digest}
    for altered in {tile.level: tile for tile in tiles.tiles_of(len(log.bodies))}.values():
        with served(plain(log, altered, place=5)) as url:
            refused = oracle("monitor", url, SIGNER.verifier.text)
        assert refused.returncode == 1, f"{altered} was altered unseen"


@pytest.mark.timeout(BUILD_S)
async def test_a_monitor_in_go_reads_the_ledger_itself(oracle: Ask, tmp_path: Path) -> None:
    ledger = LedgerLog.open(tmp_path / "ledger", load_or_create_key(tmp_path / "key"), "process")
    entries = [Entry("action.published", number, {"n": number}) for number in range(600)]
    await ledger.append(entries)
    application = Starlette(routes=routes(ledger, Cosigned.open(tmp_path / "ledger", ledger.verifier, ledger.size)))
    async with served_here(application) as url:
        answered = await asyncio.to_thread(oracle, "monitor", f"{url}/ledger", ledger.verifier.text)
    await ledger.close()
    assert answered.returncode == 0, answered.stderr
    digest = hashlib.sha256(b"".join(entry.encode() for entry in entries)).hexdigest()
    assert json.loads(answered.stdout) == {"origin": ledger.verifier.name, "size": 600, "sha256": digest}


@pytest.mark.timeout(BUILD_S)
def test_a_log_in_go_has_its_trees_cosigned_by_our_witness(oracle: Ask, tmp_path: Path) -> None:
    verifier = SIGNER.verifier
    secret = f"PRIVATE+KEY+{verifier.name}+{verifier.key_hash.hex()}+{b64(bytes([notes.ED25519]) + bytes(range(32)))}"
    assert isinstance(SIGNER, Signer)
    witness = Witness.open(tmp_path, WITNESS, [verifier])
    try:
        with served(Starlette(routes=witness_routes(witness, lambda: NOW))) as url:
            answered = oracle("log", url, secret, WITNESS.key.text)
        assert (answered.returncode, answered.stdout) == (0, "cosigned\n"), answered.stderr
        latest = witness.latest(verifier.name)
        assert latest is not None
        assert verifier.open(latest).size == 257
    finally:
        witness.close()


@pytest.mark.parametrize("size", [1, 2, 5, 8, 77])
def test_pymerkle_verifies_our_paths_and_proves_the_same(size: int) -> None:
    log = log_of(size)
    oracle = InmemoryTree(algorithm="sha256")
    for body in log.bodies:
        oracle.append_entry(body)
    for index in {0, size // 2, size - 1}:
        path = tree.prove_inclusion(index, size, log.node)
        theirs = oracle.prove_inclusion(index + 1).serialize()
        # Its path begins with the leaf; where each sibling stands, `rule`, follows from index and size.
        assert [bytes.fromhex(one) for one in theirs["path"]] == [tree.leaf_hash(log.bodies[index]), *path]
        ours = {**theirs, "path": [tree.leaf_hash(log.bodies[index]).hex(), *(one.hex() for one in path)]}
        verify_inclusion(tree.leaf_hash(log.bodies[index]), log.head.root, MerkleProof.deserialize(ours))
