"""In which paths two input trees differ, found by their digests: equal subtrees are never opened. Pure.

A subtree whose directory is not kept is named as one change that says so; it is never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from buildnet.model.digest import EMPTY, Digest
from buildnet.model.history import Change, TreeDirectory, TreeNode

DIRECTORIES_MAX: Final = 20_000
NOT_KEPT: Final = "what is below is not kept: it was evicted, or its client never sent it"
TOO_MANY: Final = "what is below was not compared: too much differs"

Load = Callable[[Digest], TreeDirectory | None]


def tree_changes(before: Digest, after: Digest, load: Load) -> Iterator[Change]:
    """Input paths that were added, removed or changed, by path.

    Args:
        before: root directory of one tree.
        after: root directory of the other.
        load: the directory of a digest, None when it is not to be had.

    Returns:
        Changes as they are found. A directory that is in one tree only is one change, with a slash after its path.
    """
    left = DIRECTORIES_MAX
    # Depth first, in the order of paths: what is found first is first.
    waiting: list[tuple[str, Digest, Digest] | Change] = [("", before, after)]
    while waiting:
        step = waiting.pop()
        if isinstance(step, Change):
            yield step
            continue
        path, one, other = step
        if one == other:
            continue
        left -= 1
        if left < 0:
            yield Change("input", f"{path}/", one.text, other.text, TOO_MANY)
            return
        mine, theirs = _loaded(one, load), _loaded(other, load)
        if mine is None or theirs is None:
            yield Change("input", f"{path}/" if path else ".", one.text, other.text, NOT_KEPT)
            continue
        if mine.more != theirs.more:
            yield Change("input", f"{path}/" if path else ".", mine.more or None, theirs.more or None)
        waiting += reversed(list(_below(path, mine, theirs)))


def _loaded(digest: Digest, load: Load) -> TreeDirectory | None:
    # The empty directory needs no keeping.
    return TreeDirectory() if digest == EMPTY else load(digest)


def _below(path: str, mine: TreeDirectory, theirs: TreeDirectory) -> Iterator[tuple[str, Digest, Digest] | Change]:
    before = {node.name: node for node in mine.nodes}
    after = {node.name: node for node in theirs.nodes}
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        full = f"{path}/{name}" if path else name
        if _is_directory(one) and _is_directory(other):
            assert one is not None
            assert other is not None
            assert one.digest is not None
            assert other.digest is not None
            yield full, one.digest, other.digest
            continue
        slash = "/" if _is_directory(one or other) and (one is None or other is None) else ""
        yield Change("input", full + slash, one.text if one else None, other.text if other else None)


def _is_directory(node: TreeNode | None) -> bool:
    return node is not None and node.kind == "directory"


def bounded(changes: Iterator[Change], count_max: int) -> tuple[list[Change], int]:
    """The first changes, and how many there are beyond them."""
    first = list(islice(changes, count_max))
    return first, sum(1 for _ in changes)
