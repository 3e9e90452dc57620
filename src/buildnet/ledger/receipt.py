"""A receipt: one entry with all it takes to prove it offline. Parsing is strict; what does not hold is refused whole.

JSON with the keys `format` (`buildnet-receipt-1`), `index`, `body` (the leaf's exact text), `hashes` (the audit path of
RFC 6962 section 2.1.1, leaf to root, hex), `checkpoint` (a C2SP signed note) and `key` (the C2SP verifier key that
signed it).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from buildnet.errors import BadSignature, InvalidRequest
from buildnet.ledger import tree
from buildnet.ledger.checkpoint import Checkpoint, Verifier

FORMAT: Final = "buildnet-receipt-1"
SIZE_BYTES_MAX: Final = 256 << 10
_HASHES_MAX: Final = 64
_KEYS: Final = {"format", "index", "body", "hashes", "checkpoint", "key"}


@dataclass(frozen=True, slots=True)
class Receipt:
    """`body` is the leaf's bytes, `hashes` of 32 bytes each; `key` is only as good as where it was got from."""

    index: int
    body: bytes
    hashes: tuple[bytes, ...]
    checkpoint: str
    key: str

    @property
    def text(self) -> str:
        """The file."""
        value = {
            "format": FORMAT,
            "index": self.index,
            "body": self.body.decode(),
            "hashes": [sibling.hex() for sibling in self.hashes],
            "checkpoint": self.checkpoint,
            "key": self.key,
        }
        return json.dumps(value, indent=1) + "\n"

    @classmethod
    def parse(cls, text: bytes) -> Receipt:
        """Read a file.

        Raises:
            InvalidRequest: it is no receipt, or larger than one may be.
        """
        if len(text) > SIZE_BYTES_MAX:
            raise InvalidRequest(f"a receipt has at most {SIZE_BYTES_MAX} bytes", field="receipt")
        try:
            value = json.loads(text)
            if not isinstance(value, dict) or set(value) != _KEYS or value["format"] != FORMAT:
                raise ValueError
            return cls(
                _of(int, value["index"]),
                _of(str, value["body"]).encode(),
                tuple(_hash(sibling) for sibling in _of(list, value["hashes"])),
                _of(str, value["checkpoint"]),
                _of(str, value["key"]),
            )
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"this is not a receipt ({FORMAT}); `buildnet ledger receipt` and `prove --out` write them",
                field="receipt",
            ) from error

    def verify(self) -> Checkpoint:
        """The checkpoint that the entry is under.

        Raises:
            BadSignature: the key did not sign the checkpoint, or the path does not lead to its root.
        """
        try:
            verifier = Verifier.parse(self.key)
        except InvalidRequest as error:
            raise BadSignature(str(error)) from error
        head = verifier.open(self.checkpoint)
        if not tree.verify_inclusion(tree.leaf_hash(self.body), self.index, head.size, self.hashes, head.root):
            raise BadSignature(f"the proof of entry {self.index} does not lead to the checkpoint's root")
        return head


def _of(kind: type[Any], value: object) -> Any:
    # bool is an int to Python, and no index.
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is list and len(value) > _HASHES_MAX):
        raise ValueError
    return value


def _hash(text: object) -> bytes:
    sibling = bytes.fromhex(_of(str, text))
    if len(sibling) != 32 or sibling.hex() != text:
        raise ValueError
    return sibling
