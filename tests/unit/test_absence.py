"""Operations whose clients went away are stopped when their time is over, in the order in which they were left."""

from __future__ import annotations

import pytest

from buildnet.edge.absence import Absence
from buildnet.testing.scheduler_fakes import ManualClock


class Left:
    """An Absence of ten seconds, and what it stopped."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stopped: list[str] = []
        self.watched: set[str] = set()
        self.absence = Absence(self.clock, 10.0, self._stop)

    def _stop(self, operation_id: str) -> bool:
        if operation_id in self.watched:
            return False
        self.stopped.append(operation_id)
        return True

    def passes(self, seconds: float) -> list[str]:
        self.clock.now_s += seconds
        self.absence.look(self.clock.now_s)
        stopped, self.stopped = self.stopped, []
        return stopped


@pytest.fixture
async def left() -> Left:
    return Left()


async def test_each_is_stopped_once_when_its_time_is_over(left: Left) -> None:
    left.absence.begins("a")
    assert left.passes(4) == []
    left.absence.begins("b")
    assert left.passes(5.9) == []
    assert left.passes(0.1) == ["a"]
    assert left.passes(4) == ["b"]
    assert left.passes(100) == []


async def test_time_begins_anew_when_its_client_leaves_again_or_asks_after_it(left: Left) -> None:
    for each in ("a", "b", "c"):
        left.absence.begins(each)
    assert left.passes(6) == []
    left.absence.begins("a")
    left.absence.asked_after("b")
    left.absence.asked_after("nobody waited for this one")
    assert left.passes(4) == ["c"]
    assert left.passes(6) == ["a", "b"]


async def test_one_that_somebody_watches_is_looked_at_later(left: Left) -> None:
    left.watched.add("a")
    left.absence.begins("a")
    assert left.passes(10) == []
    left.watched.clear()
    assert left.passes(9) == []
    assert left.passes(1) == ["a"]
