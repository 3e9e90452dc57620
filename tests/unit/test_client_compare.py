"""Which outputs of several runs differ, down to files in directories, and what each run left."""

from __future__ import annotations

from typing import Any

from buildnet.client.compare import DifferingOutput, differing_outputs
from buildnet.client.results import Output, RunResult
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message

BLOBS: dict[Digest, bytes] = {}


def put(data: bytes) -> Digest:
    BLOBS[Digest.of(data)] = data
    return Digest.of(data)


def read(digest: Digest) -> bytes:
    return BLOBS[digest]


def file(path: str, content: bytes, *, executable: bool = False) -> Output:
    return Output(path, "file", put(content), executable)


def directory(path: str, **files: bytes) -> Output:
    below = re.Directory()
    for name, content in sorted(files.items()):
        below.files.add(name=name, digest=digest_message(put(content)))
    root = re.Directory()
    root.directories.add(name="sub", digest=digest_message(put(below.SerializeToString(deterministic=True))))
    return Output(path, "directory", put(re.Tree(root=root, children=[below]).SerializeToString(deterministic=True)))


def run(*outputs: Output, **facts: Any) -> RunResult:
    known: dict[str, Any] = {"exit_code": 0, "stdout_digest": put(b"same"), "stderr_digest": None} | facts
    return RunResult(
        outputs={output.path: output for output in outputs},
        action=Digest.of(b"action"),
        operation="o",
        cached=False,
        worker="w",
        entry_index=None,
        queued_s=None,
        execution_s=None,
        _read=read,
        **known,
    )


def names(*results: RunResult) -> list[str]:
    return [row.path for row in differing_outputs(results, read)]


def test_what_is_the_same_is_not_named() -> None:
    same = run(file("a", b"1"), directory("d", x=b"1"), Output("l", "symlink", target="a"))
    assert names(same, same, same) == []


def test_everything_that_differs_is_named_with_what_each_run_left() -> None:
    one, other = run(file("a", b"1"), file("same", b"s")), run(file("a", b"2"), file("same", b"s"))
    texts = tuple(f"file {Digest.of(content).text}" for content in (b"1", b"2", b"1"))
    assert differing_outputs([one, other, one], read) == [DifferingOutput("a", texts)]
    assert names(run(file("a", b"1")), run(file("a", b"1", executable=True))) == ["a"]
    assert names(run(Output("l", "symlink", target="a")), run(Output("l", "symlink", target="b"))) == ["l"]
    assert names(run(exit_code=0), run(exit_code=1)) == ["(exit code)"]
    assert names(run(), run(stdout_digest=put(b"x"), stderr_digest=put(b"y"))) == ["(stderr)", "(stdout)"]


def test_an_output_that_a_run_did_not_leave_is_named() -> None:
    text = f"file {Digest.of(b'1').text}"
    assert differing_outputs([run(file("a", b"1")), run()], read) == [DifferingOutput("a", (text, None))]
    assert names(run(directory("d", x=b"1")), run(file("d", b"1")), run()) == ["d"]


def test_of_a_directory_the_files_that_differ_are_named() -> None:
    one, other = run(directory("d", same=b"s", x=b"1")), run(directory("d", same=b"s", x=b"2", y=b"3"))
    rows = differing_outputs([one, other], read)
    assert [row.path for row in rows] == ["d/sub/x", "d/sub/y"]
    assert rows[1].seen[0] is None


def test_a_tree_that_cannot_be_read_is_one_difference() -> None:
    broken = Output("d", "directory", put(b"\xff\xff"))
    assert names(run(broken), run(directory("d", x=b"1"))) == ["d"]
