"""A witness cosigns a tree only when it extends the one that it cosigned last: decided here, purely.

The messages and the order of the checks are those of c2sp.org/tlog-witness. It keeps nothing: `witness_state` does.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from buildnet.errors import BadSignature, InvalidRequest
from buildnet.ledger import note as notes
from buildnet.ledger import tree
from buildnet.ledger.checkpoint import SIZE_MAX, Checkpoint, Verifier, signed_by

PROOF_LINES_MAX: Final = 63
REQUEST_BYTES_MAX: Final = notes.NOTE_BYTES_MAX + 64 * 64
SIZE_TYPE: Final = "text/x.tlog.size"
"""The content type of the body of a 409."""

_OLD: Final = re.compile(r"old (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """What a log asks: cosign `note`, whose tree continues that of `old_size` entries as `proof` shows."""

    old_size: int
    proof: tuple[bytes, ...]
    note: str

    def encode(self) -> bytes:
        """The request's body."""
        lines = [f"old {self.old_size}", *(base64.b64encode(one).decode() for one in self.proof), "", self.note]
        return "\n".join(lines).encode()

    @classmethod
    def parse(cls, body: bytes) -> AddCheckpoint:
        """The request of a body.

        Raises:
            InvalidRequest: it is none in its one form, or past a limit.
        """
        if len(body) > REQUEST_BYTES_MAX:
            raise InvalidRequest(f"the request is over {REQUEST_BYTES_MAX} bytes", field="body")
        try:
            asked, separator, note = body.decode().partition("\n\n")
            first, *lines = asked.split("\n")
            proof = tuple(base64.b64decode(line, validate=True) for line in lines)
        except (ValueError, binascii.Error) as error:
            raise InvalidRequest("the request's proof is not text, or not in base64", field="proof") from error
        old = _OLD.fullmatch(first)
        if old is None or not separator or int(old[1]) > SIZE_MAX:
            raise InvalidRequest("the request must begin with a line `old SIZE`, and a blank one before the note")
        if len(proof) > PROOF_LINES_MAX:
            raise InvalidRequest(f"the proof has more than {PROOF_LINES_MAX} lines", field="proof")
        request = cls(int(old[1]), proof, note)
        if any(len(one) != 32 for one in proof) or request.encode() != body:
            raise InvalidRequest("the request's proof is not in its one form", field="proof")
        return request


@dataclass(frozen=True, slots=True)
class Recorded:
    """The tree that was cosigned last; before the first it is the empty one."""

    size: int = 0
    root: bytes = tree.EMPTY_ROOT


@dataclass(frozen=True, slots=True)
class Agreed:
    """Cosign `text`; `signed` are the log's own signatures of it."""

    text: str
    head: Checkpoint
    signed: tuple[notes.Signature, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """An HTTP status and why; with 409 also the `size` that was cosigned last."""

    status: int
    reason: str
    size: int | None = None


def origin_of(request: AddCheckpoint) -> str:
    """The log that a request is about, as its note says, before anything is verified."""
    return request.note.partition("\n")[0]


def decide(request: AddCheckpoint, logs: Mapping[str, Sequence[Verifier]], recorded: Recorded) -> Agreed | Refused:
    """What is to be done with a request.

    Args:
        request: what was asked.
        logs: keys of the logs that are witnessed, by origin.
        recorded: what was cosigned last for this origin. The caller lets no other request come between.
    """
    origin = origin_of(request)
    try:
        text, signed = notes.split(request.note)
    except BadSignature as error:
        return Refused(400, error.message)
    if origin not in logs:
        return Refused(404, "this log is not witnessed here")
    try:
        signed = signed_by(logs[origin], text, signed)
    except BadSignature as error:
        return Refused(403, error.message)
    try:
        head = Checkpoint.parse(text)
    except BadSignature as error:
        return Refused(400, error.message)
    if request.old_size > head.size:
        return Refused(400, f"the old size {request.old_size} is over the checkpoint's {head.size}")
    if request.old_size != recorded.size:
        return Refused(409, f"the tree that was cosigned last has {recorded.size} entries", recorded.size)
    if not _extends(head, request.proof, recorded):
        return Refused(422, f"the proof does not lead from the {recorded.size} entries cosigned last to {head.size}")
    return Agreed(text, head, signed)


def _extends(head: Checkpoint, proof: Sequence[bytes], recorded: Recorded) -> bool:
    if head.size == 0 and head.root != tree.EMPTY_ROOT:
        return False
    if recorded.size == 0:
        return not proof
    return tree.verify_consistency(recorded.size, head.size, proof, recorded.root, head.root)
