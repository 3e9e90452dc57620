"""Sizes of pages: refused below zero, chosen at zero, bounded above."""

from __future__ import annotations

import pytest

from buildnet.edge.paging import page_size_of
from buildnet.errors import InvalidRequest


@pytest.mark.parametrize(("asked", "given"), [(0, 100), (1, 1), (999, 999), (1000, 1000), (2**31 - 1, 1000)])
def test_a_size_is_bounded(asked: int, given: int) -> None:
    assert page_size_of(asked, 100, 1000) == given


@pytest.mark.parametrize("asked", [-1, -(2**31)])
def test_a_size_below_zero_is_refused(asked: int) -> None:
    with pytest.raises(InvalidRequest, match=f"a page of {asked} is none"):
        page_size_of(asked, 100, 1000)
