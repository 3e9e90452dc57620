"""Ledgers, logs and witnesses for tests of what is served of them."""

from __future__ import annotations

from collections.abc import Sequence

from buildnet._native import SigningKey
from buildnet.ledger import tiles, tree
from buildnet.ledger.checkpoint import Checkpoint, Signer
from buildnet.ledger.cosignature import Cosigner
from buildnet.ledger.tiles import Tile

SIGNER = Signer("example.org/log", SigningKey(bytes(range(32))))
WITNESS = Cosigner("witness.example/w1", SigningKey(bytes(range(32, 64))))


class Log:
    """A log in memory, with every node by its level and index."""

    def __init__(self, bodies: Sequence[bytes], signer: Signer = SIGNER) -> None:
        self.bodies = list(bodies)
        self.signer = signer
        self.frontier = tree.Frontier()
        self._hashes: list[bytes] = []
        for body in bodies:
            self._hashes += self.frontier.append(tree.leaf_hash(body))

    def node(self, level: int, index: int) -> bytes:
        return self._hashes[tree.position(level, index)]

    @property
    def head(self) -> Checkpoint:
        return Checkpoint(self.signer.verifier.name, len(self.bodies), self.frontier.root())

    @property
    def note(self) -> str:
        return self.signer.sign(self.head)

    def content(self, tile: Tile) -> bytes:
        """What is served as a tile, made the plain way."""
        if tile.level == tiles.ENTRIES:
            return tiles.bundle(self.bodies[tile.start : tile.start + tile.width])
        return b"".join(self.node(8 * tile.level, tile.start + i) for i in range(tile.width))


def log_of(size: int) -> Log:
    return Log([f"entry {number}".encode() for number in range(size)])
