"""A receipt is proven by itself; whatever is altered in it is refused, and so is what was never one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from buildnet.errors import BadSignature, BuildNetError, InvalidRequest, LedgerCorrupt
from buildnet.ledger import audit, tree
from buildnet.ledger.checkpoint import Checkpoint, Signer
from buildnet.ledger.receipt import SIZE_BYTES_MAX, Receipt
from buildnet.model.entry import Entry

SIGNER = Signer("test/log", Ed25519PrivateKey.from_private_bytes(bytes(32)))


def receipt(index: int = 4, size: int = 7) -> Receipt:
    bodies = [Entry("action.published", number, {"worker": "é\x1b[2J"}).encode() for number in range(size)]
    nodes: list[bytes] = []
    frontier = tree.Frontier()
    for body in bodies:
        nodes += frontier.append(tree.leaf_hash(body))
    path = tree.prove_inclusion(index, size, lambda level, place: nodes[tree.position(level, place)])
    note = SIGNER.sign(Checkpoint("test/log", size, frontier.root()))
    return Receipt(index, bodies[index], tuple(path), note, SIGNER.verifier.text)


GOOD = receipt().text.encode()


def test_it_is_read_as_it_was_written_and_holds() -> None:
    again = Receipt.parse(GOOD)
    assert again == receipt()
    assert again.verify().size == 7


def test_every_altered_byte_is_found() -> None:
    for place in range(len(GOOD)):
        for bit in (1, 32):
            bad = bytearray(GOOD)
            bad[place] ^= bit
            try:
                found = Receipt.parse(bytes(bad))
            except InvalidRequest:
                continue
            # What JSON reads as the same receipt is the same receipt.
            if found != receipt():
                with pytest.raises(BadSignature):
                    found.verify()


@pytest.mark.parametrize(
    "change",
    [
        {"index": 5},
        {"index": -1},
        {"index": True},
        {"index": 4.0},
        {"hashes": []},
        {"hashes": ["00" * 32] * 65},
        {"hashes": ["zz"]},
        {"hashes": "00"},
        {"body": ""},
        {"body": 3},
        {"body": "\ud800"},
        {"key": "x"},
        {"format": "buildnet-receipt-2"},
        {"more": 1},
    ],
)
def test_another_value_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BuildNetError):
        Receipt.parse(json.dumps({**json.loads(GOOD), **change}).encode()).verify()


@settings(deadline=None)
@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_whatever_comes_is_refused_by_its_name(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        Receipt.parse(text)


def test_what_is_too_large_or_too_deep_is_refused(tmp_path: Path) -> None:
    for text in (b" " * SIZE_BYTES_MAX + GOOD, b"[" * 100_000):
        with pytest.raises(InvalidRequest):
            Receipt.parse(text)


def test_a_file_is_checked_with_the_key_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(GOOD)
    assert audit.verify_receipt(path, SIGNER.verifier.text).index == 4
    other = Signer("test/log", Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
    with pytest.raises(LedgerCorrupt, match="another ledger"):
        audit.verify_receipt(path, other.verifier.text)
    path.write_bytes(GOOD.replace(b'"index": 4', b'"index": 5'))
    with pytest.raises(LedgerCorrupt, match="does not hold"):
        audit.verify_receipt(path)
