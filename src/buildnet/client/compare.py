"""In which outputs several runs of one action differ, down to the files of output directories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from buildnet.client.results import RunResult
from buildnet.errors import InvalidRequest
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_of

Read = Callable[[Digest], bytes]


@dataclass(frozen=True, slots=True)
class DifferingOutput:
    """One output that is not the same in all runs. `seen` is what each run left, in order; None for nothing.

    What is no path is in parentheses: (exit code), (stdout), (stderr).
    """

    path: str
    seen: tuple[str | None, ...]


def differing_outputs(results: Sequence[RunResult], read: Read) -> list[DifferingOutput]:
    """What differs, by path; none when all runs are the same.

    Args:
        results: of one action.
        read: a blob of the server's, by digest. *Blocks*.
    """
    whole = [_facts(result) for result in results]
    found: list[DifferingOutput] = []
    for path in sorted(set().union(*whole)):
        seen = [facts.get(path) for facts in whole]
        if len(set(seen)) == 1:
            continue
        found += _within(path, results, read) or [DifferingOutput(path, tuple(seen))]
    return found


def _facts(result: RunResult) -> dict[str, str]:
    facts = {
        "(exit code)": str(result.exit_code),
        "(stdout)": result.stdout_digest.text if result.stdout_digest else "",
        "(stderr)": result.stderr_digest.text if result.stderr_digest else "",
    }
    for path, output in result.outputs.items():
        text = output.digest.text if output.digest else f"-> {output.target}"
        facts[path] = f"{output.kind} {text}" + (" executable" if output.executable else "")
    return facts


def _within(path: str, results: Sequence[RunResult], read: Read) -> list[DifferingOutput]:
    """What differs below an output that is a directory in every run."""
    trees = []
    for result in results:
        output = result.outputs.get(path)
        if output is None or output.kind != "directory" or output.is_root or output.digest is None:
            return []
        try:
            tree = re.Tree.FromString(read(output.digest))
            trees.append(dict(_flat(path, tree)))
        except (DecodeError, InvalidRequest):
            return []
    names = sorted(set().union(*trees))
    rows = [DifferingOutput(name, tuple(tree.get(name) for tree in trees)) for name in names]
    return [row for row in rows if len(set(row.seen)) > 1]


def _flat(path: str, tree: re.Tree) -> Iterator[tuple[str, str]]:
    children = {Digest.of(child.SerializeToString(deterministic=True)): child for child in tree.children}
    waiting = [(path, tree.root)]
    while waiting:
        above, directory = waiting.pop()
        for file in directory.files:
            text = f"file {digest_of(file.digest).text}" + (" executable" if file.is_executable else "")
            yield f"{above}/{file.name}", text
        for symlink in directory.symlinks:
            yield f"{above}/{symlink.name}", f"symlink -> {symlink.target}"
        for node in directory.directories:
            below = children.get(digest_of(node.digest))
            if below is None:
                yield f"{above}/{node.name}/", f"directory {digest_of(node.digest).text}"
            else:
                waiting.append((f"{above}/{node.name}", below))
