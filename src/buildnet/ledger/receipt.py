"""One entry proven, as a server hands it over; its text is a proof file (c2sp.org/tlog-proof@v1). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from buildnet.ledger import proof_file
from buildnet.ledger.proof_file import Proven


@dataclass(frozen=True, slots=True)
class Receipt:
    """`body` is the leaf's bytes, `hashes` of 32 bytes each; `key` is what the server calls its key."""

    index: int
    body: bytes
    hashes: tuple[bytes, ...]
    checkpoint: str
    key: str

    @property
    def text(self) -> str:
        """The file."""
        return proof_file.to_text(self.index, self.hashes, self.checkpoint, self.body)

    def facts(self) -> dict[str, Any]:
        """The same as values of JSON, with the key."""
        return {
            "index": self.index,
            "body": self.body.decode(),
            "hashes": [sibling.hex() for sibling in self.hashes],
            "checkpoint": self.checkpoint,
            "key": self.key,
        }

    def verify(self) -> Proven:
        """What it proves.

        Raises:
            BadSignature: the key did not sign the checkpoint, or the path does not lead to its root.
            InvalidRequest: it is no proof, or the key is none.
        """
        return proof_file.verify(self.text, self.key)
