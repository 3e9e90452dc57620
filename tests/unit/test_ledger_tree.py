"""The tree is the one of RFC 6962, with pymerkle as the oracle."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from buildnet.ledger import tree

# RFC 6962 reference data, as every implementation of certificate transparency tests with.
LEAVES = [bytes.fromhex(x) for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")] + [
    bytes(range(0x60, 0x70))
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


class Nodes:
    """Complete subtrees by their position, as the log stores them."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.frontier = tree.Frontier()
        self.hashes: list[bytes] = []
        for leaf in leaves:
            self.hashes += self.frontier.append(tree.leaf_hash(leaf))

    def __call__(self, level: int, index: int) -> bytes:
        return self.hashes[tree.position(level, index)]


@pytest.mark.parametrize("size", range(1, 9))
def test_the_reference_roots(size: int) -> None:
    assert Nodes(LEAVES[:size]).frontier.root().hex() == ROOTS[size - 1]


def test_the_empty_tree() -> None:
    assert tree.Frontier().root() == hashlib.sha256(b"").digest()


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=70))
def test_roots_are_those_of_pymerkle_and_survive_loading(leaves: list[bytes]) -> None:
    nodes = Nodes(leaves)
    oracle = InmemoryTree(algorithm="sha256")
    for leaf in leaves:
        oracle.append_entry(leaf)
    assert nodes.frontier.root() == oracle.get_root()
    assert tree.Frontier.load(len(leaves), nodes).root() == nodes.frontier.root()


@given(st.integers(1, 90), st.data())
def test_inclusion_is_proven_and_nothing_else_is(size: int, data: st.DataObject) -> None:
    leaves = [bytes([i]) for i in range(size)]
    nodes, root = Nodes(leaves), Nodes(leaves).frontier.root()
    index = data.draw(st.integers(0, size - 1))
    path = tree.prove_inclusion(index, size, nodes)
    leaf = tree.leaf_hash(leaves[index])
    assert tree.verify_inclusion(leaf, index, size, path, root)
    assert not tree.verify_inclusion(tree.leaf_hash(b"other"), index, size, path, root)
    assert not tree.verify_inclusion(leaf, index, size, [*path, root], root)
    if path:
        assert not tree.verify_inclusion(leaf, index, size, path[:-1], root)


@given(st.integers(1, 90), st.data())
def test_consistency_is_proven_and_nothing_else_is(newer: int, data: st.DataObject) -> None:
    leaves = [bytes([i]) for i in range(newer)]
    older = data.draw(st.integers(1, newer))
    before, after = Nodes(leaves[:older]).frontier.root(), Nodes(leaves).frontier.root()
    path = tree.prove_consistency(older, newer, Nodes(leaves))
    assert tree.verify_consistency(older, newer, path, before, after)
    forged = Nodes([b"x", *leaves[1:older]]).frontier.root()
    assert not tree.verify_consistency(older, newer, path, forged, after)


@given(st.lists(st.binary(max_size=8), max_size=40), st.integers(0, 40))
def test_many_leaves_at_once_are_the_same_as_one_by_one(leaves: list[bytes], cut: int) -> None:
    one_by_one, at_once = tree.Frontier(), tree.Frontier()
    expected = [node for leaf in leaves for node in one_by_one.append(tree.leaf_hash(leaf))]
    assert at_once.extend(leaves[:cut]) + at_once.extend(leaves[cut:]) == b"".join(expected)
    assert (at_once.size, at_once.root()) == (one_by_one.size, one_by_one.root())


def test_there_are_no_proofs_of_what_is_not_there() -> None:
    nodes = Nodes(LEAVES)
    with pytest.raises(ValueError, match="no leaf"):
        tree.prove_inclusion(8, 8, nodes)
    with pytest.raises(ValueError, match="no proof"):
        tree.prove_consistency(0, 8, nodes)
