"""Input trees become files of the action's own; outputs become blobs; nothing leads out of the execution root."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildnet._native import NativeError, Store, collect, remove_tree, stage
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855/0"
NOTHING_ASKED = re.Command(arguments=["true"]).SerializeToString()


def digest(text: str) -> re.Digest:
    hash_, size = text.split("/")
    return re.Digest(hash=hash_, size_bytes=int(size))


def text_of(message: re.Digest) -> str:
    return f"{message.hash}/{message.size_bytes}"


def command(**fields: Any) -> bytes:
    return re.Command(arguments=["true"], **fields).SerializeToString()


class Trees:
    """Input trees in a store, written as nested dicts: bytes are files, str symlinks, dict directories."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def put(self, tree: dict[str, Any]) -> str:
        directory = re.Directory()
        for name, value in sorted(tree.items()):
            if isinstance(value, dict):
                directory.directories.add(name=name, digest=digest(self.put(value)))
            elif isinstance(value, str):
                directory.symlinks.add(name=name, target=value)
            elif isinstance(value, re.FileNode):
                directory.files.add(name=name).MergeFrom(value)
            else:
                directory.files.add(name=name, digest=digest(self.store.put_bytes(value)))
        return self.put_directory(directory)

    def put_directory(self, directory: re.Directory) -> str:
        return self.store.put_bytes(directory.SerializeToString(deterministic=True))

    def chain(self, levels: int, bottom: str = EMPTY) -> str:
        """Directories named d, one in another."""
        for _ in range(levels):
            bottom = self.put_directory(re.Directory(directories=[re.DirectoryNode(name="d", digest=digest(bottom))]))
        return bottom


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture
def trees(store: Store) -> Trees:
    return Trees(store)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def gather(store: Store, root: Path) -> Callable[..., re.ActionResult]:
    """Collect, and check that every digest that is told is stored and every one referenced is told."""

    def gather(**fields: Any) -> re.ActionResult:
        root.mkdir(exist_ok=True)
        raw, digests = collect(store, str(root), command(**fields))
        assert len(set(digests)) == len(digests)
        assert store.find_missing(digests) == []
        result = re.ActionResult.FromString(raw)
        named = {text_of(file.digest) for file in result.output_files}
        for directory in result.output_directories:
            if directory.HasField("tree_digest"):
                named |= tree_blobs(store, text_of(directory.tree_digest))
            if directory.HasField("root_directory_digest"):
                named |= directory_blobs(store, text_of(directory.root_directory_digest))
        assert named - {EMPTY} == set(digests)
        return result

    return gather


def tree_of(store: Store, name: str) -> re.Tree:
    return re.Tree.FromString(store.get_bytes(name))


def tree_blobs(store: Store, name: str) -> set[str]:
    tree = tree_of(store, name)
    every = [tree.root, *tree.children]
    return {name} | {text_of(file.digest) for one in every for file in one.files}


def directory_blobs(store: Store, name: str) -> set[str]:
    directory = re.Directory.FromString(store.get_bytes(name))
    blobs = {name} | {text_of(file.digest) for file in directory.files}
    for child in directory.directories:
        blobs |= directory_blobs(store, text_of(child.digest))
    return blobs


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(NativeError) as raised:
        call()
    assert raised.value.message
    return raised.value.code


# Staging


def test_files_directories_and_symlinks(store: Store, trees: Trees, root: Path) -> None:
    tool = re.FileNode(digest=digest(store.put_bytes(b"#!/bin/sh\n")), is_executable=True)
    tree = trees.put({"a": b"1", "empty": b"", "tool": tool, "sub": {"b": b"22", "none": {}}, "link": "sub/b"})
    counts = stage(store, tree, str(root), NOTHING_ASKED)
    assert counts == {"files": 4, "bytes": 13, "directories": 2}
    assert (root / "a").read_bytes() == b"1"
    assert (root / "empty").read_bytes() == b""
    assert (root / "link").readlink() == Path("sub/b")
    assert (root / "link").read_bytes() == b"22"
    assert list((root / "sub/none").iterdir()) == []
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE((root / "tool").stat().st_mode) == 0o755


def test_the_empty_tree(store: Store, root: Path) -> None:
    assert stage(store, EMPTY, str(root), NOTHING_ASKED)["files"] == 0
    assert list(root.iterdir()) == []


