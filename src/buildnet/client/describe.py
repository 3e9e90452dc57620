"""What is to be run, as canonical REAPI messages. Pure: equal wishes have equal digests, whoever states them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from buildnet.errors import InvalidRequest
from buildnet.model.action import CONSTRAINT
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message


@dataclass(frozen=True, slots=True)
class Wish:
    """One command and what it may see and leave. `outputs` are paths of files or directories.

    `constraints` are on resources, each a property `require`: their order and their repetitions mean nothing.
    """

    arguments: Sequence[str]
    outputs: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, str] = field(default_factory=dict)
    constraints: Sequence[str] = ()
    working_directory: str = ""
    timeout_s: float | None = None
    do_not_cache: bool = False


def command_of(wish: Wish) -> bytes:
    """The Command's exact bytes.

    Raises:
        InvalidRequest: there is nothing to run.
    """
    if not wish.arguments or not wish.arguments[0]:
        raise InvalidRequest("there is no command to run", field="arguments")
    command = re.Command(arguments=wish.arguments, working_directory=wish.working_directory)
    for name in sorted(wish.environment):
        command.environment_variables.add(name=name, value=wish.environment[name])
    command.output_paths.extend(sorted({path.rstrip("/") for path in wish.outputs}))
    return command.SerializeToString(deterministic=True)


def action_of(wish: Wish, command: Digest, root: Digest) -> bytes:
    """The Action's exact bytes."""
    action = re.Action(
        command_digest=digest_message(command),
        input_root_digest=digest_message(root),
        do_not_cache=wish.do_not_cache,
    )
    if wish.timeout_s is not None:
        action.timeout.FromNanoseconds(round(wish.timeout_s * 1e9))
    # REAPI Platform: sorted by name, then by value.
    required = {(CONSTRAINT, constraint) for constraint in wish.constraints}
    for name, value in sorted({*wish.platform.items(), *required}):
        action.platform.properties.add(name=name, value=value)
    return action.SerializeToString(deterministic=True)
