"""Input trees that are kept: every action sees its own, whatever others did to theirs; none goes while it is in use."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from buildnet._native import NativeError, StagedRoot, Store, Trees, collect, probe_isolation, remove_tree
from buildnet.client import Client
from buildnet.sandbox import Ending, Place
from buildnet.sandbox.namespaces import NamespaceSandbox
from buildnet.sandbox.policy import Limits, Plan
from buildnet.sandbox.toolchain import toolchain_of
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conftest import House

FILES = 40
ROOM = 64 << 20
COMMAND = re.Command(arguments=["true"], output_paths=["out/deep/file", "sub/f1", "new"]).SerializeToString()

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not probe_isolation()["namespaces"], reason="only root may lay layers over trees"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


def digest(text: str) -> re.Digest:
    hash_, size = text.split("/")
    return re.Digest(hash=hash_, size_bytes=int(size))


def tree(store: Store, salt: str, files: int = FILES) -> str:
    """The root of a tree with so many files in a directory `sub`."""
    names = sorted(f"f{number}" for number in range(files))
    sub = re.Directory()
    for name in names:
        sub.files.add(name=name, digest=digest(store.put_bytes(f"{salt} {name}".encode())))
    inner = store.put_bytes(sub.SerializeToString(deterministic=True))
    root = re.Directory(directories=[re.DirectoryNode(name="sub", digest=digest(inner))])
    root.symlinks.add(name="link", target="sub/f0")
    return store.put_bytes(root.SerializeToString(deterministic=True))


def opened(path: Path, size_bytes_max: int = ROOM) -> Trees:
    trees = Trees.open(str(path), size_bytes_max)
    assert trees is not None, "root may lay layers on this filesystem"
    return trees


def staged(trees: Trees, store: Store, root: str, scratch: Path) -> StagedRoot:
    scratch.mkdir()
    return trees.stage(store, root, str(scratch), COMMAND)


def run(script: str, scratch: Path, root: StagedRoot) -> Ending:
    """Run a shell script in the root, as an action would."""
    (scratch / "tmp").mkdir()
    place = Place(
        root=str(scratch / "root"),
        cwd=str(scratch / "root"),
        tmp=str(scratch / "tmp"),
        stdout_path=str(scratch / "stdout"),
        stderr_path=str(scratch / "stderr"),
        name=scratch.name,
        root_mount=root.mount_fd,
    )
    command = (("/bin/sh", "-ec", script), (("PATH", "/usr/bin:/bin"),))
    plan = Plan(*command, "namespaces", False, 20.0, Limits(), shown=toolchain_of())
    running = NamespaceSandbox().start(plan, place)
    while (ending := running.poll()) is None:
        threading.Event().wait(0.005)
    return ending


async def test_actions_of_one_tree_do_not_meet(house: House) -> None:
    """As in service: the same inputs three times, each changed by its action, and a result of each."""
    role = house.up("--slots", "1")
    inputs = {f"sub/f{number}": f"input {number}".encode() for number in range(FILES)}
    async with Client(role.url) as client:
        for number in range(3):
            script = f"cat sub/f1 && echo {number} >> sub/f1 && cp sub/f1 out/made && rm sub/f2 && echo x > sub/f3"
            ran = await client.run(["/bin/sh", "-c", script], inputs=inputs, outputs=["out/made", "sub/f3", "sub/f4"])
            assert (ran.exit_code, await asyncio.to_thread(ran.stdout)) == (0, b"input 1")
            await asyncio.to_thread(ran.download, house.directory / str(number))
    for number in range(3):
        made = house.directory / str(number)
        assert (made / "out/made").read_text() == f"input 1{number}\n"
        assert (made / "sub/f3").read_text() == "x\n"
        assert (made / "sub/f4").read_text() == "input 4"
    worker = house.directory / "controller" / "worker"
    assert len(list((worker / "trees").iterdir())) == 1
    assert list((worker / "scratch").iterdir()) == []


def test_an_action_sees_its_tree_and_changes_only_its_own(store: Store, tmp_path: Path) -> None:
    trees, root = opened(tmp_path / "trees"), tree(store, "one")
    first = staged(trees, store, root, tmp_path / "first")
    assert first.mount_fd >= 0
    script = """
        test "$(cat link)" = "one f0"; test -d out/deep
        chmod 777 sub/f1; echo more >> sub/f1; : > sub/f2; rm sub/f3; mv sub/f4 sub/f5; echo new > new
        echo output > out/deep/file; ln sub/f6 sub/hard; echo x >> sub/hard
    """
    ending = run(script, tmp_path / "first", first)
    assert (ending.exit_code, ending.reason) == (0, ""), (tmp_path / "first/stderr").read_text()
    result = re.ActionResult.FromString(collect(store, first.path, COMMAND)[0])
    outputs = {
        file.path: store.get_bytes(f"{file.digest.hash}/{file.digest.size_bytes}") for file in result.output_files
    }
    assert outputs == {"out/deep/file": b"output\n", "sub/f1": b"one f1more\n", "new": b"new\n"}
    first.close()
    remove_tree(str(tmp_path / "first"))
    assert not (tmp_path / "first").exists()

    second = staged(trees, store, root, tmp_path / "second")
    seen = Path(second.path)
    assert {p.name: p.read_text() for p in (seen / "sub").iterdir()} == {f"f{n}": f"one f{n}" for n in range(FILES)}
    assert not (seen / "new").exists()
    assert (seen / "sub/f1").stat().st_mode & 0o777 == 0o644
    second.close()
    assert trees.counts()[0] == 1


def test_a_kept_tree_needs_nothing_of_the_store(store: Store, tmp_path: Path) -> None:
    trees, root = opened(tmp_path / "trees"), tree(store, "alone")
    staged(trees, store, root, tmp_path / "first").close()
    other = Store(str(tmp_path / "empty"))
    kept = trees.find(root)
    assert kept is not None
    again = staged(trees, other, root, tmp_path / "second")
    kept.release()
    assert (Path(again.path) / "sub/f7").read_text() == "alone f7"
    again.close()
    other.close()


def test_a_small_tree_is_copied(store: Store, tmp_path: Path) -> None:
    trees, root = opened(tmp_path / "trees"), tree(store, "small", files=3)
    copied = staged(trees, store, root, tmp_path / "s")
    assert (copied.mount_fd, copied.path) == (-1, str(tmp_path / "s/root"))
    assert (tmp_path / "s/root/sub/f2").read_text() == "small f2"
    assert (tmp_path / "s/root/out/deep").is_dir()
    assert trees.counts() == (0, 0)


def test_the_least_recently_used_goes_and_what_is_used_stays(store: Store, tmp_path: Path) -> None:
    one = opened(tmp_path / "probe")
    staged(one, store, tree(store, "size"), tmp_path / "p").close()
    size_bytes = one.counts()[1]
    trees = opened(tmp_path / "trees", size_bytes * 2)
    roots = [tree(store, f"tree {number}") for number in range(4)]
    held = staged(trees, store, roots[0], tmp_path / "0")
    for number in (1, 2):
        staged(trees, store, roots[number], tmp_path / str(number)).close()
    assert trees.counts() == (2, size_bytes * 2)
    assert trees.find(roots[1]) is None
    assert (Path(held.path) / "sub/f0").read_text() == "tree 0 f0"
    other = trees.find(roots[2])
    assert other is not None
    # Both are in use: this one finds no room, and is copied.
    assert staged(trees, store, roots[3], tmp_path / "3").mount_fd == -1
    assert len(list((tmp_path / "trees").iterdir())) == 2
    held.close()


def test_one_tree_may_not_push_out_all_others(store: Store, tmp_path: Path) -> None:
    trees = opened(tmp_path / "trees", 4096 * FILES)
    assert staged(trees, store, tree(store, "large"), tmp_path / "s").mount_fd == -1
    assert trees.counts() == (0, 0)


def test_a_tree_that_lacks_a_blob_is_named_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    trees = opened(tmp_path / "trees")
    absent = re.Directory()
    for number in range(FILES):
        absent.files.add(name=f"{number:03}", digest=re.Digest(hash=f"{number:064x}", size_bytes=5))
    root = store.put_bytes(absent.SerializeToString())
    for attempt in (1, 2):
        with pytest.raises(NativeError) as raised:
            staged(trees, store, root, tmp_path / str(attempt))
        assert raised.value.code == "blobs_missing"
        assert len(raised.value.fields["digests"]) == FILES
    assert trees.counts() == (0, 0)


def test_what_an_earlier_process_kept_is_gone(store: Store, tmp_path: Path) -> None:
    trees, root = opened(tmp_path / "trees"), tree(store, "before")
    staged(trees, store, root, tmp_path / "s").close()
    del trees
    assert list((tmp_path / "trees").iterdir())
    again = opened(tmp_path / "trees")
    assert list((tmp_path / "trees").iterdir()) == []
    assert again.find(root) is None


def test_many_at_once_make_a_tree_once(store: Store, tmp_path: Path) -> None:
    trees, root = opened(tmp_path / "trees"), tree(store, "raced", files=300)
    seen: list[str] = []

    def one(number: int) -> None:
        mine = staged(trees, store, root, tmp_path / f"s{number}")
        seen.append((Path(mine.path) / "sub/f299").read_text())
        mine.close()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["raced f299"] * 6
    assert trees.counts()[0] == 1
    assert len(list((tmp_path / "trees").iterdir())) == 1
