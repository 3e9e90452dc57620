"""Notes have one spelling; a cosignature holds for one text, one time and one key."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet._native import is_signed
from buildnet.errors import BadSignature, InvalidRequest
from buildnet.ledger import note as notes
from buildnet.ledger.checkpoint import Checkpoint, Verifier
from buildnet.ledger.cosignature import Cosigner, WitnessKey, time_of
from tests.ledgers import SIGNER, WITNESS, log_of

# c2sp.org/signed-note, Verifier keys, Example.
SPEC_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = """This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
"""
TEXT = log_of(5).head.text()
NOTE = notes.join(TEXT, [*notes.split(log_of(5).note)[1], WITNESS.cosign(TEXT, 1_700_000_000)])


def test_the_specifications_example_is_verified() -> None:
    verifier = Verifier.parse(SPEC_KEY)
    text, (signature,) = notes.split(SPEC_NOTE)
    assert (signature.name, signature.key_id) == (verifier.name, verifier.key_hash)
    assert is_signed(verifier.public, signature.raw, text.encode())


def test_a_cosigned_note_is_opened_by_both_keys() -> None:
    assert SIGNER.verifier.open(NOTE) == log_of(5).head
    text, signed = notes.split(NOTE)
    (cosignature,) = WitnessKey.parse(WITNESS.key.text).of(text, signed)
    assert time_of(cosignature) == 1_700_000_000
    assert WITNESS.key.text.startswith("witness.example/w1+")


@given(st.integers(0, len(NOTE.encode()) - 1), st.integers(1, 255))
def test_no_byte_of_a_cosigned_note_can_be_altered(place: int, mask: int) -> None:
    good = NOTE.encode()
    bad = good[:place] + bytes([good[place] ^ mask]) + good[place + 1 :]
    try:
        note = bad.decode()
        SIGNER.verifier.open(note)
        assert not WITNESS.key.of(*notes.split(note))
    except (UnicodeDecodeError, BadSignature):
        return


@given(st.text(alphabet=st.characters(codec=None)) | st.text(alphabet="\n\u2014 aA=+1"))
def test_a_note_has_one_spelling(text: str) -> None:
    try:
        body, signed = notes.split(text)
    except BadSignature:
        return
    assert notes.join(body, signed) == text


@pytest.mark.parametrize(
    "note",
    [
        *("", "\n\n", "a\n", "a\n\n", "a\n\n\u2014 n AAAAAAA=", "a\n\n\u2014 n AAAA\n", "a\n\n- n AAAAAAA=\n"),
        *(
            "a\n\n\u2014 n+m AAAAAAA=\n",
            "a\n\n\u2014  AAAAAAA=\n",
            "a\n\n\u2014 n AAAAAAB=\n",
            "a\tb\n\n\u2014 n AAAAAAA=\n",
        ),
        *("a\n\n\u2014 n\u2003m AAAAAAA=\n", "a\r\n\n\u2014 n AAAAAAA=\n", "\ud800\n\n\u2014 n AAAAAAA=\n"),
        "a\n\n" + "\u2014 n AAAAAAA=\n" * (notes.SIGNATURES_MAX + 1),
        "a" * notes.NOTE_BYTES_MAX + "\n\n\u2014 n AAAAAAA=\n",
    ],
)
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(BadSignature):
        notes.split(note)


def test_sixteen_signatures_are_accepted() -> None:
    assert len(notes.split("a\n\n" + "\u2014 n AAAAAAA=\n" * 16)[1]) == 16


def test_strangers_signatures_are_ignored_and_forged_ones_of_a_known_key_are_not() -> None:
    text, (own,) = notes.split(log_of(5).note)
    stranger = notes.Signature("example.org/log", b"\0\0\0\0", own.raw)
    assert SIGNER.verifier.open(notes.join(text, [stranger, own])).size == 5
    forged = notes.Signature(own.name, own.key_id, bytes(64))
    with pytest.raises(BadSignature, match="not valid"):
        SIGNER.verifier.open(notes.join(text, [own, forged]))


def test_a_checkpoint_of_another_origin_is_not_the_ledgers() -> None:
    with pytest.raises(BadSignature, match="another log"):
        SIGNER.verifier.open(SIGNER.sign(Checkpoint("example.org/other", 5, bytes(32))))


def test_extension_lines_of_other_logs_are_kept() -> None:
    head = Checkpoint("example.org/log", 5, bytes(32), ("one", "two three"))
    assert Checkpoint.parse(head.text()) == head
    for text in (head.text() + "\n", head.text()[:-1], "\n5\n" + "A" * 43 + "=\n", "o\n05\n" + "A" * 43 + "=\n"):
        with pytest.raises(BadSignature):
            Checkpoint.parse(text)


def test_a_cosignature_is_of_its_text_its_time_and_its_key() -> None:
    signature = WITNESS.cosign(TEXT, 1_700_000_000)
    later = notes.Signature(signature.name, signature.key_id, (7).to_bytes(8, "big") + signature.raw[8:])
    for text, altered in ((TEXT + "x\n", signature), (TEXT, later)):
        with pytest.raises(BadSignature, match="not valid"):
            WITNESS.key.of(text, [altered])
    for raw in (b"short", bytes(72), b"\xff" * 72):
        with pytest.raises(BadSignature, match="cosignature"):
            WITNESS.key.of(TEXT, [notes.Signature(signature.name, signature.key_id, raw)])


def test_kinds_of_keys_are_not_mixed_up() -> None:
    with pytest.raises(InvalidRequest, match="a log's"):
        WitnessKey.parse(SIGNER.verifier.text)
    with pytest.raises(InvalidRequest, match="a witness's"):
        Verifier.parse(WITNESS.key.text)
    name, key_id, encoded = SIGNER.verifier.text.split("+", 2)
    for text in (
        f"{name}+{key_id.upper()}x+{encoded}",
        f"+{key_id}+{encoded}",
        f"a b+{key_id}+{encoded}",
        "\ud800+1+A",
    ):
        with pytest.raises(InvalidRequest):
            Verifier.parse(text)
    short = base64.b64encode(b"\x01" + bytes(31)).decode()
    with pytest.raises(InvalidRequest):
        Verifier.parse(f"n+{notes.key_id('n', 1, bytes(31)).hex()}+{short}")


def test_a_secret_is_never_shown() -> None:
    assert isinstance(WITNESS, Cosigner)
    assert repr(WITNESS) == f"Cosigner({WITNESS.key.text})"
