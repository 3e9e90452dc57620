"""RequestMetadata of REAPI: what a build tool says of its call, for people. It never fails a call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from google.protobuf.message import DecodeError

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import Described

HEADER: Final = "build.bazel.remote.execution.v2.requestmetadata-bin"
_TEXT_MAX: Final = 1024


def described_with(described: Described, metadata: Iterable[tuple[str, str | bytes]]) -> Described:
    """A description with what the call's header adds; a header that cannot be decoded adds nothing."""
    value = next((value for name, value in metadata if name == HEADER), None)
    if not isinstance(value, bytes):
        return described
    try:
        said = re.RequestMetadata.FromString(value)
    except DecodeError:
        # REAPI: it is for logs and people alone.
        return described
    return replace(
        described,
        target_id=said.target_id[:_TEXT_MAX],
        mnemonic=said.action_mnemonic[:_TEXT_MAX],
        invocation_id=said.tool_invocation_id[:_TEXT_MAX],
    )