def test_an_action_cannot_alter_a_cached_blob(store: Store, trees: Trees, root: Path) -> None:
    stage(store, trees.put({"a": b"cached"}), str(root), NOTHING_ASKED)
    assert (root / "a").stat().st_nlink == 1
    (root / "a").write_bytes(b"changed")
    again = root.with_name("again")
    stage(store, trees.put({"a": b"cached"}), str(again), NOTHING_ASKED)
    assert (again / "a").read_bytes() == b"cached"


def test_node_properties_are_honoured(store: Store, trees: Trees, root: Path) -> None:
    def properties(mode: int) -> re.NodeProperties:
        told = re.NodeProperties()
        told.unix_mode.value = mode
        told.mtime.seconds, told.mtime.nanos = 1_000_000_000, 500
        return told

    file = re.FileNode(digest=digest(store.put_bytes(b"x")), node_properties=properties(0o106751))
    inner = re.Directory(node_properties=properties(0o555))
    inner.files.add(name="f").MergeFrom(file)
    link = re.SymlinkNode(name="l", target="f", node_properties=properties(0o777))
    inner.symlinks.add().MergeFrom(link)
    outer = re.Directory()
    outer.directories.add(name="d", digest=digest(trees.put_directory(inner)))
    stage(store, trees.put_directory(outer), str(root), NOTHING_ASKED)
    for path, mode in (("d", 0o555), ("d/f", 0o751)):
        facts = (root / path).stat()
        # Set-id and sticky bits are not an input's to give.
        assert stat.S_IMODE(facts.st_mode) == mode
        assert facts.st_mtime_ns == 1_000_000_000_000_000_500
    assert (root / "d/l").lstat().st_mtime_ns == 1_000_000_000_000_000_500
    remove_tree(str(root))
    assert not root.exists()


def test_every_missing_blob_is_named(store: Store, trees: Trees, root: Path) -> None:
    absent = [f"{index:064x}/{index + 1}" for index in range(3)]
    directory = re.Directory()
    directory.files.add(name="here", digest=digest(store.put_bytes(b"here")))
    for index, name in enumerate(absent[:2]):
        directory.files.add(name=f"x{index}", digest=digest(name))
    directory.directories.add(name="gone", digest=digest(absent[2]))
    directory.directories.sort(key=lambda child: child.name)
    with pytest.raises(NativeError) as raised:
        stage(store, trees.put_directory(directory), str(root), NOTHING_ASKED)
    assert raised.value.code == "blobs_missing"
    assert sorted(raised.value.fields["digests"]) == absent
    assert not root.exists()


def test_a_missing_root_is_named(store: Store, root: Path) -> None:
    absent = "f" * 64 + "/7"
    with pytest.raises(NativeError) as raised:
        stage(store, absent, str(root), NOTHING_ASKED)
    assert (raised.value.code, raised.value.fields["digests"]) == ("blobs_missing", [absent])


@pytest.mark.parametrize(
    "tree",
    [
        {"..": b"x"},
        {".": b"x"},
        {"a/b": b"x"},
        {"/etc/x": b"x"},
        {"a\0b": b"x"},
        {"": b"x"},
        {"..": {}},
        {"link": "/etc"},
        {"link": "../outside"},
        {"a": {"link": "../../outside"}},
        {"a": {"b": {"link": "x/../../../.."}}},
    ],
)
def test_a_tree_that_leads_out_is_refused(store: Store, trees: Trees, root: Path, tree: dict[str, Any]) -> None:
    bad = trees.put(tree)
    assert code_of(lambda: stage(store, bad, str(root), NOTHING_ASKED)) == "invalid_request"
    assert not root.exists()


def test_a_name_twice_cannot_write_through_a_symlink(store: Store, trees: Trees, root: Path) -> None:
    directory = re.Directory()
    directory.symlinks.add(name="a", target="b")
    directory.directories.add(name="a", digest=digest(trees.put({"escaped": b"x"})))
    bad = trees.put_directory(directory)
    assert code_of(lambda: stage(store, bad, str(root), NOTHING_ASKED)) == "invalid_request"
    assert not root.exists()


def test_a_file_that_is_no_directory_is_refused(store: Store, root: Path) -> None:
    bad = store.put_bytes(b"\xff\xff not a Directory")
    assert code_of(lambda: stage(store, bad, str(root), NOTHING_ASKED)) == "invalid_request"


def test_ten_thousand_levels_are_refused(store: Store, trees: Trees, root: Path) -> None:
    deep = trees.chain(10_000)
    assert code_of(lambda: stage(store, deep, str(root), NOTHING_ASKED)) == "too_large"
    assert not root.exists()


