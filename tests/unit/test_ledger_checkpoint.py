"""A checkpoint has one form, and only its own key's signature opens it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet._native import SigningKey
from buildnet.errors import BadSignature, InvalidRequest
from buildnet.ledger.checkpoint import Checkpoint, Signer, Verifier

SIGNER = Signer("example.org/log", SigningKey(bytes(range(32))))
HEAD = Checkpoint("example.org/log", 7, bytes(32))
NOTE = SIGNER.sign(HEAD)


def test_what_was_signed_is_read_back() -> None:
    verifier = Verifier.parse(SIGNER.verifier.text)
    assert verifier == SIGNER.verifier
    assert verifier.open(NOTE) == HEAD
    assert NOTE.startswith("example.org/log\n7\nAAAA")


def test_every_altered_character_is_noticed() -> None:
    for place, character in enumerate(NOTE):
        altered = NOTE[:place] + ("x" if character != "x" else "y") + NOTE[place + 1 :]
        with pytest.raises(BadSignature):
            SIGNER.verifier.open(altered)


def test_another_key_is_refused() -> None:
    other = Signer("example.org/log", SigningKey(bytes(32)))
    with pytest.raises(BadSignature, match="not signed by"):
        other.verifier.open(NOTE)


def test_a_secret_is_never_shown() -> None:
    assert bytes(range(32)).hex() not in repr(SIGNER)


@given(st.text())
def test_no_text_is_a_key_by_accident(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Verifier.parse(text)


@given(st.text())
def test_no_text_is_a_note_by_accident(text: str) -> None:
    with pytest.raises(BadSignature):
        SIGNER.verifier.open(text)
