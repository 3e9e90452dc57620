"""Where the outputs of a result go: below one directory, and nothing that was not asked for. A result is a claim:
anybody who may write the action cache could have made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from buildnet._native import Link
from buildnet.client.results import RunResult, result_of
from buildnet.errors import OutputInvalid
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message

BLOB = Digest.of(b"blob")


class Pulled:
    """Stands for a connection: what is asked of it is written as its own digest."""

    def get_file(self, digest: str, dest: str, executable: bool) -> None:
        Path(dest).write_text(digest)

    def pull_tree(self, tree: str, dest: str) -> None:
        Path(dest, "by-tree").parent.mkdir(parents=True)
        Path(dest, "by-tree").write_text(tree)

    def pull_directory(self, root: str, dest: str) -> None:
        Path(dest, "by-root").parent.mkdir(parents=True)
        Path(dest, "by-root").write_text(root)


def result(**outputs: Any) -> RunResult:
    response = re.ExecuteResponse(result=re.ActionResult(**outputs))
    return result_of(response, BLOB, "", None, cast("Link", Pulled()))


def file(path: str) -> re.OutputFile:
    return re.OutputFile(path=path, digest=digest_message(BLOB))


def directory(path: str) -> re.OutputDirectory:
    return re.OutputDirectory(path=path, tree_digest=digest_message(BLOB))


def link(path: str, target: str) -> re.OutputSymlink:
    return re.OutputSymlink(path=path, target=target)


@pytest.mark.parametrize("path", ["../up", "/abs", "a/../../up", "a//b", "./a"])
def test_a_path_that_leads_out_is_refused_and_nothing_is_written(tmp_path: Path, path: str) -> None:
    place = tmp_path / "here"
    place.mkdir()
    with pytest.raises(OutputInvalid, match="leads out"):
        result(output_files=[file("good"), file(path)]).download(place)
    assert list(tmp_path.iterdir()) == [place]
    assert not list(place.iterdir())


@pytest.mark.parametrize("outer", [link("a", "elsewhere"), file("a")])
def test_no_output_is_written_through_another(tmp_path: Path, outer: re.OutputSymlink | re.OutputFile) -> None:
    kind = "output_symlinks" if isinstance(outer, re.OutputSymlink) else "output_files"
    told = {kind: [outer], "output_directories": [directory("a/b")]}
    with pytest.raises(OutputInvalid, match="below another"):
        result(**told).download(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_in_a_directory_comes_with_it(tmp_path: Path) -> None:
    found = result(output_files=[file("a/b/c"), file("ab")], output_directories=[directory("a")])
    found.download(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["a", "a/by-tree", "ab"]


def test_a_directory_without_a_tree_is_pulled_by_its_root(tmp_path: Path) -> None:
    told = [re.OutputDirectory(path="d", root_directory_digest=digest_message(BLOB))]
    result(output_directories=told).download(tmp_path)
    assert (tmp_path / "d/by-root").read_text() == BLOB.text


def test_what_was_not_asked_for_is_refused() -> None:
    found = result(output_files=[file("a"), file("b")])
    found.check_outputs({"a", "b", "c"})
    with pytest.raises(OutputInvalid, match="'b'"):
        found.check_outputs({"a"})