def test_many_levels_are_staged(store: Store, trees: Trees, root: Path) -> None:
    deep = trees.chain(900, trees.put({"f": b"x"}))
    assert stage(store, deep, str(root), NOTHING_ASKED)["directories"] == 900
    assert (root / ("d/" * 900) / "f").read_bytes() == b"x"


def test_a_tree_that_unfolds_without_end_is_refused(store: Store, trees: Trees, root: Path) -> None:
    bomb = trees.put({"f": b"x"})
    for _ in range(40):
        child = digest(bomb)
        bomb = trees.put_directory(
            re.Directory(
                directories=[
                    re.DirectoryNode(name="a", digest=child),
                    re.DirectoryNode(name="b", digest=child),
                ]
            )
        )
    assert code_of(lambda: stage(store, bomb, str(root), NOTHING_ASKED)) == "too_large"
    assert not root.exists()


def test_parents_of_outputs_are_made(store: Store, trees: Trees, root: Path) -> None:
    asked = command(working_directory="w/d", output_paths=["o/p/file", "top", "in/x"], output_files=["no/f"])
    stage(store, trees.put({"w": {"d": {"in": {}}}}), str(root), asked)
    made = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert made == ["w", "w/d", "w/d/in", "w/d/o", "w/d/o/p"]


def test_parents_of_older_outputs_are_made(store: Store, root: Path) -> None:
    asked = command(output_files=["a/f"], output_directories=["b/c/dir", "dir"])
    stage(store, EMPTY, str(root), asked)
    made = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert made == ["a", "b", "b/c"]


@pytest.mark.parametrize("inside", [{"o": "real", "real": {}}, {"o": b"file"}])
def test_parents_are_not_made_through_an_input(store: Store, trees: Trees, root: Path, inside: dict[str, Any]) -> None:
    asked = command(output_paths=["o/file"])
    tree = trees.put(inside)
    assert code_of(lambda: stage(store, tree, str(root), asked)) == "invalid_request"
    assert not (root / "real/file").exists()


@pytest.mark.parametrize("path", ["/abs", "../up", "a/../../b", "a/"])
def test_output_paths_that_lead_out_are_refused(store: Store, root: Path, path: str) -> None:
    for asked in (command(output_paths=[path]), command(working_directory=path)):
        assert code_of(lambda c=asked: stage(store, EMPTY, str(root), c)) == "invalid_request"  # type: ignore[misc]
        assert code_of(lambda c=asked: collect(store, str(root), c)) == "invalid_request"  # type: ignore[misc]


# Collecting


def test_output_paths_find_out_what_they_are(store: Store, root: Path, gather: Callable[..., re.ActionResult]) -> None:
    (root / "out/dir/sub").mkdir(parents=True)
    (root / "out/file").write_bytes(b"file")
    (root / "out/tool").write_bytes(b"tool")
    (root / "out/tool").chmod(0o755)
    (root / "out/link").symlink_to("file")
    (root / "out/dir/sub/x").write_bytes(b"x")
    names = ["out/absent", "out/dir", "out/file", "out/link", "out/tool", "out/file"]
    result = gather(output_paths=names, output_files=["ignored"])
    assert [(f.path, f.is_executable) for f in result.output_files] == [
        ("out/file", False),
        ("out/tool", True),
    ]
    assert store.get_bytes(text_of(result.output_files[0].digest)) == b"file"
    assert [(link.path, link.target) for link in result.output_symlinks] == [("out/link", "file")]
    assert not result.output_file_symlinks
    (directory,) = result.output_directories
    assert (directory.path, directory.is_topologically_sorted) == ("out/dir", True)
    assert not directory.HasField("root_directory_digest")
    tree = tree_of(store, text_of(directory.tree_digest))
    assert [child.name for child in tree.root.directories] == ["sub"]
    assert [file.name for file in tree.children[0].files] == ["x"]
    assert not result.output_files[0].HasField("node_properties")


def test_paths_are_relative_to_the_working_directory(root: Path, gather: Callable[..., re.ActionResult]) -> None:
    (root / "w").mkdir(parents=True)
    (root / "w/f").write_bytes(b"1")
    assert [f.path for f in gather(working_directory="w", output_paths=["f"]).output_files] == ["f"]
    assert not gather(output_paths=["f"]).output_files
    climbing = ["../w/f", "./f", "../w/../w/f"]
    assert [f.path for f in gather(working_directory="w", output_paths=climbing).output_files] == climbing


