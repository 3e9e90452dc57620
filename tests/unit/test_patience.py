"""Who waits for a server that is away, for how long, and for what failures."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from buildnet._native import NativeError
from buildnet.client.patience import Patience
from buildnet.errors import InvalidRequest, NodeDown
from buildnet.testing.scheduler_fakes import ManualClock
from buildnet.wire.native import error_of
from buildnet.worker.patience import PatientTransfers


def native(code: str, message: str) -> NativeError:
    error = NativeError(message)
    error.code, error.message, error.fields = code, message, {}
    return error


class Link:
    """Transfers that fail as they are told to, then succeed."""

    def __init__(self, *failures: NativeError, then: Callable[[], None] = lambda: None) -> None:
        self.failures = list(failures)
        self.calls = 0
        self._then = then

    def push_blobs(self, store: Any, digests: Sequence[str]) -> Mapping[str, int]:
        self.calls += 1
        self._then()
        if self.failures:
            raise self.failures.pop(0)
        return {"pushed": len(digests)}

    fetch_blobs = push_blobs

    def fetch_tree(self, store: Any, root: str) -> Mapping[str, int]:
        return self.push_blobs(store, [root])


DOWN = native("node_down", "cannot reach it")
BROKEN = native("internal", "BatchUpdateBlobs: transport error")


def patient(link: Link, clock: ManualClock) -> PatientTransfers:
    return PatientTransfers(link, 10.0, clock, random.Random(1))


def test_a_connection_that_broke_off_is_a_node_that_is_down_and_a_bug_is_a_bug() -> None:
    assert isinstance(error_of(BROKEN), NodeDown)
    assert error_of(native("internal", "an invariant")).code == "internal"


def test_a_transfer_is_tried_again_while_the_controller_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildnet.worker.patience._FIRST_S", 0.001)
    link = Link(DOWN, BROKEN)
    assert patient(link, ManualClock()).fetch_tree(None, "x/1") == {"pushed": 1}  # type: ignore[arg-type]
    assert link.calls == 3


def test_a_transfer_that_is_refused_is_not_tried_again() -> None:
    link = Link(native("forbidden", "no"))
    with pytest.raises(NativeError):
        patient(link, ManualClock()).push_blobs(None, ["x/1"])  # type: ignore[arg-type]
    assert link.calls == 1


def test_a_transfer_gives_up_when_its_time_is_over_or_its_worker_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildnet.worker.patience._FIRST_S", 0.001)
    clock = ManualClock()

    def pass_time() -> None:
        clock.now_s += 4.0

    link = Link(*[DOWN] * 9, then=pass_time)
    with pytest.raises(NativeError):
        patient(link, clock).push_blobs(None, [])  # type: ignore[arg-type]
    assert link.calls == 3
    leaving = patient(link := Link(*[DOWN] * 9), ManualClock())
    leaving.give_up()
    with pytest.raises(NativeError):
        leaving.push_blobs(None, [])  # type: ignore[arg-type]
    assert link.calls == 1


def calls(*answers: str | Exception) -> Callable[[], Any]:
    left = list(answers)

    async def call() -> str:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return call


async def test_a_client_waits_for_a_server_that_it_has_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildnet.client.patience._FIRST_S", 0.001)
    patience = Patience(10.0)
    assert await patience.tried(calls("here")) == "here"
    assert await patience.tried(calls(NodeDown("away"), NodeDown("away"), "back")) == "back"


@pytest.mark.parametrize(("reached", "away_s"), [(False, 10.0), (True, 0.0)], ids=["never there", "for too long"])
async def test_a_client_does_not_wait_for_one_that_was_never_there_or_is_away_for_too_long(
    reached: bool, away_s: float
) -> None:
    patience = Patience(away_s)
    patience.reached = reached
    with pytest.raises(NodeDown):
        await patience.tried(calls(NodeDown("away"), "back"))


async def test_what_is_refused_is_not_tried_again() -> None:
    patience = Patience(10.0)
    patience.reached = True
    with pytest.raises(InvalidRequest):
        await patience.tried(calls(InvalidRequest("no", field="x"), "never"))
