"""Many nodes of the stored tree are read by one query: each look-up by itself would lock and unlock the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from buildnet.errors import LedgerCorrupt
from buildnet.ledger import tree
from buildnet.ledger.checkpoint import SIZE_MAX

T = TypeVar("T")


def nodes(connection: sqlite3.Connection, level: int, start: int, count: int) -> list[bytes]:
    """Hashes of the complete subtrees `start` to `start + count` of a level, as far as there are; at most 256."""
    # A position that SQLite cannot hold has no row.
    places = [place for i in range(count) if (place := tree.position(level, start + i)) <= SIZE_MAX]
    return [digest for _, digest in sorted(_rows(connection, places).items())]


def read(connection: sqlite3.Connection, work: Callable[[tree.NodeHash], T]) -> T:
    """What `work` makes of the stored tree; the nodes that it asks for must not depend on their hashes.

    Raises:
        LedgerCorrupt: a node is absent.
    """
    places: list[int] = []

    def noted(level: int, index: int) -> bytes:
        places.append(tree.position(level, index))
        return b""

    work(noted)
    found = _rows(connection, places)
    # It asks for them in the same order again.
    again = iter(places)

    def node(level: int, index: int) -> bytes:
        try:
            return found[next(again)]
        except KeyError:
            raise LedgerCorrupt(f"the tree's node {level}/{index} is absent", where=f"node {level}/{index}") from None

    return work(node)


def _rows(connection: sqlite3.Connection, places: list[int]) -> dict[int, bytes]:
    query = f"SELECT position, hash FROM node WHERE position IN ({','.join('?' * len(places))})"
    return {place: bytes(digest) for place, digest in connection.execute(query, places)}
