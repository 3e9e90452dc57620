"""The suite's own FastCDC is the published one: its tables, its vectors, and its bounds.

The vectors of the Remote Execution API (fastcdc2020_test_vectors.txt) are cuts of an image of fastcdc-rs that is not in
this repository: BUILDNET_FASTCDC_IMAGE names the file test/fixtures/SekienAkashita.jpg of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.fastcdc import GEAR, MASKS, chunk_sizes

IMAGE = "BUILDNET_FASTCDC_IMAGE"
IMAGE_SHA256 = "d9e749d9367fc908876749d6502eb212fee88c9a94892fb07da5ef3ba8bc39ed"


def sum_of(words: Sequence[int]) -> str:
    """SHA-256 of a table, each entry as eight bytes, the most significant first."""
    return hashlib.sha256(b"".join(word.to_bytes(8) for word in words)).hexdigest()


def test_the_gear_table_is_the_published_one() -> None:
    # Of GEAR in fastcdc-rs, v2020: the first and the last entries, so that a difference can be seen, and all 256.
    assert GEAR[:2] == [0x3B5D3C7D207E37DC, 0x784D68BA91123086]
    assert GEAR[254:] == [0xE1D830D3F16C5DDB, 0xAABD2B2A451504E1]
    assert sum_of(GEAR) == "9df0a720752a7d211fdebaf39bed01610983756fc340a1cfef41052b7356ae73"


def test_the_masks_are_the_published_ones() -> None:
    # Of MASKS in fastcdc-rs, v2020, from its sixth: those before are padding.
    assert sum_of(MASKS) == "96165b4c71c0d2318a9a6c3dd84d339a057f210fbb86992e33f8500512b0e196"


def test_zeros_are_cut_as_published() -> None:
    # fastcdc-rs, v2020, test_cut_all_zeros.
    assert list(chunk_sizes(bytes(10240), 256, smallest=64, largest=1024)) == [1024] * 10


@pytest.mark.parametrize(
    ("seed", "sizes"),
    [
        (0, [19186, 19279, 17354, 16387, 19940, 17320]),
        (666, [17635, 17334, 19136, 17467, 23593, 14301]),
    ],
)
def test_the_image_is_cut_as_published(seed: int, sizes: list[int]) -> None:
    path = os.environ.get(IMAGE)
    if not path:
        pytest.skip(f"the published vectors are of an image that is not here; name it in {IMAGE}")
    image = Path(path).read_bytes()
    assert hashlib.sha256(image).hexdigest() == IMAGE_SHA256
    assert list(chunk_sizes(image, 16384, seed=seed, smallest=4096, largest=65535)) == sizes


@given(data=st.binary(max_size=20_000), average=st.sampled_from([1024, 1500, 2048]), seed=st.integers(0, 2**32 - 1))
def test_chunks_add_up_and_keep_their_bounds(data: bytes, average: int, seed: int) -> None:
    sizes = list(chunk_sizes(data, average, seed=seed))
    assert sum(sizes) == len(data)
    assert all(size <= average * 4 for size in sizes)
    assert all(size >= average // 4 for size in sizes[:-1])
