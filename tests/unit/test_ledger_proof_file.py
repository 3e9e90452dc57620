"""A proof holds offline with nothing but keys, in the library and in the script that stands alone; no byte of it can be
altered."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.exceptions import InvalidSignature
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import BadSignature, BuildNetError, InvalidRequest
from buildnet.ledger import note as notes
from buildnet.ledger import proof_file, tree
from buildnet.ledger.proof_file import parse, to_text, verify
from tests.ledgers import SIGNER, WITNESS, Log, log_of

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "verify_proof.py"
KEY = SIGNER.verifier.text


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_proof", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ALONE = loaded()


def cosigned(log: Log) -> str:
    text, signed = notes.split(log.note)
    return notes.join(text, [*signed, WITNESS.cosign(text, 1_700_000_000)])


def proof_of(log: Log, index: int) -> str:
    path = tree.prove_inclusion(index, len(log.bodies), log.node)
    return to_text(index, path, cosigned(log), log.bodies[index])


PROOF = proof_of(log_of(11), 6)


@given(st.integers(1, 70), st.data())
def test_every_entry_is_proven(size: int, data: st.DataObject) -> None:
    log = log_of(size)
    index = data.draw(st.integers(0, size - 1))
    text = proof_of(log, index)
    proven = verify(text, KEY, [WITNESS.key.text])
    assert (proven.index, proven.body, proven.size) == (index, log.bodies[index], size)
    assert (proven.origin, proven.root) == ("example.org/log", log.head.root)
    assert proven.cosigned == {WITNESS.key.text: 1_700_000_000}
    assert ALONE.verify(text, KEY, [WITNESS.key.text]) == (index, log.bodies[index])
    assert to_text(*[getattr(parse(text), name) for name in ("index", "hashes", "note", "body")]) == text


@given(st.integers(0, len(PROOF.encode()) - 1), st.integers(1, 255))
def test_no_byte_can_be_altered(place: int, mask: int) -> None:
    good = PROOF.encode()
    bad = good[:place] + bytes([good[place] ^ mask]) + good[place + 1 :]
    try:
        text = bad.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(BuildNetError):
        verify(text, KEY, [WITNESS.key.text])
    with pytest.raises((ALONE.Invalid, InvalidSignature)):
        ALONE.verify(text, KEY, [WITNESS.key.text])


@given(st.text(max_size=300) | st.text(alphabet="index extra0123=\n", max_size=80))
def test_no_text_is_a_proof_by_accident(text: str) -> None:
    for candidate in (text, proof_file.HEADER + "\n" + text):
        with pytest.raises(BuildNetError):
            verify(candidate, KEY)
        with pytest.raises((ALONE.Invalid, InvalidSignature)):
            ALONE.verify(candidate, KEY, [])


def test_the_entry_may_come_from_elsewhere() -> None:
    log = log_of(3)
    bare = to_text(1, tree.prove_inclusion(1, 3, log.node), log.note)
    assert verify(bare, KEY, body=log.bodies[1]).body == log.bodies[1]
    with pytest.raises(InvalidRequest, match="must be given"):
        verify(bare, KEY)
    with pytest.raises(BadSignature, match="does not lead"):
        verify(bare, KEY, body=log.bodies[2])


def test_witnesses_that_are_named_must_have_cosigned() -> None:
    log = log_of(3)
    plain = to_text(1, tree.prove_inclusion(1, 3, log.node), log.note, log.bodies[1])
    assert verify(plain, KEY).cosigned == {}
    with pytest.raises(BadSignature, match="0 of the witnesses"):
        verify(plain, KEY, [WITNESS.key.text])
    assert verify(plain, KEY, [WITNESS.key.text], quorum=0).cosigned == {}
    # The same witness twice is one.
    assert len(verify(PROOF, KEY, [WITNESS.key.text] * 2).cosigned) == 1
    with pytest.raises(BadSignature, match="1 of the witnesses"):
        verify(PROOF, KEY, [WITNESS.key.text], quorum=2)


def test_another_key_proves_nothing() -> None:
    with pytest.raises(BadSignature, match="not signed by"):
        verify(PROOF, "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
    with pytest.raises(InvalidRequest, match="a witness's"):
        verify(PROOF, WITNESS.key.text)


def test_a_proof_past_the_limit_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="over"):
        parse(PROOF + "x" * proof_file.PROOF_BYTES_MAX)


def test_the_script_stands_alone(tmp_path: Path) -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 100
    assert "buildnet" not in [
        line.split()[1].split(".")[0] for line in SCRIPT.read_text().splitlines() if "import " in line
    ]
    path = tmp_path / "p.tlog-proof"
    path.write_text(PROOF)
    command = [sys.executable, "-I", str(SCRIPT), str(path), KEY]
    ended = subprocess.run([*command, WITNESS.key.text], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "proven: entry 6 of example.org/log\nentry 6\n")
    path.write_text(PROOF.replace("index 6", "index 7"))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "not proven: the path does not lead to the signed root\n"
