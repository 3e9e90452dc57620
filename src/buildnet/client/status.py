"""gRPC status back into the error tree; the mirror of edge/status.py."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from buildnet.errors import BuildNetError, from_code
from buildnet.wire._gen.google.rpc import error_details_pb2, status_pb2

_CODES = {
    grpc.StatusCode.CANCELLED: "cancelled",
    grpc.StatusCode.INVALID_ARGUMENT: "invalid_request",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline_passed",
    grpc.StatusCode.NOT_FOUND: "not_found",
    grpc.StatusCode.PERMISSION_DENIED: "forbidden",
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "overloaded",
    grpc.StatusCode.FAILED_PRECONDITION: "blobs_missing",
    grpc.StatusCode.ABORTED: "lease_lost",
    grpc.StatusCode.OUT_OF_RANGE: "out_of_range",
    grpc.StatusCode.UNIMPLEMENTED: "unimplemented",
    grpc.StatusCode.UNAVAILABLE: "node_down",
    grpc.StatusCode.DATA_LOSS: "state_corrupt",
}
_BY_NUMBER = {code.value[0]: slug for code, slug in _CODES.items()}


def error_of_status(status: status_pb2.Status) -> BuildNetError:
    """The error that a google.rpc.Status stands for; details name it exactly when the server is one of ours."""
    slug = _BY_NUMBER.get(status.code, "internal")
    fields: dict[str, object] = {}
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        failure = error_details_pb2.PreconditionFailure()
        if detail.Unpack(info) and info.domain == "buildnet":
            slug = info.reason
        elif detail.Unpack(failure):
            missing = [v.subject.removeprefix("blobs/") for v in failure.violations if v.type == "MISSING"]
            fields["digests"] = missing
    return from_code(slug, status.message, **fields)


def error_of_call(error: grpc.aio.AioRpcError, url: str) -> BuildNetError:
    """The error that a failed call stands for."""
    trailing: Iterable[tuple[str, str | bytes]] = tuple(error.trailing_metadata() or ())
    details = dict(trailing).get("grpc-status-details-bin")
    text = error.details() or error.code().name
    return error_of_end(error.code().value[0], text, details if isinstance(details, bytes) else b"", url)


def error_of_end(code: int, text: str, details: bytes, url: str) -> BuildNetError:
    """The error that the end of a call stands for; `details` is an encoded google.rpc.Status, or nothing."""
    if details:
        return error_of_status(status_pb2.Status.FromString(details))
    slug = _BY_NUMBER.get(code, "internal")
    message = text
    if slug == "node_down":
        message = f"cannot reach {url}: {message}; is it running? start one with: buildnet up"
    return from_code(slug, message, url=url)
