"""A receipt is a proof file: proven by itself and the key that is known, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from buildnet._native import SigningKey
from buildnet.errors import InvalidRequest, LedgerCorrupt
from buildnet.ledger import audit, proof_file, tree
from buildnet.ledger.checkpoint import Checkpoint, Signer
from buildnet.ledger.receipt import Receipt
from buildnet.model.entry import Entry

SIGNER = Signer("test/log", SigningKey(bytes(32)))


def receipt(index: int = 4, size: int = 7) -> Receipt:
    bodies = [Entry("action.published", number, {"worker": "é\x1b[2J"}).encode() for number in range(size)]
    nodes: list[bytes] = []
    frontier = tree.Frontier()
    for body in bodies:
        nodes += frontier.append(tree.leaf_hash(body))
    path = tree.prove_inclusion(index, size, lambda level, place: nodes[tree.position(level, place)])
    note = SIGNER.sign(Checkpoint("test/log", size, frontier.root()))
    return Receipt(index, bodies[index], tuple(path), note, SIGNER.verifier.text)


def test_a_receipt_is_a_proof_file_that_holds() -> None:
    assert receipt().verify().size == 7
    assert json.loads(json.dumps(receipt().facts()))["index"] == 4


def test_a_file_is_checked_with_the_key_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "made.tlog-proof"
    path.write_text(receipt().text)
    assert audit.verify_proof(path, SIGNER.verifier.text).index == 4
    other = Signer("test/log", SigningKey(b"\x01" * 32))
    with pytest.raises(LedgerCorrupt, match="does not hold"):
        audit.verify_proof(path, other.verifier.text)
    path.write_text(receipt().text.replace("index 4", "index 5"))
    with pytest.raises(LedgerCorrupt, match="does not hold"):
        audit.verify_proof(path, SIGNER.verifier.text)


@pytest.mark.parametrize("data", [b"", b"\xff", b"{}", b" " * (proof_file.PROOF_BYTES_MAX + 1)])
def test_what_is_no_proof_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest):
        audit.verify_proof(path, SIGNER.verifier.text)
