"""REAPI messages to and from the model. The exact bytes that a client hashed are never written anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from buildnet.errors import InvalidRequest
from buildnet.model.action import ActionKey, Properties, Wanted
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re

TIMEOUT_DEFAULT_S = 3600.0
TIMEOUT_MAX_S = 7200.0


def digest_of(message: re.Digest) -> Digest:
    """A model digest from its message.

    Raises:
        InvalidRequest: not a SHA-256 digest.
    """
    return Digest.parse(f"{message.hash}/{message.size_bytes}")


def digest_message(digest: Digest) -> re.Digest:
    """The message of a digest."""
    return re.Digest(hash=digest.hash, size_bytes=digest.size_bytes)


@dataclass(frozen=True, slots=True)
class Described:
    """What a person would want to see of an action without reading its blobs again."""

    arguments: tuple[str, ...]


def wanted_of(
    instance: str,
    request: re.ExecuteRequest,
    read: Callable[[str], bytes],
) -> tuple[Wanted, Described]:
    """Translate an ExecuteRequest whose action the door has admitted.

    Args:
        instance: the instance name.
        request: the decoded request.
        read: returns a small blob of the store by its digest text.

    Raises:
        InvalidRequest: the timeout is over the server's maximum (REAPI Action.timeout: MUST reject).
    """
    digest = digest_of(request.action_digest)
    try:
        action = re.Action.FromString(read(digest.text))
        command = re.Command.FromString(read(digest_of(action.command_digest).text))
    except DecodeError as error:
        raise InvalidRequest("the action cannot be decoded", field="action_digest") from error
    wanted = Wanted(
        key=ActionKey(instance, digest),
        requirements=_requirements(action, command),
        timeout_s=_timeout_s(action),
        priority=request.execution_policy.priority,
        do_not_cache=action.do_not_cache,
        skip_cache_lookup=request.skip_cache_lookup,
    )
    return wanted, Described(tuple(command.arguments))


def described_of(digest: Digest, read: Callable[[str], bytes]) -> Described:
    """What is shown of an action whose request is long past.

    Raises:
        NotFound: its blobs are here no more.
        InvalidRequest: they are not an Action and its Command.
    """
    try:
        action = re.Action.FromString(read(digest.text))
        command = re.Command.FromString(read(digest_of(action.command_digest).text))
    except DecodeError as error:
        raise InvalidRequest("the action cannot be decoded", field="action_digest") from error
    return Described(tuple(command.arguments))


def _requirements(action: re.Action, command: re.Command) -> Properties:
    # Action.platform wins over the deprecated Command.platform (REAPI 2.2).
    platform = action.platform if action.HasField("platform") else command.platform
    return frozenset((p.name, p.value) for p in platform.properties)


def _timeout_s(action: re.Action) -> float:
    if not action.HasField("timeout"):
        return TIMEOUT_DEFAULT_S
    timeout_s = action.timeout.seconds + action.timeout.nanos / 1e9
    if not 0 < timeout_s <= TIMEOUT_MAX_S:
        raise InvalidRequest(
            f"the action's timeout of {timeout_s:g} s is outside (0, {TIMEOUT_MAX_S:g}]; ask for less",
            field="timeout",
        )
    return timeout_s
