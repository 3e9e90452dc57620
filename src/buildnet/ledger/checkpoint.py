"""Signed statements of a tree's size and root, in the formats of C2SP (signed-note, tlog-checkpoint).

Parsing is strict: what is parsed and written again must be the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildnet.errors import BadSignature, InvalidRequest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_ED25519 = b"\x01"
_KEY_HASH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is signed: `origin` names the log, `root` is 32 bytes."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The note's text."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key with the name that it signs under; `text` is the vkey of C2SP signed-note."""

    name: str
    public: bytes

    @property
    def key_hash(self) -> bytes:
        """The four bytes that name the key in a signature line."""
        whole = hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()
        return whole[:_KEY_HASH_BYTES]

    @property
    def text(self) -> str:
        """`name+hash+key`."""
        return f"{self.name}+{self.key_hash.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Parse a vkey.

        Raises:
            InvalidRequest: it is not an Ed25519 one, or not in its one form.
        """
        try:
            name, _, key = text.split("+", 2)
            raw = base64.b64decode(key, validate=True)
        except (ValueError, binascii.Error) as error:
            raise InvalidRequest("this is not a verifier key", field="key") from error
        verifier = cls(name, raw[1:])
        if len(raw) != 33 or verifier.text != text:
            raise InvalidRequest("this is not a verifier key for Ed25519", field="key")
        return verifier

    def open(self, note: str) -> Checkpoint:
        """The checkpoint of a note that this key signed.

        Raises:
            BadSignature: it did not, or the note is not a checkpoint in its one form.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        text, separator, signatures = note.partition("\n\n")
        text += "\n"
        if not separator:
            raise BadSignature("the checkpoint has no signature")
        prefix = f"\u2014 {self.name} "
        for line in signatures.splitlines():
            if not line.startswith(prefix):
                continue
            try:
                raw = base64.b64decode(line[len(prefix) :], validate=True)
                if raw[:_KEY_HASH_BYTES] != self.key_hash:
                    continue
                # Spare bits of the last character are another spelling of the same bytes.
                if base64.b64encode(raw).decode() != line[len(prefix) :]:
                    raise BadSignature("the checkpoint's signature is not in its one form")
                Ed25519PublicKey.from_public_bytes(self.public).verify(raw[_KEY_HASH_BYTES:], text.encode())
            except (ValueError, binascii.Error, InvalidSignature) as error:
                raise BadSignature("the checkpoint's signature is not valid") from error
            return _parse(text)
        raise BadSignature("the checkpoint is not signed by the ledger's key")


def _parse(text: str) -> Checkpoint:
    lines = text.split("\n")
    try:
        origin, size, root, rest = lines
        checkpoint = Checkpoint(origin, int(size), base64.b64decode(root, validate=True))
    except (ValueError, binascii.Error) as error:
        raise BadSignature("the signed text is not a checkpoint") from error
    if rest or checkpoint.text() != text or len(checkpoint.root) != 32:
        raise BadSignature("the signed text is not a checkpoint in its one form")
    return checkpoint


class Signer:
    """Signs checkpoints under one name."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verifier = Verifier(name, key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Signer({self.verifier.text})"

    def sign(self, checkpoint: Checkpoint) -> str:
        """The checkpoint as a signed note."""
        text = checkpoint.text()
        raw = self.verifier.key_hash + self._key.sign(text.encode())
        return f"{text}\n\u2014 {self.verifier.name} {base64.b64encode(raw).decode()}\n"
