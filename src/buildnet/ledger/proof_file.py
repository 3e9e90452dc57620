"""A proof is one text that anybody can check offline, with nothing but keys (c2sp.org/tlog-proof@v1). Pure.

The entry itself travels as the proof's extra data: it is believed only because its hash leads to the signed root.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from buildnet.errors import BadSignature, InvalidRequest
from buildnet.ledger import note as notes
from buildnet.ledger import tree
from buildnet.ledger.checkpoint import SIZE_MAX, Verifier
from buildnet.ledger.cosignature import WitnessKey, time_of

HEADER: Final = "c2sp.org/tlog-proof@v1"
SUFFIX: Final = ".tlog-proof"
PROOF_BYTES_MAX: Final = 256 << 10
_PATH_MAX: Final = 63
_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class ProofFile:
    """What a proof says, unverified: `hashes` lead from the entry at `index` to the root that `note` signs."""

    index: int
    hashes: tuple[bytes, ...]
    note: str
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof proves: entry `index` of the first `size` of a log; who cosigned, with the time in Unix seconds."""

    index: int
    body: bytes
    origin: str
    size: int
    root: bytes
    cosigned: dict[str, int]


def to_text(index: int, hashes: Sequence[bytes], note: str, body: bytes | None = None) -> str:
    """The text of a proof.

    Args:
        index: the entry's place.
        hashes: its audit path in the tree that `note` is of, leaf to root, 32 bytes each.
        note: the checkpoint, cosigned or not.
        body: the entry's exact bytes; without them whoever verifies must have them.
    """
    extra = [] if body is None else [f"extra {base64.b64encode(body).decode()}"]
    path = [base64.b64encode(one).decode() for one in hashes]
    return "\n".join([HEADER, *extra, f"index {index}", *path, "", note])


def parse(text: str) -> ProofFile:
    """A proof's parts.

    Raises:
        InvalidRequest: it is no proof in its one form, or past a limit.
    """
    if len(text) > PROOF_BYTES_MAX:
        raise InvalidRequest(f"the proof is over {PROOF_BYTES_MAX} bytes", field="proof")
    head, separator, note = text.partition("\n\n")
    header, *lines = head.split("\n")
    if header != HEADER or not separator:
        raise InvalidRequest(f"this is not a proof: its first line must be {HEADER}", field="proof")
    try:
        extra = lines.pop(0).removeprefix("extra ") if lines and lines[0].startswith("extra ") else None
        body = None if extra is None else base64.b64decode(extra, validate=True)
        index, *path = lines or [""]
        hashes = tuple(base64.b64decode(line, validate=True) for line in path)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest("a line of the proof is not in base64", field="proof") from error
    match = _INDEX.fullmatch(index)
    if match is None or int(match[1]) > SIZE_MAX or len(hashes) > _PATH_MAX or any(len(one) != 32 for one in hashes):
        raise InvalidRequest("the proof has no index, or a line that is no hash", field="proof")
    proof = ProofFile(int(match[1]), hashes, note, body)
    if to_text(proof.index, proof.hashes, proof.note, proof.body) != text:
        raise InvalidRequest("the proof is not in its one form", field="proof")
    return proof


def verify(
    text: str,
    verifier_key: str,
    witnesses: Sequence[str] = (),
    *,
    quorum: int | None = None,
    body: bytes | None = None,
) -> Proven:
    """Check a proof from its text and keys alone.

    Args:
        text: the proof.
        verifier_key: the log's, which the caller has from somewhere else.
        witnesses: keys of witnesses that the caller trusts.
        quorum: how many of them must have cosigned; all unless said.
        body: the entry, for a proof that does not hold it.

    Raises:
        InvalidRequest: the proof or a key is malformed, or there is no entry.
        BadSignature: a signature is not valid, the path does not lead to the root, or too few witnesses cosigned.
    """
    proof = parse(text)
    entry = proof.body if body is None else body
    if entry is None:
        raise InvalidRequest("the proof does not hold the entry; it must be given", field="body")
    head = Verifier.parse(verifier_key).open(proof.note)
    if not tree.verify_inclusion(tree.leaf_hash(entry), proof.index, head.size, proof.hashes, head.root):
        raise BadSignature(f"the proof of entry {proof.index} does not lead to the root that is signed")
    signed_text, signed = notes.split(proof.note)
    cosigned = {}
    for key in dict.fromkeys(map(WitnessKey.parse, witnesses)):
        if found := key.of(signed_text, signed):
            cosigned[key.text] = max(map(time_of, found))
    wanted = len(set(witnesses)) if quorum is None else quorum
    if len(cosigned) < wanted:
        raise BadSignature(f"{len(cosigned)} of the witnesses cosigned, and {wanted} must have")
    return Proven(proof.index, entry, head.origin, head.size, head.root, cosigned)
