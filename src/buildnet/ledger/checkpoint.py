"""Signed statements of a tree's size and root, in the formats of C2SP (signed-note, tlog-checkpoint).

Parsing is strict: what is parsed and written again must be the same bytes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from buildnet._native import SigningKey, is_signed
from buildnet.errors import BadSignature
from buildnet.ledger import note as notes

SIZE_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is signed: `origin` names the log, `root` is 32 bytes; `extensions` are lines that other logs may add."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """The note's text."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """The checkpoint of a note's text.

        Raises:
            BadSignature: it is none in its one form.
        """
        try:
            origin, size, root, *extensions, rest = text.split("\n")
            checkpoint = cls(origin, int(size), base64.b64decode(root, validate=True), tuple(extensions))
        except (ValueError, binascii.Error) as error:
            raise BadSignature("the signed text is not a checkpoint") from error
        sound = origin and not rest and all(extensions) and len(checkpoint.root) == 32
        if not sound or not 0 <= checkpoint.size <= SIZE_MAX or checkpoint.text() != text:
            raise BadSignature("the signed text is not a checkpoint in its one form")
        return checkpoint


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key with the name that it signs under; `text` is the vkey of C2SP signed-note."""

    name: str
    public: bytes

    @property
    def key_hash(self) -> bytes:
        """The four bytes that name the key in a signature line."""
        return notes.key_id(self.name, notes.ED25519, self.public)

    @property
    def text(self) -> str:
        """`name+hash+key`."""
        return notes.verifier_key(self.name, notes.ED25519, self.public)

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Parse a vkey.

        Raises:
            InvalidRequest: it is not an Ed25519 one, or not in its one form.
        """
        return cls(*notes.parse_verifier_key(text, notes.ED25519))

    def open(self, note: str) -> Checkpoint:
        """The checkpoint of a note that this key signed, whoever else signed it.

        Raises:
            BadSignature: it did not, or the note is not a checkpoint in its one form.
        """
        text, signed = notes.split(note)
        signed_by([self], text, signed)
        checkpoint = Checkpoint.parse(text)
        if checkpoint.origin != self.name:
            raise BadSignature("the checkpoint is of another log than its key")
        return checkpoint


def signed_by(
    verifiers: Sequence[Verifier], text: str, signed: Sequence[notes.Signature]
) -> tuple[notes.Signature, ...]:
    """Those signatures of a text that are of these keys.

    Raises:
        BadSignature: there is none, or one that says to be of such a key is not.
    """
    found = []
    for signature in signed:
        for verifier in verifiers:
            if (signature.name, signature.key_id) == (verifier.name, verifier.key_hash):
                if not is_signed(verifier.public, signature.raw, text.encode()):
                    raise BadSignature("the checkpoint's signature is not valid")
                found.append(signature)
    if not found:
        raise BadSignature("the checkpoint is not signed by the ledger's key")
    return tuple(found)


class Signer:
    """Signs checkpoints under one name."""

    def __init__(self, name: str, key: SigningKey) -> None:
        self._key = key
        self.verifier = Verifier(name, key.public)

    def __repr__(self) -> str:
        return f"Signer({self.verifier.text})"

    def sign(self, checkpoint: Checkpoint) -> str:
        """The checkpoint as a signed note."""
        text = checkpoint.text()
        signature = notes.Signature(self.verifier.name, self.verifier.key_hash, self._key.sign(text.encode()))
        return notes.join(text, [signature])
