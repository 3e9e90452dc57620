"""Gpus are held by one attempt at a time, whatever its end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import SandboxFailed
from buildnet.worker.gpus import Gpus


async def test_the_lowest_that_are_free_are_given_and_come_back_whatever_the_end() -> None:
    gpus = Gpus((4, 0, 2))
    assert gpus.any
    assert not Gpus().any
    async with gpus.held(2) as first, gpus.held(1) as second, gpus.held(0) as none:
        assert (first, second, none) == ((0, 2), (4,), ())
    with pytest.raises(ZeroDivisionError):
        async with gpus.held(3):
            raise ZeroDivisionError
    async with gpus.held(3) as all_of_them:
        assert all_of_them == (0, 2, 4)
        with pytest.raises(SandboxFailed, match="4 gpus are asked for, and this worker has 3"):
            await gpus.held(4).__aenter__()


async def test_who_comes_before_another_has_ended_waits_and_who_gives_up_waiting_takes_none() -> None:
    gpus = Gpus((0,))

    async def use() -> tuple[int, ...]:
        async with gpus.held(1) as mine:
            return mine

    async with gpus.held(1):
        waiting, leaving = asyncio.ensure_future(use()), asyncio.ensure_future(use())
        # Both have begun to wait.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert not waiting.done()
    assert await waiting == (0,)
    assert await use() == (0,)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_no_two_have_the_same_one(counts: list[int]) -> None:
    gpus, in_use = Gpus(range(3)), set[int]()

    async def use(count: int) -> None:
        async with gpus.held(count) as mine:
            assert len(mine) == count
            assert not in_use & set(mine)
            in_use.update(mine)
            for _ in range(count):
                await asyncio.sleep(0)
            in_use.difference_update(mine)

    async def all_of_them() -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*map(use, counts))

    asyncio.run(all_of_them())
    assert not in_use
