"""What a client says of a call beside it (REAPI RequestMetadata). Decides nothing: what cannot be read is not there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re

HEADER: Final = "build.bazel.remote.execution.v2.requestmetadata-bin"
_CHARACTERS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Invoked:
    """One run of a tool, and what in it the call is for; each text is cut to 256 characters, and "" when not told."""

    invocation: str = ""
    target: str = ""


def invoked_of(metadata: Iterable[tuple[str, str | bytes]]) -> Invoked:
    """What the call's metadata says."""
    for name, value in metadata:
        if name != HEADER or not isinstance(value, bytes):
            continue
        try:
            said = re.RequestMetadata.FromString(value)
        except DecodeError:
            # A client's ornament: no reason to fail its call.
            return Invoked()
        return Invoked(said.tool_invocation_id[:_CHARACTERS_MAX], said.target_id[:_CHARACTERS_MAX])
    return Invoked()
