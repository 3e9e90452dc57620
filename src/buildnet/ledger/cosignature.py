"""A cosignature says: at this time this was the largest tree of that log that I saw, and it only ever grew.

Timestamped Ed25519 over a checkpoint's text, type 0x04 (c2sp.org/tlog-cosignature). Time is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from buildnet._native import SigningKey, is_signed
from buildnet.errors import BadSignature
from buildnet.ledger import note as notes

_TIME: Final = Struct(">Q")
_RAW_BYTES: Final = _TIME.size + 64
_TIME_MAX_UNIX_S: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class WitnessKey:
    """A witness's public key with its name; `text` is its vkey, of type 0x04."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The four bytes that name the key in a signature line."""
        return notes.key_id(self.name, notes.COSIGNATURE_V1, self.public)

    @property
    def text(self) -> str:
        """`name+key ID+key`."""
        return notes.verifier_key(self.name, notes.COSIGNATURE_V1, self.public)

    @classmethod
    def parse(cls, text: str) -> WitnessKey:
        """Parse a vkey.

        Raises:
            InvalidRequest: it is not a witness's, or not in its one form.
        """
        return cls(*notes.parse_verifier_key(text, notes.COSIGNATURE_V1))

    def of(self, text: str, signed: Sequence[notes.Signature]) -> tuple[notes.Signature, ...]:
        """This witness's cosignatures of a checkpoint's text among others'; none, when it made none.

        Raises:
            BadSignature: one that says to be this witness's is not.
        """
        found = tuple(one for one in signed if (one.name, one.key_id) == (self.name, self.key_id))
        for signature in found:
            at_unix_s = time_of(signature)
            if not is_signed(self.public, signature.raw[_TIME.size :], message(text, at_unix_s)):
                raise BadSignature(f"the cosignature of {self.name} is not valid")
        return found


def time_of(signature: notes.Signature) -> int:
    """When a cosignature says that it was made, in seconds since 1970.

    Raises:
        BadSignature: it is no cosignature.
    """
    if len(signature.raw) != _RAW_BYTES:
        raise BadSignature(f"the cosignature of {signature.name} has {len(signature.raw)} bytes, not {_RAW_BYTES}")
    at_unix_s: int = _TIME.unpack_from(signature.raw)[0]
    if not 0 < at_unix_s <= _TIME_MAX_UNIX_S:
        raise BadSignature(f"the cosignature of {signature.name} has no time")
    return at_unix_s


def message(text: str, at_unix_s: int) -> bytes:
    """What is signed: a header against any other use of the key, the time, and the checkpoint's whole text."""
    return f"cosignature/v1\ntime {at_unix_s}\n{text}".encode()


class Cosigner:
    """Cosigns under one name. It decides nothing: `witness.decide` does."""

    def __init__(self, name: str, key: SigningKey) -> None:
        self._key = key
        self.key = WitnessKey(name, key.public)

    def __repr__(self) -> str:
        return f"Cosigner({self.key.text})"

    def cosign(self, text: str, at_unix_s: int) -> notes.Signature:
        """The signature of a checkpoint's text at a time."""
        raw = _TIME.pack(at_unix_s) + self._key.sign(message(text, at_unix_s))
        return notes.Signature(self.key.name, self.key.key_id, raw)
