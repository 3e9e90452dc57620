"""Every error has a status, and the status leads back to the error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from buildnet.client.status import error_of_status
from buildnet.edge.status import (
    GRPC_CODES,
    INTERNAL,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    ended_status,
    http_status,
    status_of,
    to_status,
)
from buildnet.errors import BY_CODE, BlobsMissing, BuildNetError, InvalidRequest
from buildnet.wire._gen.google.rpc import error_details_pb2, status_pb2

DOOR = Path(__file__).parents[2] / "native/door/src/status.rs"


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_has_a_row_and_comes_back(code: str) -> None:
    assert code in GRPC_CODES
    error = BY_CODE[code]("why")
    number, text, details = to_status(error)
    assert (number, text) == (GRPC_CODES[code], "why")
    assert type(error_of_status(status_pb2.Status.FromString(details))) is type(error)


def test_the_door_has_the_same_rows() -> None:
    rows = re.findall(r'^    \("(\w+)", Code::\w+, (\d+)\),$', DOOR.read_text(), re.MULTILINE)
    assert {code: int(status) for code, status in rows} == {
        code: http_status(cls("why")) for code, cls in BY_CODE.items()
    }


def test_permanent_errors_are_not_repeated_by_go_clients() -> None:
    permanent = [code for code, cls in BY_CODE.items() if cls.retry == "no" and code != "internal"]
    assert not [code for code in permanent if GRPC_CODES[code] in (INTERNAL, UNAVAILABLE)]
    repeated = (INTERNAL, UNAVAILABLE, RESOURCE_EXHAUSTED)
    assert not [code for code in permanent if ended_status(code, "why").code in repeated]


def test_missing_blobs_are_named_one_by_one() -> None:
    digests = [f"{i:064x}/{i}" for i in range(3)]
    _, _, details = to_status(BlobsMissing("gone", digests=digests))
    status = status_pb2.Status.FromString(details)
    failure = error_details_pb2.PreconditionFailure()
    assert any(detail.Unpack(failure) for detail in status.details)
    assert [(v.type, v.subject) for v in failure.violations] == [("MISSING", f"blobs/{d}") for d in digests]
    assert error_of_status(status).fields["digests"] == digests


def test_a_bad_field_is_named() -> None:
    status = status_of("invalid_request", "no", field="timeout")
    request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(request) for detail in status.details)
    assert request.field_violations[0].field == "timeout"


@pytest.mark.parametrize(("code", "told"), [("overloaded", True), ("invalid_request", False)])
def test_who_finds_a_queue_full_is_told_when_to_come_again(code: str, told: bool) -> None:
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status_of(code, "why").details) == told
    assert (retry.retry_delay.ToNanoseconds() > 0) == told


def test_a_server_that_is_not_ours_is_understood_as_far_as_it_goes() -> None:
    error = error_of_status(status_pb2.Status(code=3, message="bad"))
    assert isinstance(error, InvalidRequest)
    assert isinstance(error_of_status(status_pb2.Status(code=2)), BuildNetError)
