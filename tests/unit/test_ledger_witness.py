"""A witness cosigns a continuation and nothing else, in the order of checks of c2sp.org/tlog-witness."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet._native import SigningKey
from buildnet.errors import InvalidRequest, StateCorrupt, StateNewer
from buildnet.ledger import note as notes
from buildnet.ledger import tree
from buildnet.ledger.checkpoint import Checkpoint, Signer
from buildnet.ledger.witness import PROOF_LINES_MAX, AddCheckpoint, Agreed, Recorded, Refused, decide
from buildnet.ledger.witness_state import DATABASE, Witness
from tests.ledgers import SIGNER, WITNESS, Log, log_of

LOGS = {"example.org/log": [SIGNER.verifier]}
NOW = 1_700_000_000
LOG = log_of(40)


def first(size: int) -> Log:
    return Log(LOG.bodies[:size])


def request(older: int, newer: int, note: str | None = None) -> AddCheckpoint:
    proof = tree.prove_consistency(older, newer, LOG.node) if 0 < older < newer else []
    return AddCheckpoint(older, tuple(proof), note or first(newer).note)


def refused(asked: AddCheckpoint, recorded: Recorded) -> tuple[int, int | None]:
    answer = decide(asked, LOGS, recorded)
    assert isinstance(answer, Refused)
    return answer.status, answer.size


def recorded(size: int) -> Recorded:
    return Recorded(size, first(size).head.root)


@given(st.integers(0, 40), st.integers(0, 40))
def test_every_continuation_is_agreed_to(a: int, b: int) -> None:
    older, newer = sorted((a, b))
    agreed = decide(request(older, newer), LOGS, recorded(older))
    assert isinstance(agreed, Agreed)
    assert agreed.head == first(newer).head


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 39))
def test_no_fork_is(a: int, b: int, altered: int) -> None:
    older, newer = sorted((a, b))
    bodies = [b"forged" if i == altered % older else body for i, body in enumerate(LOG.bodies[:newer])]
    fork = Log(bodies)
    proof = tuple(tree.prove_consistency(older, newer, fork.node)) if older < newer else ()
    assert refused(AddCheckpoint(older, proof, fork.note), recorded(older)) == (422, None)


def test_each_refusal_has_its_status() -> None:
    other = Signer("example.org/log", SigningKey(bytes(32)))
    unknown = Signer("example.org/unknown", SigningKey(bytes(32)))
    good = first(7).head
    text, (own,) = notes.split(first(7).note)
    forged = notes.join(text, [notes.Signature(own.name, own.key_id, bytes(64)), own])
    empty = SIGNER.sign(Checkpoint("example.org/log", 0, bytes(32)))
    unknown_note = unknown.sign(Checkpoint("example.org/unknown", 7, good.root))
    assert refused(request(0, 7, unknown_note), Recorded()) == (404, None)
    assert refused(request(0, 7, other.sign(good)), Recorded()) == (403, None)
    assert refused(request(0, 7, forged), Recorded()) == (403, None)
    assert refused(AddCheckpoint(0, (), "no note"), Recorded()) == (400, None)
    assert refused(AddCheckpoint(8, (), first(7).note), recorded(8)) == (400, None)
    assert refused(request(0, 7), recorded(5)) == (409, 5)
    assert refused(request(5, 7), Recorded()) == (409, 0)
    assert refused(AddCheckpoint(0, (bytes(32),), first(7).note), Recorded()) == (422, None)
    assert refused(AddCheckpoint(5, (), first(7).note), recorded(5)) == (422, None)
    assert refused(AddCheckpoint(7, (bytes(32),), first(7).note), recorded(7)) == (422, None)
    assert refused(AddCheckpoint(0, (), empty), Recorded()) == (422, None)
    assert isinstance(decide(request(0, 0), LOGS, Recorded()), Agreed)
    rotated = {"example.org/log": [SIGNER.verifier, other.verifier]}
    assert isinstance(decide(request(0, 7, other.sign(good)), rotated, Recorded()), Agreed)


@given(st.integers(0, 1 << 62), st.lists(st.binary(min_size=32, max_size=32), max_size=4))
def test_a_request_is_read_back(size: int, proof: list[bytes]) -> None:
    asked = AddCheckpoint(size, tuple(proof), LOG.note)
    assert AddCheckpoint.parse(asked.encode()) == asked


@given(st.binary(max_size=80) | st.text(alphabet="old 019\nA=", max_size=80).map(str.encode))
def test_a_request_has_one_spelling(body: bytes) -> None:
    try:
        asked = AddCheckpoint.parse(body)
    except InvalidRequest:
        return
    assert asked.encode() == body


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"old 1", b"old 01\n\nx", b"old -1\n\nx", b"old 1\n x\n\nx", b"old 1\n\xff\n\nx", b"new 1\n\nx"),
        *(b"old 1\nAAAA\n\nx", b"old 9999999999999999999\n\nx", b"old 1\r\n\nx"),
        b"old 1\n" + (base64.b64encode(bytes(32)) + b"\n") * (PROOF_LINES_MAX + 1) + b"\nx",
        b"old 1\n\n" + b"x" * (1 << 20),
    ],
)
def test_malformed_requests_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        AddCheckpoint.parse(body)


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    witness = Witness.open(tmp_path, WITNESS, [SIGNER.verifier])
    yield witness
    witness.close()


def test_what_was_cosigned_is_remembered_over_a_restart(tmp_path: Path, witness: Witness) -> None:
    answer = witness.add_checkpoint(request(0, 5), NOW)
    assert isinstance(answer, notes.Signature)
    assert WITNESS.key.of(first(5).head.text(), [answer]) == (answer,)
    again = Witness.open(tmp_path, WITNESS, [SIGNER.verifier])
    assert again.add_checkpoint(request(0, 5), NOW) == Refused(409, "the tree that was cosigned last has 5 entries", 5)
    assert isinstance(again.add_checkpoint(request(5, 9), NOW), notes.Signature)
    latest = again.latest("example.org/log")
    assert latest is not None
    assert SIGNER.verifier.open(latest).size == 9
    assert WITNESS.key.of(*notes.split(latest))
    assert again.latest("example.org/other") is None
    again.close()


def test_of_two_forks_at_once_one_is_cosigned(witness: Witness) -> None:
    fork = Log([*LOG.bodies[:5], b"forged"])
    assert isinstance(witness.add_checkpoint(request(0, 5), NOW), notes.Signature)
    asked = [
        request(5, 6),
        AddCheckpoint(5, tuple(tree.prove_consistency(5, 6, fork.node)), fork.note),
    ] * 4
    gate = threading.Barrier(len(asked))

    def ask(one: AddCheckpoint) -> object:
        gate.wait()
        return witness.add_checkpoint(one, NOW)

    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(ask, asked))
    assert sum(isinstance(answer, notes.Signature) for answer in answers) == 1


def test_a_cosignature_that_cannot_be_written_does_not_leave(witness: Witness) -> None:
    assert isinstance(witness.add_checkpoint(request(0, 5), NOW), notes.Signature)
    witness._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StateCorrupt, match="cannot be written"):
        witness.add_checkpoint(request(5, 6), NOW)
    witness._connection.execute("PRAGMA query_only = OFF")
    assert witness.add_checkpoint(request(6, 7), NOW) == Refused(
        409, "the tree that was cosigned last has 5 entries", 5
    )


def test_a_newer_or_damaged_state_is_left_alone(tmp_path: Path, witness: Witness) -> None:
    witness._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StateNewer):
        Witness.open(tmp_path, WITNESS, [])
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / DATABASE).write_bytes(b"no database" * 100)
    with pytest.raises(StateCorrupt, match="forgets"):
        Witness.open(tmp_path / "damaged", WITNESS, [])
