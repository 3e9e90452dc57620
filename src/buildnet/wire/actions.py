"""REAPI messages to and from the model. The exact bytes that a client hashed are never written anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

from buildnet.errors import InvalidRequest
from buildnet.model.action import SECRET, ActionKey, Properties, Wanted
from buildnet.model.action_spec import SECRET_PREFIX, check_reference
from buildnet.model.amounts import RESOURCE_PREFIX, Amounts
from buildnet.model.caller import Caller, is_apart, share_of
from buildnet.model.digest import Digest
from buildnet.model.history import Requested
from buildnet.model.quick import quick
from buildnet.model.tier import tiered
from buildnet.model.timeout import TIMEOUT_MAX_S, timeout_s_of
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.asked import asked_of
from buildnet.wire.request_metadata import Manner

ACTION_STATES: Final = {
    action_pb2.ACTION_STATE_WAITING: "waiting",
    action_pb2.ACTION_STATE_QUEUED: "queued",
    action_pb2.ACTION_STATE_EXECUTING: "executing",
    action_pb2.ACTION_STATE_COMPLETED: "completed",
    action_pb2.ACTION_STATE_FAILED: "failed",
    action_pb2.ACTION_STATE_CANCELLED: "cancelled",
}
"""What people read of where an operation stands."""


def directory_digest_of(output: re.OutputDirectory) -> tuple[Digest, bool]:
    """Digest of an output directory's Tree or, where it has none, of its root Directory; whether it is that.

    By Command.output_directory_format there is one of them, or both.

    Raises:
        InvalidRequest: as `digest_of`.
    """
    is_root = not output.HasField("tree_digest")
    return digest_of(output.root_directory_digest if is_root else output.tree_digest), is_root


def digest_of(message: re.Digest) -> Digest:
    """A model digest from its message.

    Raises:
        InvalidRequest: not a SHA-256 digest.
    """
    return Digest.checked(message.hash, message.size_bytes)


def digest_message(digest: Digest) -> re.Digest:
    """The message of a digest."""
    return re.Digest(hash=digest.hash, size_bytes=digest.size_bytes)


@quick
@dataclass(frozen=True, slots=True)
class Described:
    """What a person would want to see of an action without reading its blobs again."""

    arguments: tuple[str, ...]
    requested: Requested = field(default_factory=Requested)


@quick
@dataclass(frozen=True, slots=True)
class Asker:
    """What a call says beside its ExecuteRequest: who asks, for whom, and where and how it is to run."""

    caller: Caller
    requested: Requested
    manner: Manner


def wanted_of(
    instance: str,
    request: re.ExecuteRequest,
    asker: Asker,
    read: Callable[[str], bytes],
    ignored: frozenset[str] = frozenset(),
    timeout_max_s: float = TIMEOUT_MAX_S,
) -> tuple[Wanted, Described]:
    """Translate an ExecuteRequest whose action the door has admitted.

    Args:
        instance: the instance name.
        request: the decoded request.
        asker: what the call says beside it.
        read: returns a small blob of the store by its digest text.
        ignored: names of platform properties that no worker need offer.
        timeout_max_s: what an action may ask for.

    Raises:
        InvalidRequest: the timeout is over the maximum, or a property of this house has a value that means nothing.
    """
    digest = digest_of(request.action_digest)
    action, command = _read(digest, read)
    requirements, asked = _understood(platform_of(action, command).SerializeToString(), ignored, is_apart(instance))
    requested, manner = asker.requested, asker.manner
    wanted = Wanted(
        key=ActionKey(instance, digest),
        requirements=requirements,
        timeout_s=timeout_s_of(_asked_timeout_s(action), timeout_max_s),
        priority=request.execution_policy.priority,
        # Of two that may be cached one at a time is published: what cannot join is apart.
        do_not_cache=action.do_not_cache or manner.apart or manner.pinned != "",
        skip_cache_lookup=request.skip_cache_lookup,
        caller=asker.caller.subject,
        asked=asked,
        share=share_of(asker.caller.subject, requested.invocation),
        near=near_root(action.input_root_digest.hash) + near_target(requested.target),
        pinned=manner.pinned,
    )
    return wanted, Described(tuple(command.arguments), requested)


def described_of(digest: Digest, read: Callable[[str], bytes]) -> Described:
    """What is shown of an action whose request is long past.

    Raises:
        NotFound: its blobs are here no more.
        InvalidRequest: they are not an Action and its Command.
    """
    _, command = _read(digest, read)
    return Described(tuple(command.arguments))


def _read(digest: Digest, read: Callable[[str], bytes]) -> tuple[re.Action, re.Command]:
    try:
        action = re.Action.FromString(read(digest.text))
        return action, re.Command.FromString(read(digest_of(action.command_digest).text))
    except DecodeError as error:
        raise InvalidRequest("the action cannot be decoded", field="action_digest") from error


def requirements_of(
    properties: Iterable[tuple[str, str]], ignored: Collection[str], *, apart: bool = False
) -> Properties:
    """What a worker must offer, of all that an action says. What is ignored is in the action's digest all the same.
    `apart`: the result is a namespace's alone.
    """
    wanted = frozenset(
        _offered(name, value)
        for name, value in properties
        if name not in ignored and not name.startswith(RESOURCE_PREFIX)
    )
    return _same(tiered(wanted, apart=apart))


def _offered(name: str, value: str) -> tuple[str, str]:
    """As a worker would offer it: a secret by its own name, whatever variable it is wanted in."""
    if not name.startswith(SECRET_PREFIX):
        return name, value
    check_reference(value, "platform.properties", f"the value of {name[:64]!a}")
    return SECRET, value


def platform_of(action: re.Action, command: re.Command) -> re.Platform:
    """Action.platform wins over the deprecated Command.platform (REAPI 2.2)."""
    return action.platform if action.HasField("platform") else command.platform


def near_root(digest_hash: str) -> tuple[int, ...]:
    """The number that actions with this input root have in common: those that meet cost a worse choice of worker."""
    return (int(digest_hash[:14], 16),)


def near_target(target: str) -> tuple[int, ...]:
    """The number that actions of this target have in common; none for no target."""
    return near_root(Digest.of(f"target {target}".encode()).hash) if target else ()


@lru_cache(maxsize=4096)
def _same(properties: Properties) -> Properties:
    # Thousands of actions that wait require the same: they share one set.
    return properties


@lru_cache(maxsize=1024)
def _understood(platform: bytes, ignored: frozenset[str], apart: bool) -> tuple[Properties, Amounts]:
    """What a platform requires and asks. Of an action's thousands of neighbours most have the same one."""
    properties = frozenset((p.name, p.value) for p in re.Platform.FromString(platform).properties)
    return requirements_of(properties, ignored, apart=apart), asked_of(properties)


def _asked_timeout_s(action: re.Action) -> float | None:
    return action.timeout.seconds + action.timeout.nanos / 1e9 if action.HasField("timeout") else None
