"""The ledger as c2sp.org/tlog-tiles lays it out: paths, contents, and a check of a whole tree. Pure; it reads nothing.

A tile is 256 consecutive hashes of every eighth level of the tree (level 0 are the leaves); a bundle is the entries
below a tile of level 0. The last one of a level is partial. What a path holds never changes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from buildnet.errors import InvalidRequest, LedgerCorrupt
from buildnet.ledger import tree
from buildnet.ledger.checkpoint import Checkpoint
from buildnet.ledger.tree import HASH_BYTES

WIDTH: Final = 256
HEIGHT: Final = 8
ENTRIES: Final = -1
"""The level of a bundle of entries, as they are written in a path: `entries`."""

_LEVEL_MAX: Final = 63
# The last entry of the last tile has a number below 2**63, which any store can be asked for.
_INDEX_MAX: Final = (1 << 55) - 1
_PATH: Final = re.compile(r"(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
_LENGTH: Final = Struct(">H")


@dataclass(frozen=True, slots=True)
class Tile:
    """Which one: `index` within its level, `width` hashes or entries of 256."""

    level: int
    index: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """Its path below `tile/`."""
        thousands, rest = divmod(self.index, 1000)
        parts = [f"{rest:03}"]
        while thousands:
            thousands, rest = divmod(thousands, 1000)
            parts.insert(0, f"x{rest:03}")
        level = "entries" if self.level == ENTRIES else str(self.level)
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"{level}/{'/'.join(parts)}{partial}"

    @classmethod
    def parse(cls, path: str) -> Tile:
        """The tile of a path below `tile/`.

        Raises:
            InvalidRequest: it is no such path, or not in its one form.
        """
        match = _PATH.fullmatch(path)
        if match is None:
            raise InvalidRequest("this is not the path of a tile (c2sp.org/tlog-tiles)", field="path")
        level = ENTRIES if match[1] == "entries" else int(match[1])
        index = int(match[2].replace("x", "").replace("/", ""))
        tile = cls(level, index, int(match[3] or WIDTH))
        if level > _LEVEL_MAX or index > _INDEX_MAX or tile.path != path:
            raise InvalidRequest("this is not the path of a tile in its one form (c2sp.org/tlog-tiles)", field="path")
        return tile

    @property
    def start(self) -> int:
        """Its first hash's place on the tile's level, or its first entry."""
        return self.index * WIDTH


def tiles_of(size: int) -> Iterator[Tile]:
    """Every tile and bundle of a tree of `size` entries, lowest level first; bundles come last."""
    level, count = 0, size
    while count:
        yield from _row(level, count)
        level, count = level + 1, count // WIDTH
    yield from _row(ENTRIES, size)


def _row(level: int, count: int) -> Iterator[Tile]:
    full, rest = divmod(count, WIDTH)
    yield from (Tile(level, index) for index in range(full))
    if rest:
        yield Tile(level, full, rest)


def bundle(bodies: Sequence[bytes]) -> bytes:
    """Entries, each behind its length (u16, big-endian).

    Raises:
        ValueError: an entry is over 65,535 bytes.
    """
    parts: list[bytes] = []
    for body in bodies:
        if len(body) > 0xFFFF:
            raise ValueError(f"an entry of {len(body)} bytes does not fit a bundle")
        parts += (_LENGTH.pack(len(body)), body)
    return b"".join(parts)


def entries_of(data: bytes, tile: Tile) -> list[bytes]:
    """The entries of a bundle.

    Raises:
        LedgerCorrupt: it does not hold as many as its width; `where` names it.
    """
    bodies: list[bytes] = []
    at = 0
    while at + _LENGTH.size <= len(data) and len(bodies) < tile.width:
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(data, at)[0]
        bodies.append(data[start:at])
    if at != len(data) or len(bodies) != tile.width:
        raise LedgerCorrupt(f"bundle {tile.path} does not hold {tile.width} whole entries", where=f"tile {tile.path}")
    return bodies


def hashes_of(data: bytes, tile: Tile) -> list[bytes]:
    """The hashes of a tile.

    Raises:
        LedgerCorrupt: it does not hold as many as its width; `where` names it.
    """
    if len(data) != tile.width * HASH_BYTES:
        raise LedgerCorrupt(f"tile {tile.path} does not hold {tile.width} hashes", where=f"tile {tile.path}")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def verify(head: Checkpoint, fetch: Callable[[Tile], bytes]) -> None:
    """Recompute a whole tree from its bundles and require each tile to say the same, as a monitor does.

    Args:
        head: a checkpoint whose signature was verified.
        fetch: gives the content of a tile or bundle. Each is asked for once.

    Raises:
        LedgerCorrupt: an entry, a tile or the root is not what the others say; `where` names it.
    """
    frontier = tree.Frontier()
    above: defaultdict[int, list[bytes]] = defaultdict(list)
    for row in _row(ENTRIES, head.size):
        leaves = Tile(0, row.index, row.width)
        hashes = hashes_of(fetch(leaves), leaves)
        for body, expected in zip(entries_of(fetch(row), row), hashes, strict=True):
            number = frontier.size
            complete = frontier.append(tree.leaf_hash(body))
            if complete[0] != expected:
                raise LedgerCorrupt(f"entry {number} is not what its tile says", where=f"entry {number}")
            for level in range(HEIGHT, len(complete), HEIGHT):
                row_above = above[level // HEIGHT]
                row_above.append(complete[level])
                if len(row_above) % WIDTH == 0:
                    _same(Tile(level // HEIGHT, len(row_above) // WIDTH - 1), row_above[-WIDTH:], fetch)
    for level, known in above.items():
        index, width = divmod(len(known), WIDTH)
        if width:
            _same(Tile(level, index, width), known[-width:], fetch)
    if frontier.root() != head.root:
        raise LedgerCorrupt(f"the {head.size} entries do not have the root that is signed", where="root")


def _same(tile: Tile, expected: list[bytes], fetch: Callable[[Tile], bytes]) -> None:
    if hashes_of(fetch(tile), tile) != expected:
        raise LedgerCorrupt(f"tile {tile.path} is not what the entries say", where=f"tile {tile.path}")
