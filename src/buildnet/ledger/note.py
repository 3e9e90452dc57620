"""A signed note is read strictly and whole, or refused (c2sp.org/signed-note). It verifies nothing: keys do that.

What is read and written again is the same bytes: one note has one spelling.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from buildnet.errors import BadSignature, InvalidRequest

ED25519: Final = 0x01
COSIGNATURE_V1: Final = 0x04
"""Signature types of c2sp.org/signed-note: plain Ed25519, and timestamped by a witness."""

NOTE_BYTES_MAX: Final = 64 << 10
SIGNATURES_MAX: Final = 64
_KEY_ID_BYTES: Final = 4
_ED25519_BYTES: Final = 32
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")
_DASH: Final = "\u2014 "


@dataclass(frozen=True, slots=True)
class Signature:
    """One line below a note's text: who says to have signed (`name`, 4 bytes `key_id`), and what was made of it."""

    name: str
    key_id: bytes
    raw: bytes

    @property
    def line(self) -> str:
        """The line, with its end."""
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.raw).decode()}\n"

    @classmethod
    def parse(cls, line: str) -> Signature:
        """The signature of a line without its end.

        Raises:
            BadSignature: it is none, or not in its one form.
        """
        name, separator, encoded = line.removeprefix(_DASH).partition(" ")
        try:
            whole = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error) as error:
            raise BadSignature("a line of the note is no signature") from error
        signature = cls(name, whole[:_KEY_ID_BYTES], whole[_KEY_ID_BYTES:])
        if not separator or not is_name(name) or not signature.raw or signature.line != line + "\n":
            raise BadSignature("a line of the note is no signature in its one form")
        return signature


def split(note: str) -> tuple[str, tuple[Signature, ...]]:
    """Text, with its last newline, and signatures of a note; none of them is verified.

    Raises:
        BadSignature: it is no signed note, or past a limit.
    """
    try:
        size_bytes = len(note.encode())
    except UnicodeEncodeError as error:
        raise BadSignature("the note is not text") from error
    if size_bytes > NOTE_BYTES_MAX:
        raise BadSignature(f"the note is over {NOTE_BYTES_MAX} bytes")
    if _CONTROL.search(note):
        raise BadSignature("the note holds control characters")
    text, separator, signed = note.rpartition("\n\n")
    if not separator or not signed:
        raise BadSignature("the note has no signature")
    return text + "\n", signatures(signed)


def signatures(lines: str) -> tuple[Signature, ...]:
    """The signatures of one or more lines, each with its end.

    Raises:
        BadSignature: one of them is none, or they are too many.
    """
    *found, rest = lines.split("\n")
    if rest or not found:
        raise BadSignature("the last signature's line has no end")
    if len(found) > SIGNATURES_MAX:
        raise BadSignature(f"a note has at most {SIGNATURES_MAX} signatures")
    return tuple(Signature.parse(line) for line in found)


def join(text: str, signed: Iterable[Signature]) -> str:
    """The note of a text, which ends in a newline, and its signatures."""
    return text + "\n" + "".join(signature.line for signature in signed)


def is_name(name: str) -> bool:
    """Whether a key may have this name."""
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " for c in name)


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """The four bytes that name a key in its signatures' lines."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:_KEY_ID_BYTES]


def verifier_key(name: str, kind: int, public: bytes) -> str:
    """`name+key ID+key`, the vkey of c2sp.org/signed-note."""
    encoded = base64.b64encode(bytes([kind]) + public).decode()
    return f"{name}+{key_id(name, kind, public).hex()}+{encoded}"


def parse_verifier_key(text: str, kind: int) -> tuple[str, bytes]:
    """Name and Ed25519 key of a vkey of one kind.

    Raises:
        InvalidRequest: it is none of that kind, or not in its one form.
    """
    try:
        name, _, encoded = text.split("+", 2)
        whole = base64.b64decode(encoded, validate=True)
        name.encode()
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest("this is not a verifier key; one looks like name+1a2b3c4d+AbCd…", field="key") from error
    sound = is_name(name) and len(whole) == 1 + _ED25519_BYTES and verifier_key(name, whole[0], whole[1:]) == text
    if not sound:
        raise InvalidRequest("this is not a verifier key for Ed25519", field="key")
    if whole[0] != kind:
        what = {ED25519: "a log's", COSIGNATURE_V1: "a witness's"}.get(whole[0], "neither a log's nor a witness's")
        raise InvalidRequest(f"this verifier key is {what}, of type {whole[0]:#04x}, not {kind:#04x}", field="key")
    return name, whole[1:]
