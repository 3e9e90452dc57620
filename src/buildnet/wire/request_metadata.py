"""What a caller says beside a call: for whom it is (REAPI RequestMetadata), and where and how it is to run (ours).

A header that cannot be read tells nothing; one of ours that is malformed is refused, for it would change what happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from buildnet.errors import InvalidRequest
from buildnet.model.history import Requested
from buildnet.model.node import check_node_id
from buildnet.model.quick import quick
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re

Metadata = Sequence[tuple[str, str | bytes]]

REQUEST_METADATA: Final = "build.bazel.remote.execution.v2.requestmetadata-bin"
# Of Execute: the one worker that may run it, apart; and `1` for a run apart, which joins no other and leaves nothing
# behind.
PINNED: Final = "buildnet-worker"
APART: Final = "buildnet-apart"
# Of each text; a build tool's are a few hundred characters, a label of a target perhaps more.
_TEXT_MAX: Final = 1024


@quick
@dataclass(frozen=True, slots=True)
class Manner:
    """How an Execute is to be served: `pinned` is a node's id or "", `apart` neither joins nor fills the cache.

    What is pinned is apart: it can join nothing that runs elsewhere.
    """

    pinned: str = ""
    apart: bool = False


def requested_of(metadata: Metadata) -> Requested:
    """For whom a call is made, each text cut at 1,024 characters."""
    for key, value in metadata:
        if key == REQUEST_METADATA and isinstance(value, bytes):
            return requested_by(value)
    return Requested()


def requested_by(header: bytes) -> Requested:
    """The same, of the header's bytes."""
    try:
        message = re.RequestMetadata.FromString(header)
    except DecodeError:
        # A courtesy of the client's: the call is as good without it.
        return Requested()
    return Requested(
        tool=message.tool_details.tool_name[:_TEXT_MAX],
        invocation=message.tool_invocation_id[:_TEXT_MAX],
        target=message.target_id[:_TEXT_MAX],
        mnemonic=message.action_mnemonic[:_TEXT_MAX],
    )


def manner_of(metadata: Metadata) -> Manner:
    """How an Execute is to be served.

    Raises:
        InvalidRequest: a header of ours is malformed.
    """
    ours = {key: value for key, value in metadata if key in (PINNED, APART)}
    apart = ours.get(APART, "0")
    if apart not in ("0", "1"):
        raise InvalidRequest(f"{APART} is 0 or 1, not {apart!r}", field=APART)
    pinned = str(ours.get(PINNED, ""))
    return Manner(check_node_id(pinned, PINNED) if pinned else "", apart == "1")


def manner_metadata(manner: Manner) -> tuple[tuple[str, str], ...]:
    """The headers that ask for it."""
    pinned = ((PINNED, manner.pinned),) if manner.pinned else ()
    return (*pinned, (APART, "1")) if manner.apart else pinned