def test_the_working_directory_itself(store: Store, root: Path, gather: Callable[..., re.ActionResult]) -> None:
    (root / "w").mkdir(parents=True)
    (root / "w/f").write_bytes(b"1")
    for where, inside in (("w", "f"), ("", "w")):
        (directory,) = gather(working_directory=where, output_directories=[""]).output_directories
        tree = tree_of(store, text_of(directory.tree_digest)).root
        names = [file.name for file in tree.files] + [child.name for child in tree.directories]
        assert names == [inside]


def test_older_fields_fill_older_symlinks(root: Path, gather: Callable[..., re.ActionResult]) -> None:
    (root / "d").mkdir(parents=True)
    (root / "f").write_bytes(b"")
    (root / "to-f").symlink_to("f")
    (root / "to-d").symlink_to("d")
    (root / "dangling").symlink_to("nowhere")
    result = gather(output_files=["dangling", "f", "to-f"], output_directories=["d", "to-d"])
    assert [link.path for link in result.output_file_symlinks] == ["dangling", "to-f"]
    assert [link.path for link in result.output_directory_symlinks] == ["to-d"]
    assert not result.output_symlinks
    assert [f.path for f in result.output_files] == ["f"]
    assert [d.path for d in result.output_directories] == ["d"]


@pytest.mark.parametrize(
    "fields",
    [
        {"output_files": ["d"]},
        {"output_directories": ["f"]},
        {"output_files": ["to-d"]},
        {"output_directories": ["to-f"]},
        {"output_paths": ["fifo"]},
        {"output_paths": ["socket"]},
        {"output_paths": ["absolute"]},
        {"output_paths": ["escape"]},
        {"output_paths": ["twice"]},
        {"output_paths": ["to-d/x"]},
        {"output_paths": ["with-fifo"]},
        {"output_paths": ["with-absolute"]},
        {"output_paths": ["with-escape"]},
        {"output_paths": ["with-bytes"]},
    ],
)
def test_outputs_that_may_not_be_are_refused(store: Store, root: Path, fields: dict[str, Any]) -> None:
    for name in ("d/x", "with-fifo", "with-absolute", "with-escape", "with-bytes"):
        (root / name).mkdir(parents=True)
    (root / "f").write_bytes(b"")
    (root / "to-f").symlink_to("f")
    (root / "to-d").symlink_to("d")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "escape").symlink_to("../outside")
    # Each name alone stays inside; followed, the second leaves.
    (root / "d/up").symlink_to("..")
    (root / "twice").symlink_to("d/up/../outside")
    os.mkfifo(root / "fifo")
    os.mkfifo(root / "with-fifo/fifo")
    (root / "with-absolute/link").symlink_to("/etc")
    (root / "with-escape/link").symlink_to("../../outside")
    (root / os.fsdecode(b"with-bytes/\xff")).write_bytes(b"")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(root / "socket"))
        with pytest.raises(NativeError) as raised:
            collect(store, str(root), command(**fields))
    assert raised.value.code == "output_invalid"
    assert raised.value.fields["path"]


