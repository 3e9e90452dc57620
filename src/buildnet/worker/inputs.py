"""What an attempt is about: its Action and its Command, each checked against its digest.

It never trusts bytes that came with an assignment. What did not come is fetched, and everything that is missing is
said at once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from buildnet._native import Crew, Store
from buildnet.errors import InvalidRequest
from buildnet.model.action import Properties
from buildnet.model.action_spec import SECRET_PREFIX
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_of, platform_of
from buildnet.worker.lease_book import Assignment

_log = logging.getLogger(__name__)
_MESSAGE_SIZE_BYTES_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Described:
    """An Action and its Command, decoded."""

    action: re.Action
    command: re.Command
    command_bytes: bytes

    @property
    def properties(self) -> Properties:
        """Platform properties."""
        return frozenset((p.name, p.value) for p in platform_of(self.action, self.command).properties)

    @property
    def names_secrets(self) -> bool:
        """Whether it names any secret of the worker."""
        return any(name.startswith(SECRET_PREFIX) for name, _ in self.properties)

    @property
    def environment(self) -> list[tuple[str, str]]:
        """The Command's variables in their order."""
        return [(v.name, v.value) for v in self.command.environment_variables]

    @property
    def input_root(self) -> str:
        """The input root's digest."""
        return digest_of(self.action.input_root_digest).text

    @property
    def has_outputs(self) -> bool:
        """Whether the Command names any output."""
        command = self.command
        return bool(command.output_paths or command.output_files or command.output_directories)


def given(assignment: Assignment) -> Described | None:
    """What came with the assignment, or None when that is not the whole.

    Raises:
        InvalidRequest: a digest names something else.
    """
    if not assignment.action or not assignment.command:
        return None
    if Digest.of(assignment.action) != assignment.key.digest:
        _log.warning("the Action that came with fence %016x is another one; it is fetched", assignment.fence)
        return None
    action = _decoded(re.Action, assignment.action, "action_digest")
    if Digest.of(assignment.command) != digest_of(action.command_digest):
        return None
    return Described(action, _decoded(re.Command, assignment.command, "command_digest"), assignment.command)


def fetched(assignment: Assignment, crew: Crew, store: Store) -> Described:
    """Bring the Action, the Command and the inputs into the worker's own store. Blocks.

    Raises:
        NativeError: the controller cannot be reached; `blobs_missing`: it lacks some of them.
        InvalidRequest: a digest names something else.
    """
    digest = assignment.key.digest
    crew.fetch([digest.text])
    action = _decoded(re.Action, store.get_bytes(digest.text, _MESSAGE_SIZE_BYTES_MAX), "action_digest")
    wanted, root = digest_of(action.command_digest), digest_of(action.input_root_digest)
    crew.fetch([wanted.text], root.text)
    command = store.get_bytes(wanted.text, _MESSAGE_SIZE_BYTES_MAX)
    return Described(action, _decoded(re.Command, command, "command_digest"), command)


_M = TypeVar("_M", re.Action, re.Command)


def _decoded(kind: type[_M], data: bytes, field_name: str) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"{field_name} does not name a {kind.__name__}", field=field_name) from error
