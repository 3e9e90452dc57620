"""Sizes as people write them."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.cli.sizes import Size, shown


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("17", 17), ("1KiB", 1024), ("1 KB", 1000), ("10GiB", 10 << 30), ("1.5k", 1500), ("2TB", 2 * 10**12)],
)
def test_a_size_is_bytes_or_has_a_unit(text: str, size_bytes: int) -> None:
    assert Size().convert(text, None, None) == size_bytes


@pytest.mark.parametrize("text", ["", "much", "-1", "1 XB", "1e3", "GiB", "1 iB x"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size"):
        Size().convert(text, None, None)


@given(st.integers(0, 2**62))
def test_what_is_shown_is_near_what_it_was(size_bytes: int) -> None:
    read = Size().convert(shown(size_bytes), None, None)
    assert abs(read - size_bytes) <= size_bytes * 0.06
