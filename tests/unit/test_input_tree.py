"""Inputs meet in one tree, whatever their order; where they contradict each other they are refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from buildnet.errors import DependencyFailed, InvalidRequest, NotFound, TooLarge
from buildnet.model.action_spec import FileInput, Input, OutputInput, TreeInput
from buildnet.model.digest import EMPTY, Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message, digest_of
from buildnet.wire.input_tree import compose, needed

X, Y = Digest.of(b"x"), Digest.of(b"y")


class Blobs:
    """A store in memory, with what was read of it."""

    def __init__(self) -> None:
        self.known: dict[str, bytes] = {EMPTY.text: b""}
        self.read_texts: list[str] = []

    def read(self, text: str) -> bytes:
        self.read_texts.append(text)
        if text not in self.known:
            raise NotFound(f"{text} is absent", kind="blob", name=text)
        return self.known[text]

    def put(self, message: re.Directory | re.Tree) -> Digest:
        data = message.SerializeToString(deterministic=True)
        digest = Digest.of(data)
        self.known[digest.text] = data
        return digest

    def folder(self, **files: Digest) -> Digest:
        message = re.Directory()
        for name, digest in sorted(files.items()):
            message.files.add(name=name, digest=digest_message(digest))
        return self.put(message)

    def paths(self, root: Digest, prefix: str = "") -> Iterator[tuple[str, str]]:
        message = re.Directory.FromString(self.known[root.text])
        for names in (message.files, message.directories, message.symlinks):
            listed = [node.name for node in names]
            assert listed == sorted(listed, key=str.encode), "REAPI Directory: sorted"
        for file in message.files:
            yield prefix + file.name, digest_of(file.digest).text + ("*" if file.is_executable else "")
        for link in message.symlinks:
            yield prefix + link.name, f"-> {link.target}"
        for directory in message.directories:
            yield from self.paths(digest_of(directory.digest), f"{prefix}{directory.name}/")

    def tree(self, *inputs: Input, **results: re.ActionResult) -> dict[str, str]:
        roots = set()
        for order in itertools.permutations(inputs):
            composed = compose(order, self.read, results)
            self.known |= composed.messages
            roots.add(composed.root)
        assert len(roots) == 1, "their order does not matter"
        return dict(self.paths(roots.pop()))


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


def test_nothing_is_the_empty_directory(blobs: Blobs) -> None:
    assert compose([], blobs.read, {}).root == EMPTY


def test_a_tree_alone_is_never_opened(blobs: Blobs) -> None:
    composed = compose([TreeInput("", X)], blobs.read, {})
    assert (composed.root, composed.messages, blobs.read_texts) == (X, {}, [])
    composed = compose([TreeInput("a/b", X), FileInput("c", Y)], blobs.read, {})
    assert blobs.read_texts == []
    assert len(composed.messages) == 2


def test_files_and_trees_meet(blobs: Blobs) -> None:
    one, other = blobs.folder(p=X, q=X), blobs.folder(r=Y)
    found = blobs.tree(TreeInput("src", one), TreeInput("src", other), FileInput("src/s", Y, executable=True))
    assert found == {"src/p": X.text, "src/q": X.text, "src/r": Y.text, "src/s": f"{Y.text}*"}


def test_the_same_twice_is_once(blobs: Blobs) -> None:
    one = blobs.folder(p=X)
    assert blobs.tree(TreeInput("", one), TreeInput("", blobs.folder(p=X, q=Y))) == {"p": X.text, "q": Y.text}


@pytest.mark.parametrize(
    "inputs",
    [
        (FileInput("a", X), FileInput("a", Y)),
        (FileInput("a", X), FileInput("a", X, executable=True)),
        (FileInput("a", X), FileInput("a/b", Y)),
        (FileInput("a", X), TreeInput("a", EMPTY)),
    ],
)
def test_a_contradiction_is_refused(blobs: Blobs, inputs: tuple[Input, ...]) -> None:
    for order in itertools.permutations(inputs):
        with pytest.raises(InvalidRequest, match="'a'") as told:
            compose(order, blobs.read, {})
        assert told.value.fields["field"] == "inputs"


def test_what_is_opened_keeps_what_nobody_touches(blobs: Blobs) -> None:
    message = re.Directory()
    message.node_properties.unix_mode.value = 0o755
    message.symlinks.add(name="l", target="p")
    file = message.files.add(name="p", digest=digest_message(X))
    file.node_properties.properties.add(name="n", value="v")
    root = blobs.put(message)
    composed = compose([TreeInput("", root), FileInput("q", Y)], blobs.read, {})
    opened = re.Directory.FromString(composed.messages[composed.root.text])
    assert opened.node_properties.unix_mode.value == 0o755
    assert opened.files[0].node_properties.properties[0].value == "v"
    assert opened.symlinks[0].target == "p"


def result(blobs: Blobs, *, as_tree: bool) -> re.ActionResult:
    inner = blobs.folder(x=X)
    outer = re.Directory()
    outer.directories.add(name="in", digest=digest_message(inner))
    outer.files.add(name="y", digest=digest_message(Y))
    found = re.ActionResult()
    found.output_files.add(path="f", digest=digest_message(X), is_executable=True)
    found.output_symlinks.add(path="l", target="f")
    if as_tree:
        children = [re.Directory.FromString(blobs.known.pop(inner.text))]
        tree = blobs.put(re.Tree(root=outer, children=children))  # type: ignore[arg-type]
        found.output_directories.add(path="d", tree_digest=digest_message(tree))
    else:
        found.output_directories.add(path="d", root_directory_digest=digest_message(blobs.put(outer)))
    return found


@pytest.mark.parametrize("as_tree", [True, False])
def test_outputs_of_others_are_bound(blobs: Blobs, as_tree: bool) -> None:
    found = blobs.tree(
        OutputInput("bin/f", "up", "f"),
        OutputInput("l", "up", "l"),
        OutputInput("all", "up", "d"),
        OutputInput("part", "up", "d/in"),
        OutputInput("one", "up", "d/in/x"),
        up=result(blobs, as_tree=as_tree),
    )
    assert found == {
        "bin/f": f"{X.text}*",
        "l": "-> f",
        "all/in/x": X.text,
        "all/y": Y.text,
        "part/x": X.text,
        "one": X.text,
    }


@pytest.mark.parametrize("path", ["nothing", "f/x", "d/nothing", "d/y/x"])
def test_an_output_that_was_not_left_is_named(blobs: Blobs, path: str) -> None:
    with pytest.raises(DependencyFailed, match=path):
        compose([OutputInput("a", "up", path)], blobs.read, {"up": result(blobs, as_tree=False)})


def test_a_tree_that_is_none_is_refused(blobs: Blobs) -> None:
    blobs.known[X.text] = b"\xff\xff"
    with pytest.raises(InvalidRequest, match="no Directory"):
        compose([TreeInput("", X), FileInput("q", Y)], blobs.read, {})


def test_depth_is_bounded(blobs: Blobs) -> None:
    with pytest.raises(TooLarge):
        compose([FileInput("a/" * 300 + "a", X)], blobs.read, {})
    deep = EMPTY
    for _ in range(300):
        message = re.Directory()
        message.directories.add(name="d", digest=digest_message(deep))
        deep = blobs.put(message)
    other = blobs.put(re.Directory(directories=[re.DirectoryNode(name="d", digest=digest_message(deep))]))
    with pytest.raises(TooLarge):
        compose([TreeInput("", deep), TreeInput("", other)], blobs.read, {})


def test_what_is_needed_is_all_that_is_given() -> None:
    asked = needed([TreeInput("a", X), FileInput("b", Y), OutputInput("c", "up", "d")])
    assert digest_of(asked.output_directories[0].root_directory_digest) == X
    assert [digest_of(file.digest) for file in asked.output_files] == [Y]
