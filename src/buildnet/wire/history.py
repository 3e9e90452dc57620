"""The messages of actions, read apart for the history. What cannot be decoded is said to be absent, never guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from google.protobuf.message import DecodeError, Message

from buildnet.errors import BuildNetError
from buildnet.model.digest import Digest
from buildnet.model.history import OutputFact, Parts, Ran, TreeDirectory, TreeNode
from buildnet.wire import times
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_of, directory_digest_of, platform_of

# Of one run; more are counted.
OUTPUTS_KEPT_MAX = 1000


class ActionMessages:
    """See ports.ActionMessages. `read` returns a blob of the store by its digest's text, or raises."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read

    def fetch(self, digest: Digest) -> bytes | None:
        """See ports.ActionMessages."""
        try:
            return self._read(digest.text)
        except BuildNetError:
            # Evicted, or never sent. The history does without, and says so when it is asked.
            return None

    def refers(self, kind: str, body: bytes) -> tuple[tuple[str, Digest], ...]:
        """See ports.ActionMessages."""
        try:
            if kind == "action":
                action = re.Action.FromString(body)
                return (
                    ("command", digest_of(action.command_digest)),
                    ("directory", digest_of(action.input_root_digest)),
                )
            if kind == "directory":
                directory = re.Directory.FromString(body)
                return tuple(("directory", digest_of(node.digest)) for node in directory.directories)
        except (DecodeError, BuildNetError):
            return ()
        return ()

    def parts(self, action: bytes, command: bytes) -> Parts | None:
        """See ports.ActionMessages."""
        try:
            return parts_of(re.Action.FromString(action), re.Command.FromString(command))
        except (DecodeError, BuildNetError):
            return None

    def directory(self, body: bytes) -> TreeDirectory | None:
        """See ports.ActionMessages."""
        try:
            return _directory_of(re.Directory.FromString(body))
        except (DecodeError, BuildNetError):
            return None

    def ran(self, result: bytes) -> Ran:
        """See ports.ActionMessages."""
        try:
            return ran_of(re.ActionResult.FromString(result))
        except (DecodeError, BuildNetError):
            return Ran()


def parts_of(action: re.Action, command: re.Command) -> Parts:
    """What the digest of an Action is made of.

    Raises:
        InvalidRequest: its input root is not a SHA-256 digest.
    """
    return Parts(
        arguments=tuple(command.arguments),
        variables=tuple((v.name, v.value) for v in command.environment_variables),
        properties=tuple((p.name, p.value) for p in platform_of(action, command).properties),
        # Where there are output_paths, the older fields count for nothing (REAPI 2.1).
        outputs=tuple(command.output_paths) or (*command.output_files, *command.output_directories),
        output_kinds=()
        if command.output_paths
        else (*("file" for _ in command.output_files), *("directory" for _ in command.output_directories)),
        working_directory=command.working_directory,
        timeout_ns=action.timeout.seconds * 1_000_000_000 + action.timeout.nanos
        if action.HasField("timeout")
        else None,
        do_not_cache=action.do_not_cache,
        salt=action.salt,
        output_format=_format_name(command.output_directory_format),
        output_properties=tuple(command.output_node_properties),
        root=digest_of(action.input_root_digest),
    )


def _format_name(number: int) -> str:
    # The default is what everybody means who says nothing; a number that this version does not know stays one.
    if number == re.Command.TREE_ONLY:
        return ""
    names = {value: name for name, value in re.Command.OutputDirectoryFormat.items()}
    return names.get(number, str(number))


def _directory_of(directory: re.Directory) -> TreeDirectory:
    nodes = (
        *(
            TreeNode(f.name, "file", digest_of(f.digest), f.is_executable, more=_more(f, "node_properties"))
            for f in directory.files
        ),
        *(TreeNode(d.name, "directory", digest_of(d.digest)) for d in directory.directories),
        *(TreeNode(s.name, "symlink", target=s.target, more=_more(s, "node_properties")) for s in directory.symlinks),
    )
    return TreeDirectory(nodes, _more(directory, "node_properties"))


def _more(message: Message, field: str) -> str:
    if not message.HasField(field):
        return ""
    properties = getattr(message, field)
    told = [f"{item.name}={item.value}" for item in properties.properties]
    if properties.HasField("mtime"):
        told.append(f"mtime={properties.mtime.seconds}.{properties.mtime.nanos:09d}")
    if properties.HasField("unix_mode"):
        told.append(f"mode={properties.unix_mode.value:o}")
    return f"({', '.join(told)})"


def ran_of(result: re.ActionResult) -> Ran:
    """What a result says of its run.

    Raises:
        InvalidRequest: an output's digest is not SHA-256.
    """
    metadata = result.execution_metadata

    def span_ms(start: str, end: str) -> int | None:
        if not (metadata.HasField(start) and metadata.HasField(end)):
            return None
        return max(0, times.unix_ms(getattr(metadata, end)) - times.unix_ms(getattr(metadata, start)))

    outputs = tuple(_outputs(result))
    return Ran(
        exit_code=result.exit_code,
        worker_started_at_unix_ms=(
            times.unix_ms(metadata.worker_start_timestamp) if metadata.HasField("worker_start_timestamp") else None
        ),
        staged_ms=span_ms("input_fetch_start_timestamp", "input_fetch_completed_timestamp"),
        ran_ms=span_ms("execution_start_timestamp", "execution_completed_timestamp"),
        uploaded_ms=span_ms("output_upload_start_timestamp", "output_upload_completed_timestamp"),
        outputs=outputs[:OUTPUTS_KEPT_MAX],
        output_count=len(outputs),
    )


def _outputs(result: re.ActionResult) -> Iterator[OutputFact]:
    for file in result.output_files:
        text = digest_of(file.digest).text
        yield OutputFact(file.path, "file", f"{text} executable" if file.is_executable else text)
    for directory in result.output_directories:
        yield OutputFact(directory.path, "directory", directory_digest_of(directory)[0].text)
    symlinks = (*result.output_symlinks, *result.output_file_symlinks, *result.output_directory_symlinks)
    for symlink in symlinks:
        yield OutputFact(symlink.path, "symlink", f"-> {symlink.target}")
