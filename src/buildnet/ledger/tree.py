"""The Merkle tree of RFC 6962 section 2.1: hashing, proofs and their verification. Pure; it stores nothing.

A node is named by its level (0 for leaves) and its index on that level; only complete subtrees are nodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from buildnet._native import extend_tree

HASH_BYTES: Final = 32
NodeHash = Callable[[int, int], bytes]

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(body: bytes) -> bytes:
    """Hash of a leaf: SHA-256(0x00 || body)."""
    return hashlib.sha256(b"\x00" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def position(level: int, index: int) -> int:
    """Where a node stands when nodes are written in the order in which they become complete, from 0.

    Before leaf n there are 2n - popcount(n) of them; after it come its newly complete ancestors, lowest first.
    """
    last_leaf = ((index + 1) << level) - 1
    return 2 * last_leaf - last_leaf.bit_count() + level


class Frontier:
    """The right edge of a growing tree: enough to append and to know the root."""

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        self.size = size
        # Hashes of the complete subtrees that make up the tree, largest first.
        self._hashes = list(hashes)
        if len(self._hashes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} complete subtrees")

    @classmethod
    def load(cls, size: int, node: NodeHash) -> Frontier:
        """The edge of a stored tree."""
        hashes, start = [], 0
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                hashes.append(node(level, start >> level))
                start += 1 << level
        return cls(size, hashes)

    def copy(self) -> Frontier:
        """An edge of its own, so that a failed transaction changes nothing."""
        return Frontier(self.size, self._hashes)

    def append(self, leaf: bytes) -> list[bytes]:
        """Add a leaf by its hash; return the hashes of the nodes that are complete now, the leaf first."""
        complete = [leaf]
        index = self.size
        while index & 1:
            leaf = node_hash(self._hashes.pop(), leaf)
            complete.append(leaf)
            index >>= 1
        self._hashes.append(leaf)
        self.size += 1
        return complete

    def extend(self, bodies: Sequence[bytes]) -> bytes:
        """Add leaves by their bodies; return the hashes that `append` would of each, one behind the other."""
        edge, complete = extend_tree(self.size, b"".join(self._hashes), bodies)
        self._hashes = [edge[at : at + HASH_BYTES] for at in range(0, len(edge), HASH_BYTES)]
        self.size += len(bodies)
        return complete

    def root(self) -> bytes:
        """The root of the tree (RFC 6962 section 2.1, MTH)."""
        if not self._hashes:
            return EMPTY_ROOT
        root = self._hashes[-1]
        for left in reversed(self._hashes[:-1]):
            root = node_hash(left, root)
        return root


def _split(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


def _range_hash(node: NodeHash, start: int, end: int) -> bytes:
    count = end - start
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return node(level, start >> level)
    middle = start + _split(count)
    return node_hash(_range_hash(node, start, middle), _range_hash(node, middle, end))


def prove_inclusion(index: int, size: int, node: NodeHash) -> list[bytes]:
    """The audit path of a leaf in the tree of `size` leaves, leaf to root (RFC 6962 section 2.1.1).

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range_hash(node, middle, end))
            end = middle
        else:
            path.append(_range_hash(node, start, middle))
            start = middle
    return path[::-1]


def prove_consistency(older: int, newer: int, node: NodeHash) -> list[bytes]:
    """That the tree of `older` leaves begins the tree of `newer` (RFC 6962 section 2.1.2).

    Raises:
        ValueError: unless 1 <= older <= newer.
    """
    if not 1 <= older <= newer:
        raise ValueError(f"no proof leads from {older} to {newer} leaves")
    path: list[bytes] = []
    start, end, whole = 0, newer, True
    while older != end:
        middle = start + _split(end - start)
        if older <= middle:
            path.append(_range_hash(node, middle, end))
            end = middle
        else:
            path.append(_range_hash(node, start, middle))
            start, whole = middle, False
    if not whole:
        path.append(_range_hash(node, start, end))
    return path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether the path leads from the leaf's hash to the root (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    here, last, result = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if here & 1 or here == last:
            result = node_hash(sibling, result)
            while here and not here & 1:
                here, last = here >> 1, last >> 1
        else:
            result = node_hash(result, sibling)
        here, last = here >> 1, last >> 1
    return last == 0 and result == root


def verify_consistency(older: int, newer: int, path: Sequence[bytes], older_root: bytes, newer_root: bytes) -> bool:
    """Whether the path proves that the older tree begins the newer one (RFC 9162 section 2.1.4.2)."""
    if not 1 <= older <= newer:
        return False
    if older == newer:
        return not path and older_root == newer_root
    hashes = [older_root, *path] if older & (older - 1) == 0 else list(path)
    if not hashes:
        return False
    here, last = older - 1, newer - 1
    while here & 1:
        here, last = here >> 1, last >> 1
    first = second = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if here & 1 or here == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while here and not here & 1:
                here, last = here >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        here, last = here >> 1, last >> 1
    return last == 0 and first == older_root and second == newer_root
