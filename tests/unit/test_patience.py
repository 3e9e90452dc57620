"""Who waits for a server that is away, for how long, and for what failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from buildnet._native import NativeError
from buildnet.client.patience import Patience
from buildnet.errors import InvalidRequest, NodeDown
from buildnet.wire.native import error_of


def native(code: str, message: str) -> NativeError:
    error = NativeError(message)
    error.code, error.message, error.fields = code, message, {}
    return error


BROKEN = native("internal", "BatchUpdateBlobs: transport error")


def test_a_connection_that_broke_off_is_a_node_that_is_down_and_a_bug_is_a_bug() -> None:
    assert isinstance(error_of(BROKEN), NodeDown)
    assert error_of(native("internal", "an invariant")).code == "internal"


def calls(*answers: str | Exception) -> Callable[[], Any]:
    left = list(answers)

    async def call() -> str:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return call


# A process that is stopped for a while, as on a machine under load, has not been impatient.
EVER_S = 1e9


async def test_a_client_waits_for_a_server_that_it_has_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildnet.client.patience._FIRST_S", 0.001)
    patience = Patience(EVER_S)
    assert await patience.tried(calls("here")) == "here"
    assert await patience.tried(calls(NodeDown("away"), NodeDown("away"), "back")) == "back"


@pytest.mark.parametrize(("reached", "away_s"), [(False, EVER_S), (True, 0.0)], ids=["never there", "for too long"])
async def test_a_client_does_not_wait_for_one_that_was_never_there_or_is_away_for_too_long(
    reached: bool, away_s: float
) -> None:
    patience = Patience(away_s)
    patience.reached = reached
    with pytest.raises(NodeDown):
        await patience.tried(calls(NodeDown("away"), "back"))


async def test_what_is_refused_is_not_tried_again() -> None:
    patience = Patience(EVER_S)
    patience.reached = True
    with pytest.raises(InvalidRequest):
        await patience.tried(calls(InvalidRequest("no", field="x"), "never"))
