"""The suite's own FastCDC is the published one: its table, and its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.fastcdc import GEAR, chunk_sizes


def test_the_gear_table_is_the_published_one() -> None:
    # The first and the last entries of the table in fastcdc-rs, v2020.
    assert GEAR[:2] == [0x3B5D3C7D207E37DC, 0x784D68BA91123086]
    assert GEAR[254:] == [0xE1D830D3F16C5DDB, 0xAABD2B2A451504E1]


@given(data=st.binary(max_size=20_000), average=st.sampled_from([1024, 1500, 2048]), seed=st.integers(0, 2**32 - 1))
def test_chunks_add_up_and_keep_their_bounds(data: bytes, average: int, seed: int) -> None:
    sizes = list(chunk_sizes(data, average, seed=seed))
    assert sum(sizes) == len(data)
    assert all(size <= average * 4 for size in sizes)
    assert all(size >= average // 4 for size in sizes[:-1])
