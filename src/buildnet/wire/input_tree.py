"""Inputs become one Merkle tree: Directories that are given are opened only where something is put into them.

Two inputs may meet in one directory; where they give one name different content they are refused. It reads small
messages and returns those that are new; what a client hashed is never written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError

from buildnet.errors import DependencyFailed, InvalidRequest, TooLarge
from buildnet.model.action_spec import FileInput, Input, OutputInput, TreeInput
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message, digest_of

Read = Callable[[str], bytes]
DIRECTORIES_MAX: Final = 100_000
LEVELS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class _File:
    digest: Digest
    executable: bool
    properties: bytes = b""


@dataclass(frozen=True, slots=True)
class _Link:
    target: str
    properties: bytes = b""


@dataclass(slots=True)
class _Folder:
    """A directory: closed while it is as `given`, open once `entries` are known."""

    given: Digest | None = None
    properties: bytes = b""
    entries: dict[str, _File | _Link | _Folder] | None = None


@dataclass(slots=True)
class Composed:
    """The root, and the messages that the store may lack, by digest text."""

    root: Digest
    messages: dict[str, bytes] = field(default_factory=dict)


class _Composer:
    def __init__(self, read: Read) -> None:
        self._read = read
        self._opened = 0
        # Directories that come out of a Tree, which the store holds within another blob.
        self.known: dict[str, bytes] = {}

    def opened(self, folder: _Folder) -> dict[str, _File | _Link | _Folder]:
        if folder.entries is None:
            self._opened += 1
            if self._opened > DIRECTORIES_MAX:
                raise TooLarge(
                    f"over {DIRECTORIES_MAX} directories would have to be merged; give one tree instead of several",
                    field="inputs",
                    limit=DIRECTORIES_MAX,
                )
            message = re.Directory()
            if folder.given is not None:
                message = self._directory(folder.given)
            folder.properties = message.node_properties.SerializeToString(deterministic=True)
            folder.entries = _entries_of(message)
            folder.given = None
        return folder.entries

    def _directory(self, digest: Digest) -> re.Directory:
        data = self.known.get(digest.text)
        if data is None:
            data = b"" if digest.size_bytes == 0 else self._read(digest.text)
        try:
            return re.Directory.FromString(data)
        except DecodeError as error:
            raise InvalidRequest(f"the tree {digest.text} is no Directory", field="inputs") from error

    def put(self, root: _Folder, path: str, node: _File | _Link | _Folder) -> None:
        if not path:
            if not isinstance(node, _Folder):
                raise InvalidRequest("only a directory can be the inputs' root; give it a path", field="inputs")
            self._merge(root, node, "")
            return
        *parents, name = path.split("/")
        if len(parents) > LEVELS_MAX:
            raise TooLarge(f"{path[:64]!r}… is below {LEVELS_MAX} levels", field="inputs", limit=LEVELS_MAX)
        folder = root
        for number, parent in enumerate(parents):
            entries = self.opened(folder)
            found = entries.setdefault(parent, _Folder(entries={}))
            if not isinstance(found, _Folder):
                raise _twice("/".join(parents[: number + 1]))
            folder = found
        self._put_entry(self.opened(folder), name, node, path)

    def _put_entry(
        self, entries: dict[str, _File | _Link | _Folder], name: str, node: _File | _Link | _Folder, path: str
    ) -> None:
        found = entries.get(name)
        if found is None:
            entries[name] = node
        elif isinstance(found, _Folder) and isinstance(node, _Folder):
            self._merge(found, node, path)
        elif found != node:
            raise _twice(path)

    def _merge(self, into: _Folder, other: _Folder, path: str) -> None:
        if into.entries is None and other.entries is None and into.given == other.given:
            return
        if other.entries is None and into.entries == {} and not into.properties:
            # Nothing is there yet: it stays closed, and is never read.
            into.given, into.entries = other.given, None
            return
        if path.count("/") >= LEVELS_MAX:
            raise TooLarge(f"inputs meet below {LEVELS_MAX} levels of directories", field="inputs", limit=LEVELS_MAX)
        ours = self.opened(into)
        for name, node in self.opened(other).items():
            self._put_entry(ours, name, node, f"{path}/{name}" if path else name)

    def close(self, folder: _Folder, messages: dict[str, bytes]) -> Digest:
        """The digest of a directory, those below it first; what is new goes into `messages`."""
        if folder.entries is None:
            assert folder.given is not None
            if (data := self.known.get(folder.given.text)) is not None:
                self._keep(data, messages)
            return folder.given
        message = re.Directory()
        if folder.properties:
            message.node_properties.ParseFromString(folder.properties)
        for name in sorted(folder.entries, key=str.encode):
            node = folder.entries[name]
            match node:
                case _File():
                    file = message.files.add(name=name, is_executable=node.executable)
                    file.digest.CopyFrom(digest_message(node.digest))
                    if node.properties:
                        file.node_properties.ParseFromString(node.properties)
                case _Link():
                    link = message.symlinks.add(name=name, target=node.target)
                    if node.properties:
                        link.node_properties.ParseFromString(node.properties)
                case _Folder():
                    message.directories.add(name=name, digest=digest_message(self.close(node, messages)))
        data = message.SerializeToString(deterministic=True)
        digest = Digest.of(data)
        messages[digest.text] = data
        return digest

    def _keep(self, data: bytes, messages: dict[str, bytes]) -> None:
        """A directory out of a Tree, with all below it that came with it."""
        waiting = [data]
        while waiting:
            data = waiting.pop()
            text = Digest.of(data).text
            if text in messages:
                continue
            messages[text] = data
            for child in re.Directory.FromString(data).directories:
                below = self.known.get(digest_of(child.digest).text)
                if below is not None:
                    waiting.append(below)


def compose(inputs: Iterable[Input], read: Read, results: Mapping[str, re.ActionResult]) -> Composed:
    """One tree of all inputs.

    Args:
        inputs: as the spec has them.
        read: returns a small blob of the store by its digest text.
        results: of the actions whose outputs are taken, by their names in the graph.

    Raises:
        InvalidRequest: two inputs are in each other's way, or a tree is none.
        DependencyFailed: another action did not leave what is taken from it.
        TooLarge: too many directories would have to be merged.
    """
    composer = _Composer(read)
    root = _Folder(entries={})
    for one in inputs:
        match one:
            case TreeInput():
                composer.put(root, one.path, _Folder(one.digest))
            case FileInput():
                composer.put(root, one.path, _File(one.digest, one.executable))
            case OutputInput():
                composer.put(root, one.path, _output(composer, one, results[one.action]))
    composed = Composed(root=Digest.of(b""))
    composed.root = composer.close(root, composed.messages)
    return composed


def needed(inputs: Iterable[Input]) -> re.ActionResult:
    """What must be in the store for these inputs, written as a result that references it all."""
    result = re.ActionResult()
    for number, one in enumerate(inputs):
        if isinstance(one, TreeInput):
            result.output_directories.add(path=str(number), root_directory_digest=digest_message(one.digest))
        elif isinstance(one, FileInput):
            result.output_files.add(path=str(number), digest=digest_message(one.digest))
    return result


def _twice(path: str) -> InvalidRequest:
    return InvalidRequest(f"two inputs give {path!r} different content; leave one out", field="inputs")


def _entries_of(message: re.Directory) -> dict[str, _File | _Link | _Folder]:
    entries: dict[str, _File | _Link | _Folder] = {}
    for file in message.files:
        properties = file.node_properties.SerializeToString(deterministic=True)
        entries[file.name] = _File(digest_of(file.digest), file.is_executable, properties)
    for link in message.symlinks:
        entries[link.name] = _Link(link.target, link.node_properties.SerializeToString(deterministic=True))
    for directory in message.directories:
        entries[directory.name] = _Folder(digest_of(directory.digest))
    return entries


def _output(composer: _Composer, one: OutputInput, result: re.ActionResult) -> _File | _Link | _Folder:
    """What a result has at a path: an output, or what is below one that is a directory."""
    for file in result.output_files:
        if file.path == one.output:
            return _File(digest_of(file.digest), file.is_executable)
    for link in (*result.output_symlinks, *result.output_file_symlinks, *result.output_directory_symlinks):
        if link.path == one.output:
            return _Link(link.target)
    for directory in result.output_directories:
        if directory.path == one.output:
            return _folder_of(composer, directory)
        if one.output.startswith(f"{directory.path}/"):
            node: _File | _Link | _Folder | None = _folder_of(composer, directory)
            for part in one.output.removeprefix(f"{directory.path}/").split("/"):
                node = composer.opened(node).get(part) if isinstance(node, _Folder) else None
            if node is not None:
                return node
    raise DependencyFailed(f"action {one.action!r} ended well and left no {one.output!r}", action=one.action)


def _folder_of(composer: _Composer, directory: re.OutputDirectory) -> _Folder:
    if directory.HasField("root_directory_digest"):
        return _Folder(digest_of(directory.root_directory_digest))
    tree = re.Tree.FromString(composer._read(digest_of(directory.tree_digest).text))
    for message in (tree.root, *tree.children):
        data = message.SerializeToString(deterministic=True)
        composer.known[Digest.of(data).text] = data
    return _Folder(Digest.of(tree.root.SerializeToString(deterministic=True)))