def test_a_symlinked_parent_does_not_lead_out(store: Store, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_bytes(b"secret")
    root.mkdir()
    (root / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(NativeError, match="symlink out"):
        collect(store, str(root), command(output_paths=["out/key"]))
    (root / "in").symlink_to("out")
    assert code_of(lambda: collect(store, str(root), command(output_paths=["in/key"]))) == "output_invalid"


def test_what_is_behind_a_file_is_absent(root: Path, gather: Callable[..., re.ActionResult]) -> None:
    root.mkdir()
    (root / "f").write_bytes(b"")
    assert gather(output_paths=["f/x/y", "g/x"]) == re.ActionResult()


def test_node_properties_are_told_when_asked_for(
    store: Store, root: Path, gather: Callable[..., re.ActionResult]
) -> None:
    (root / "d").mkdir(parents=True)
    for name in ("f", "d/f"):
        (root / name).write_bytes(b"x")
        (root / name).chmod(0o640)
        os.utime(root / name, ns=(0, 1_500_000_000_000_000_007))
    result = gather(output_paths=["d", "f"], output_node_properties=["mtime", "unix_mode"])
    tree = tree_of(store, text_of(result.output_directories[0].tree_digest))
    for node in (result.output_files[0], tree.root.files[0]):
        assert node.node_properties.unix_mode.value == 0o640
        assert node.node_properties.mtime.seconds == 1_500_000_000
        assert node.node_properties.mtime.nanos == 7
    only = gather(output_paths=["f"], output_node_properties=["unix_mode"])
    assert not only.output_files[0].node_properties.HasField("mtime")


def test_unknown_node_properties_are_refused(store: Store, root: Path) -> None:
    root.mkdir()
    asked = command(output_node_properties=["mtime", "colour"])
    with pytest.raises(NativeError, match="colour") as raised:
        collect(store, str(root), asked)
    assert raised.value.code == "invalid_request"


@pytest.mark.parametrize(("form", "tree", "directories"), [(0, True, False), (1, False, True), (2, True, True)])
def test_directory_formats(
    root: Path, gather: Callable[..., re.ActionResult], form: Any, tree: bool, directories: bool
) -> None:
    (root / "d/e/f").mkdir(parents=True)
    (root / "d/e/x").write_bytes(b"x")
    (output,) = gather(output_paths=["d"], output_directory_format=form).output_directories
    assert output.HasField("tree_digest") == tree
    assert output.HasField("root_directory_digest") == directories
    assert output.is_topologically_sorted == tree


def test_shared_directories_stand_once_and_parents_first(
    store: Store, root: Path, gather: Callable[..., re.ActionResult]
) -> None:
    # `a` and `z/y` are the same; `same` is also a child of the root, where breadth first would put it.
    for path in ("t/a/same", "t/same", "t/z/y/same"):
        (root / path).mkdir(parents=True)
        (root / path / "f").write_bytes(b"f")
    (output,) = gather(output_paths=["t"]).output_directories
    raw = store.get_bytes(text_of(output.tree_digest))
    tree = re.Tree.FromString(raw)
    assert raw[0] == 0x0A
    order = [store.put_bytes(d.SerializeToString()) for d in [tree.root, *tree.children]]
    assert len(set(order)) == len(order) == 4
    for index, directory in enumerate([tree.root, *tree.children]):
        for child in directory.directories:
            assert order.index(text_of(child.digest)) > index


def test_the_same_files_give_the_same_tree(root: Path, gather: Callable[..., re.ActionResult]) -> None:
    for names in (["a", "b", "c"], ["c", "a", "b"]):
        (root / "d").mkdir(parents=True)
        for name in names:
            (root / "d" / name).write_bytes(name.encode())
        result = gather(output_paths=["d"])
        remove_tree(str(root))
        assert result.output_directories[0].tree_digest.size_bytes > 0
        names.append(text_of(result.output_directories[0].tree_digest))
    assert names[-1].endswith(str(result.output_directories[0].tree_digest.size_bytes))


def test_limits(store: Store, root: Path) -> None:
    (root / "d").mkdir(parents=True)
    for index in range(5):
        (root / f"d/{index}").write_bytes(b"12345")
    asked = command(output_paths=["d"])
    # Five files and their directory.
    collect(store, str(root), asked, file_count_max=6, size_bytes_max=25)
    for limits in ({"file_count_max": 5}, {"size_bytes_max": 24}):
        assert code_of(lambda m=limits: collect(store, str(root), asked, **m)) == "too_large"  # type: ignore[misc]


def make_deep(root: Path, levels: int) -> None:
    root.mkdir(exist_ok=True)
    at = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=at)
        inside = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inside
    os.close(at)


def test_ten_thousand_levels_are_not_collected(store: Store, root: Path) -> None:
    make_deep(root, 10_000)
    try:
        asked = command(output_paths=["d"])
        assert code_of(lambda: collect(store, str(root), asked)) == "too_large"
    finally:
        remove_tree(str(root))
    assert not root.exists()


def test_unreadable_scratch_is_removed(root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/f").write_bytes(b"")
    (root / "a/b").chmod(0)
    (root / "a").chmod(0o100)
    remove_tree(str(root))
    assert not root.exists()
    remove_tree(str(root))


# Any tree that can be staged comes back the same

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in {".", ".."} and len(name.encode()) <= 255
)
leaves = st.binary(max_size=40)
nested = st.recursive(
    st.dictionaries(names, leaves, max_size=4),
    lambda inner: st.dictionaries(names, leaves | inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=nested)
def test_staged_and_collected_again_is_the_same(store: Store, trees: Trees, root: Path, tree: dict[str, Any]) -> None:
    original = trees.put({"t": tree})
    try:
        stage(store, original, str(root), NOTHING_ASKED)
        raw, _ = collect(store, str(root), command(output_paths=["t"], output_directory_format=1))
    finally:
        remove_tree(str(root))
    (output,) = re.ActionResult.FromString(raw).output_directories
    assert text_of(output.root_directory_digest) == trees.put(tree)
