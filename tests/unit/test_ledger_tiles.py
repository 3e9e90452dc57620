"""Tiles have the paths and contents of c2sp.org/tlog-tiles, and no byte of one can be altered unseen."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest, LedgerCorrupt
from buildnet.ledger import tiles
from buildnet.ledger.tiles import ENTRIES, Tile
from tests.ledgers import log_of


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 1234067), "0/x001/x234/067"),
        (Tile(ENTRIES, 0), "entries/000"),
        (Tile(63, 999, 255), "63/999.p/255"),
        (Tile(1, 1000, 1), "1/x001/000.p/1"),
    ],
)
def test_paths_are_those_of_the_specification(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert Tile.parse(path) == tile


@given(st.integers(-1, 63), st.integers(0, (1 << 55) - 1), st.integers(1, 256))
def test_a_path_is_read_back(level: int, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert Tile.parse(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        *("", "0", "0/0", "0/00", "00/000", "64/000", "-1/000", "0/x000/001", "0/000.p/0", "0/000.p/256", "0/000.p/01"),
        *("0/000/", "/0/000", "0/000.p/", "entry/000", "0/x01/000", "0/001/000", "0/000.p/1\n", "0/٠٠٠", "data/000"),
        "0/x999/x999/x999/x999/x999/x999/999",
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequest):
        Tile.parse(path)


@given(st.text(alphabet="entries/x0123456789.p"))
def test_a_path_has_one_spelling(text: str) -> None:
    try:
        tile = Tile.parse(text)
    except InvalidRequest:
        return
    assert tile.path == text


def test_the_tiles_of_the_specifications_example() -> None:
    found = list(tiles.tiles_of(70_000))
    by_level = {level: [tile for tile in found if tile.level == level] for level in (ENTRIES, 0, 1, 2, 3)}
    assert len(by_level[0]) == 274
    assert by_level[0][-1] == Tile(0, 273, 112)
    assert by_level[1] == [Tile(1, 0), Tile(1, 1, 17)]
    assert by_level[2] == [Tile(2, 0, 1)]
    assert not by_level[3]
    assert [tile.index for tile in by_level[ENTRIES]] == list(range(274))
    assert list(tiles.tiles_of(256)) == [Tile(0, 0), Tile(1, 0, 1), Tile(ENTRIES, 0)]
    assert not list(tiles.tiles_of(0))


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_bundles_are_read_back(bodies: list[bytes]) -> None:
    assert tiles.entries_of(tiles.bundle(bodies), Tile(ENTRIES, 0, len(bodies))) == bodies


@given(st.binary(max_size=60), st.integers(0, 5))
def test_a_bundle_has_one_spelling(data: bytes, count: int) -> None:
    try:
        bodies = tiles.entries_of(data, Tile(ENTRIES, 0, count))
    except LedgerCorrupt:
        return
    assert tiles.bundle(bodies) == data
    assert len(bodies) == count


def test_an_entry_that_fits_no_bundle_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        tiles.bundle([bytes(65_536)])


@pytest.mark.parametrize("size", [0, 1, 5, 256, 300])
def test_a_tree_is_verified_from_its_tiles(size: int) -> None:
    log = log_of(size)
    asked: list[Tile] = []

    def fetch(tile: Tile) -> bytes:
        asked.append(tile)
        return log.content(tile)

    tiles.verify(log.head, fetch)
    assert sorted(asked, key=str) == sorted(tiles.tiles_of(size), key=str)


LOG = log_of(259)
EVERY = list(tiles.tiles_of(259))


@given(st.data())
def test_an_altered_byte_is_found_and_named(data: st.DataObject) -> None:
    tile = data.draw(st.sampled_from(EVERY))
    good = LOG.content(tile)
    place = data.draw(st.integers(0, len(good) - 1))
    mask = data.draw(st.integers(1, 255))
    bad = good[:place] + bytes([good[place] ^ mask]) + good[place + 1 :]
    with pytest.raises(LedgerCorrupt) as found:
        tiles.verify(LOG.head, lambda asked: bad if asked == tile else LOG.content(asked))
    if tile.level == 0:
        assert found.value.fields["where"] == f"entry {tile.start + place // 32}"
    elif tile.level > 0:
        assert found.value.fields["where"] == f"tile {tile.path}"
    else:
        # Each entry stands behind two bytes of length; altered ones may leave no entries at all.
        ends = itertools.accumulate(2 + len(body) for body in tiles.entries_of(good, tile))
        number = tile.start + sum(end <= place for end in ends)
        assert found.value.fields["where"] in {f"entry {number}", f"tile {tile.path}"}


def test_another_log_with_the_same_shape_is_refused() -> None:
    other = log_of(258)
    other.bodies.append(b"other")
    forged = type(other)(other.bodies)
    with pytest.raises(LedgerCorrupt, match="root"):
        tiles.verify(LOG.head, forged.content)


@pytest.mark.parametrize("cut", [b"", b"x"])
def test_a_tile_of_another_length_is_refused(cut: bytes) -> None:
    with pytest.raises(LedgerCorrupt, match="hashes"):
        tiles.verify(LOG.head, lambda tile: LOG.content(tile)[:-1] + cut * 2)
