"""What an attempt needs comes here: its Action, its Command and its input tree, each checked against its digest.

Everything blocks. It never trusts bytes that came with an assignment, and says everything that is missing at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from buildnet._native import KeptTree, NativeError, StagedRoot, Store, Trees, stage
from buildnet.errors import BlobsMissing, InvalidRequest
from buildnet.model.action import Properties
from buildnet.model.digest import EMPTY, Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_of, platform_of
from buildnet.worker.clearing import Clearing
from buildnet.worker.lease_book import Assignment
from buildnet.worker.patience import Transfers

_log = logging.getLogger(__name__)
_MESSAGE_SIZE_BYTES_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Described:
    """An Action and its Command, decoded. `kept` is in use when its input tree is on the disk already."""

    action: re.Action
    command: re.Command
    command_bytes: bytes
    kept: KeptTree | None = None

    @property
    def properties(self) -> Properties:
        """Platform properties."""
        return frozenset((p.name, p.value) for p in platform_of(self.action, self.command).properties)

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


@dataclass(slots=True)
class Root:
    """An execution root: `path` is where this process finds it, `mount_fd` what the command sees
    in its place, or -1. A Path would lose the dot at its end, by which a descriptor's name is followed.
    """

    path: str
    staged: StagedRoot | None = None

    @property
    def mount_fd(self) -> int:
        """The mount that the command is to see, or -1."""
        return -1 if self.staged is None else self.staged.mount_fd

    @property
    def is_layered(self) -> bool:
        """Whether what the command writes goes to a layer of its own, `upper` beside it."""
        return self.mount_fd >= 0

    def close(self) -> None:
        """Give the mount up. Safe to repeat."""
        if self.staged is not None:
            self.staged.close()


@dataclass(slots=True)
class Scratch:
    """One attempt's directory, and the root in it once there is one."""

    path: Path
    root: Root | None = None
    is_clear: bool = False

    def clear(self, clearing: Clearing) -> None:
        """Have all of it removed."""
        if self.root is not None:
            # Before the scratch is removed: what is mounted over it is in use.
            self.root.close()
        clearing.take(self.path)
        self.is_clear = True


def described_by(assignment: Assignment, link: Transfers, store: Store, trees: Trees | None) -> Described:
    """Bring the action and all it needs into the worker's own store, or say everything that is
    missing.

    Raises:
        NativeError: the controller cannot be reached.
        BlobsMissing: it lacks some of them.
        InvalidRequest: a digest names something else.
    """
    missing: list[str] = []

    def bring(fetch: Callable[[], object]) -> None:
        try:
            fetch()
        except NativeError as error:
            if error.code != BlobsMissing.code:
                raise
            missing.extend(error.fields.get("digests", ()))

    digest = assignment.key.digest
    given = bool(assignment.action) and Digest.of(assignment.action) == digest
    if assignment.action and not given:
        _log.warning("the Action that came with fence %016x is another one; it is fetched", assignment.fence)
    if not given:
        link.fetch_blobs(store, [digest.text])
    action = _decoded(re.Action, assignment.action if given else _read(store, digest), "action_digest")
    wanted, root = digest_of(action.command_digest), digest_of(action.input_root_digest)
    command_given = given and Digest.of(assignment.command) == wanted
    if not command_given:
        bring(lambda: link.fetch_blobs(store, [wanted.text]))
    kept = None if trees is None or root == EMPTY else trees.find(root.text)
    if kept is None and root != EMPTY:
        bring(lambda: link.fetch_tree(store, root.text))
    if missing:
        unique = sorted(set(missing))
        raise BlobsMissing(f"{len(unique)} inputs are missing; upload them and ask again", digests=unique)
    command_bytes = assignment.command if command_given else _read(store, wanted)
    return Described(action, _decoded(re.Command, command_bytes, "command_digest"), command_bytes, kept)


def staged(described: Described, store: Store, trees: Trees | None, scratch: Path) -> Root:
    """Make the execution root below `scratch`. Blocks.

    Raises:
        NativeError: it cannot be made.
    """
    if trees is None:
        stage(store, described.input_root, str(scratch / "root"), described.command_bytes)
        return Root(str(scratch / "root"))
    root = trees.stage(store, described.input_root, str(scratch), described.command_bytes)
    if described.kept is not None:
        # What was staged holds it now.
        described.kept.release()
    return Root(root.path, root)


def _read(store: Store, digest: Digest) -> bytes:
    return store.get_bytes(digest.text, _MESSAGE_SIZE_BYTES_MAX)


_M = TypeVar("_M", re.Action, re.Command)


def _decoded(kind: type[_M], data: bytes, field_name: str) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"{field_name} does not name a {kind.__name__}", field=field_name) from error
