"""Watchers: a snapshot, then changes; what a slow one misses is told as its latest state alone."""

from __future__ import annotations

import pytest

from buildnet.edge.fleet_watch import WATCHERS_MAX, Watchers
from buildnet.errors import Overloaded


async def test_a_slow_reader_is_told_each_changed_node_once() -> None:
    watchers = Watchers()
    reading = watchers.watch(["a", "b"])
    assert await anext(reading) == "a"
    for _ in range(1000):
        watchers.changed("a")
        watchers.changed("b")
    # It changed before it was told for the first time: once is enough.
    assert await anext(reading) == "b"
    assert await anext(reading) is None
    for number in range(1000):
        watchers.changed(f"n{number % 3}")
    assert [await anext(reading) for _ in range(4)] == ["a", "n0", "n1", "n2"]
    await reading.aclose()


async def test_as_many_watch_as_may_and_no_more() -> None:
    watchers = Watchers()
    readings = [watchers.watch(["a"]) for _ in range(WATCHERS_MAX)]
    for reading in readings:
        assert await anext(reading) == "a"
    one_more = watchers.watch([])
    with pytest.raises(Overloaded, match="try again later"):
        await anext(one_more)
    await readings[0].aclose()
    again = watchers.watch(["a"])
    assert await anext(again) == "a"
    for reading in (*readings[1:], again):
        await reading.aclose()


def test_changes_that_nobody_watches_cost_nothing() -> None:
    watchers = Watchers()
    watchers.changed("a")
    assert not watchers._waiting
