"""Proves to a page what it shows: the head is signed, it continues the head that the page saw first, and the entries
shown are under it. Every hash is computed anew from what is stored; a claim that does not hold is told, never repaired.

Source: RFC 9162 sections 2.1.3.2 and 2.1.4.2; C2SP signed-note.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from buildnet.edge.web.facts import Fact, head_fact
from buildnet.errors import BadSignature, InvalidRequest, LedgerCorrupt
from buildnet.ledger import tree
from buildnet.ledger.log import LedgerLog

LEAVES_MAX: Final = 200
_SIZE_MAX: Final = 1 << 53
_HASH_DIGITS: Final = 64


@dataclass(frozen=True, slots=True)
class Claim:
    """What a page shows: the first head that it saw (size and root; none at first), and leaf hashes by index."""

    size: int
    root: bytes
    leaves: tuple[tuple[int, bytes], ...]

    @classmethod
    def parse(cls, body: bytes) -> Claim:
        """Read `{"known": {"size", "root"} | null, "leaves": [[index, hash], ...]}`, hashes in hex.

        Raises:
            InvalidRequest: it is not that, or holds more than 200 leaves.
        """
        try:
            said = json.loads(body)
            known, leaves = said.get("known"), said.get("leaves", [])
            size, root = (0, b"") if known is None else (_number(known["size"]), _hash(known["root"]))
            pairs = tuple((_number(index), _hash(leaf)) for index, leaf in leaves)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidRequest(
                'the claim is not {"known": {"size", "root"}, "leaves": [[index, hash], ...]}', field="body"
            ) from error
        if len(pairs) > LEAVES_MAX:
            raise InvalidRequest(f"{len(pairs)} leaves are over the limit of {LEAVES_MAX}; send fewer", field="leaves")
        return cls(size, root, pairs)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _SIZE_MAX:
        raise ValueError("not a size or an index")
    return value


def _hash(value: Any) -> bytes:
    if not isinstance(value, str) or len(value) != _HASH_DIGITS:
        raise ValueError("not a hash")
    return bytes.fromhex(value)


async def prove(ledger: LedgerLog, claim: Claim) -> Fact:
    """What holds of a claim, under the newest head.

    Gives `head`, and for `signature`, `consistency` (null when no head was known) and `inclusion` whether it `holds`;
    `inclusion.failed` names the entries that are not what was claimed.
    """
    size = await ledger.signed_size()
    note = await ledger.checkpoint(size)
    try:
        checkpoint = ledger.verifier.open(note)
    except BadSignature as error:
        return {"holds": False, "signature": {"holds": False, "message": error.message}}
    consistency = None
    if claim.size > size:
        consistency = {"holds": False, "from_size": claim.size}
    elif claim.size:
        path = await ledger.prove_consistency(claim.size, size)
        holds = tree.verify_consistency(claim.size, size, path, claim.root, checkpoint.root)
        consistency = {"holds": holds, "from_size": claim.size}
    failed = []
    for index, leaf in claim.leaves:
        try:
            path = await ledger.prove_inclusion(index, size) if index < size else []
        except LedgerCorrupt:
            path = []
        if not tree.verify_inclusion(leaf, index, size, path, checkpoint.root):
            failed.append(index)
    return {
        "holds": not failed and (consistency is None or bool(consistency["holds"])),
        "head": head_fact(checkpoint, note, ledger.verifier.text),
        "signature": {"holds": True},
        "consistency": consistency,
        "inclusion": {"holds": not failed, "count": len(claim.leaves), "failed": failed},
    }
