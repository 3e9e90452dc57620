"""ActionSpec to and from its message, and down to REAPI: equal specs have equal digests, and no field is lost.

Bytes are made once, here: tag order, no unknown fields, repeated fields sorted where REAPI sorts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from buildnet.errors import InvalidRequest
from buildnet.model.action_spec import ActionSpec, FileInput, Input, OutputInput, TreeInput, spec_of
from buildnet.model.amounts import NOTHING
from buildnet.model.digest import Digest
from buildnet.wire import times
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.actions import digest_message, digest_of
from buildnet.wire.amounts import amounts_of


@dataclass(frozen=True, slots=True)
class Lowered:
    """A spec as REAPI has it: the exact bytes of both messages."""

    action: bytes
    command: bytes

    @property
    def digest(self) -> Digest:
        """The action's identity."""
        return Digest.of(self.action)


def lower(spec: ActionSpec, root: Digest) -> Lowered:
    """Action and Command of a spec over an input root. `priority` is in neither."""
    command = re.Command(arguments=spec.arguments, working_directory=spec.working_directory)
    for name, value in spec.variables:
        command.environment_variables.add(name=name, value=value)
    command.output_paths.extend(spec.outputs)
    command_bytes = command.SerializeToString(deterministic=True)
    action = re.Action(
        command_digest=digest_message(Digest.of(command_bytes)),
        input_root_digest=digest_message(root),
        do_not_cache=spec.do_not_cache,
        salt=spec.salt,
    )
    if spec.timeout_s is not None:
        action.timeout.FromNanoseconds(round(spec.timeout_s * 1e9))
    # In the Action, where servers may look at it without reading the Command (REAPI 2.2).
    for name, value in spec.properties():
        action.platform.properties.add(name=name, value=value)
    return Lowered(action.SerializeToString(deterministic=True), command_bytes)


def spec_of_message(message: action_pb2.ActionSpec) -> ActionSpec:
    """The canonical spec of a message.

    Raises:
        InvalidRequest: it is none; `field` says why.
        TooLarge: there is too much of something.
    """
    # What is not said is not looked at: of a graph of thousands that would be half the time.
    given = {}
    for field, value in message.ListFields():
        name, read = _READ[field.number]
        given[name] = read(value)
    return spec_of(given.pop("arguments", ()), **given)


def message_of_spec(spec: ActionSpec) -> action_pb2.ActionSpec:
    """The message of a spec; `spec_of_message` gives it back."""
    message = action_pb2.ActionSpec(
        inputs=[_input_message(one) for one in spec.inputs],
        variables=dict(spec.variables),
        arguments=spec.arguments,
        working_directory=spec.working_directory,
        outputs=spec.outputs,
        effects={effect.name: effect.text for effect in spec.effects},
        require=spec.constraints,
        platform=[re.Platform.Property(name=name, value=value) for name, value in spec.platform],
        secrets=dict(spec.secrets),
        tier=spec.tier,
        do_not_cache=spec.do_not_cache,
        salt=spec.salt,
        priority=spec.priority,
    )
    if spec.resources != NOTHING:
        asked = spec.resources
        message.resources.CopyFrom(
            action_pb2.ActionResources(
                cpu_milli=asked.cpu_milli,
                memory_bytes=asked.memory_bytes,
                disk_bytes=asked.disk_bytes,
                gpus=asked.gpus,
            )
        )
    if spec.timeout_s is not None:
        message.timeout.FromNanoseconds(round(spec.timeout_s * 1e9))
    return message


def _pairs(texts: Mapping[str, str]) -> dict[str, str]:
    """A map of a message. `dict` of one asks for each key's value anew."""
    return dict(texts.items())


def _inputs(messages: Iterable[action_pb2.ActionInput]) -> list[Input]:
    return [_input_of(one) for one in messages]


def _platform(messages: Iterable[re.Platform.Property]) -> list[tuple[str, str]]:
    return [(one.name, one.value) for one in messages]


def _same(value: Any) -> Any:
    return value


_READERS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "inputs": ("inputs", _inputs),
    "variables": ("variables", _pairs),
    "pins": ("pins", _pairs),
    "arguments": ("arguments", _same),
    "working_directory": ("working_directory", _same),
    "outputs": ("outputs", _same),
    "effects": ("effects", _pairs),
    "resources": ("resources", amounts_of),
    "require": ("constraints", _same),
    "platform": ("platform", _platform),
    "secrets": ("secrets", _pairs),
    "tier": ("tier", _same),
    "timeout": ("timeout_s", times.seconds),
    "do_not_cache": ("do_not_cache", _same),
    "salt": ("salt", _same),
    "priority": ("priority", _same),
}
"""How each field of the message is read, and what `spec_of` calls it."""

# A field's name is made anew each time it is asked for; its number is not.
_READ: Final = {field.number: _READERS[field.name] for field in action_pb2.ActionSpec.DESCRIPTOR.fields}


def _input_of(message: action_pb2.ActionInput) -> Input:
    match message.WhichOneof("source"):
        case "output":
            output = message.output
            return OutputInput(message.path, output.action, output.path)
        case "tree":
            return TreeInput(message.path, _digest(message.tree))
        case "file":
            return FileInput(message.path, _digest(message.file.digest), message.file.is_executable)
    raise InvalidRequest(
        f"the input {message.path[:200]!r} is nothing; give it a tree, a file or an output", field="inputs"
    )


def _digest(message: re.Digest) -> Digest:
    try:
        return digest_of(message)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, field="inputs") from error


def _input_message(one: Input) -> action_pb2.ActionInput:
    match one:
        case TreeInput():
            return action_pb2.ActionInput(path=one.path, tree=digest_message(one.digest))
        case FileInput():
            file = action_pb2.ActionFile(digest=digest_message(one.digest), is_executable=one.executable)
            return action_pb2.ActionInput(path=one.path, file=file)
        case OutputInput():
            output = action_pb2.ActionOutput(action=one.action, path=one.output)
            return action_pb2.ActionInput(path=one.path, output=output)
