"""The one map from the error tree to gRPC status; a test demands a row for every code.

Permanent errors are never INTERNAL or UNAVAILABLE: Go clients repeat those five times.
"""

from __future__ import annotations

from buildnet.errors import BuildNetError
from buildnet.wire._gen.google.rpc import error_details_pb2, status_pb2

OK, CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = 0, 1, 3, 4, 5
PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION = 7, 8, 9
ABORTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED = 10, 11, 12, 13, 14, 15, 16

GRPC_CODES: dict[str, int] = {
    "ok": OK,
    "invalid_request": INVALID_ARGUMENT,
    "not_found": NOT_FOUND,
    "unauthenticated": UNAUTHENTICATED,
    "forbidden": PERMISSION_DENIED,
    "unimplemented": UNIMPLEMENTED,
    "too_large": RESOURCE_EXHAUSTED,
    "out_of_range": OUT_OF_RANGE,
    "transfer_refused": FAILED_PRECONDITION,
    "blobs_missing": FAILED_PRECONDITION,
    "output_invalid": FAILED_PRECONDITION,
    "dependency_failed": FAILED_PRECONDITION,
    "lease_lost": ABORTED,
    "overloaded": RESOURCE_EXHAUSTED,
    "storage_full": RESOURCE_EXHAUSTED,
    "node_down": UNAVAILABLE,
    "no_capable_worker": FAILED_PRECONDITION,
    "deadline_passed": DEADLINE_EXCEEDED,
    "cancelled": CANCELLED,
    "digest_mismatch": INVALID_ARGUMENT,
    "bad_signature": INVALID_ARGUMENT,
    "replayed": INVALID_ARGUMENT,
    "expired": INVALID_ARGUMENT,
    "ledger_corrupt": DATA_LOSS,
    "sandbox_failed": FAILED_PRECONDITION,
    "state_corrupt": DATA_LOSS,
    "state_newer": FAILED_PRECONDITION,
    "state_locked": FAILED_PRECONDITION,
    "port_in_use": FAILED_PRECONDITION,
    "internal": INTERNAL,
}

# By the code of the tree where HTTP tells apart what gRPC does not, else by the gRPC code (native/door/src/status.rs).
_HTTP_BY_CODE = {"storage_full": 507, "too_large": 413, "overloaded": 503}
_HTTP_BY_GRPC = {
    INVALID_ARGUMENT: 400,
    OUT_OF_RANGE: 400,
    UNAUTHENTICATED: 401,
    PERMISSION_DENIED: 403,
    NOT_FOUND: 404,
    ABORTED: 409,
    FAILED_PRECONDITION: 409,
    UNIMPLEMENTED: 501,
    RESOURCE_EXHAUSTED: 503,
    UNAVAILABLE: 503,
    CANCELLED: 503,
    DEADLINE_EXCEEDED: 504,
}

_OVERLOADED_RETRY_S = 1


def http_status(error: BuildNetError) -> int:
    """The HTTP status of an error that leaves as a response."""
    return _HTTP_BY_CODE.get(error.code) or _HTTP_BY_GRPC.get(GRPC_CODES.get(error.code, INTERNAL), 500)


def status_of(
    code: str, message: str, missing: tuple[str, ...] = (), field: str = "", retry_after_s: float = 0.0
) -> status_pb2.Status:
    """A google.rpc.Status with the details that REAPI names.

    Missing blobs become one PreconditionFailure violation each, `MISSING` and `blobs/HASH/SIZE` (REAPI Execute).
    """
    status = status_pb2.Status(code=GRPC_CODES.get(code, INTERNAL), message=message)
    if missing:
        failure = error_details_pb2.PreconditionFailure()
        for digest in missing:
            failure.violations.add(type="MISSING", subject=f"blobs/{digest}")
        status.details.add().Pack(failure)
    if field and status.code == INVALID_ARGUMENT:
        request = error_details_pb2.BadRequest()
        request.field_violations.add(field=field, description=message)
        status.details.add().Pack(request)
    if code == "overloaded" and not retry_after_s:
        retry_after_s = _OVERLOADED_RETRY_S
    if retry_after_s:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(retry_after_s * 1e9))
        status.details.add().Pack(retry)
    info = error_details_pb2.ErrorInfo(reason=code, domain="buildnet")
    status.details.add().Pack(info)
    return status


def ended_status(code: str, message: str, missing: tuple[str, ...] = ()) -> status_pb2.Status:
    """As `status_of`, of how an action ended. Over one of its own limits it will be over the next time too, and clients
    repeat RESOURCE_EXHAUSTED (remote-apis-sdks, go/pkg/retry; Bazel, RemoteRetrier).
    """
    status = status_of(code, message, missing)
    if code == "too_large":
        status.code = FAILED_PRECONDITION
    return status


def to_status(error: BuildNetError) -> tuple[int, str, bytes]:
    """Code, text and serialised google.rpc.Status of an error that leaves as the status of a call."""
    missing = tuple(error.fields.get("digests", ())) if error.code == "blobs_missing" else ()
    field, retry_after_s = str(error.fields.get("field", "")), float(error.fields.get("retry_after_s", 0.0))
    status = status_of(error.code, error.message, missing, field, retry_after_s)
    return status.code, status.message, status.SerializeToString()
