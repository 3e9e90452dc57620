"""The whole error tree, grouped by what the caller does next; no error carries a transport's code.

    BuildNetError(code, retry, **fields)
     ├─ CallerError   fix the request      InvalidRequest NotFound Unauthenticated Forbidden
     │                                     Unimplemented TooLarge OutOfRange TransferRefused
     ├─ Missing       supply it, ask again BlobsMissing OutputInvalid DependencyFailed LeaseLost
     ├─ Busy          wait                 Overloaded StorageFull
     ├─ Unreachable   another node         NodeDown NoCapableWorker DeadlinePassed Cancelled
     ├─ Untrusted     stop and record      DigestMismatch BadSignature Replayed Expired LedgerCorrupt
     └─ Broken        our fault            SandboxFailed StateCorrupt StateNewer PortInUse InvariantBroken

`code` is public API and never changes; the text is for people and may. `edge.status` is the one map from here to
gRPC, HTTP and exit codes. `assert` is for bugs, never for input.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Retry = Literal["no", "elsewhere", "after"]


class BuildNetError(Exception):
    """Any error that a caller may meet.

    Args:
        message: one sentence for a person, with the remedy where there is one.
        fields: typed facts for programs (digests, limits, field names).
    """

    code: ClassVar[str] = "internal"
    retry: ClassVar[Retry] = "no"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, Any] = fields


class CallerError(BuildNetError):
    """The request itself is wrong; the same request will fail again."""


class InvalidRequest(CallerError):
    """A field is malformed. Fields: `field`."""

    code = "invalid_request"


class NotFound(CallerError):
    """The named thing does not exist. Fields: `kind`, `name`."""

    code = "not_found"


class Unauthenticated(CallerError):
    """The caller brings no credentials, or none that hold."""

    code = "unauthenticated"


class Forbidden(CallerError):
    """The caller may not do this."""

    code = "forbidden"


class Unimplemented(CallerError):
    """Declared in the contract, not built yet. Fields: `missing`."""

    code = "unimplemented"


class TooLarge(CallerError):
    """Over a stated limit. Fields: `limit_bytes` or `limit`."""

    code = "too_large"


class OutOfRange(CallerError):
    """An offset outside the blob. Fields: `offset`, `size_bytes`."""

    code = "out_of_range"


class TransferRefused(CallerError):
    """Accounts do not allow it: a limit, or a hold that has ended. Fields: `result`, TigerBeetle's word for why."""

    code = "transfer_refused"


class Missing(BuildNetError):
    """Something the caller can supply is absent."""


class BlobsMissing(Missing):
    """Blobs that are needed and absent. Fields: `digests`, a list of digest texts."""

    code = "blobs_missing"


class OutputInvalid(Missing):
    """An action left an output that its Command does not allow. Fields: `path`."""

    code = "output_invalid"


class DependencyFailed(Missing):
    """An action of the graph whose output is taken has failed, or did not leave it. Fields: `action`, its name."""

    code = "dependency_failed"


class LeaseLost(Missing):
    """The fence is no longer the newest. Fields: `fence`."""

    code = "lease_lost"


class Busy(BuildNetError):
    """Ask again later."""

    retry = "after"


class Overloaded(Busy):
    """A bounded queue is full. Fields: `limit`."""

    code = "overloaded"


class StorageFull(Busy):
    """The disk refuses writes; reads go on."""

    code = "storage_full"


class Unreachable(BuildNetError):
    """Another node may do it."""

    retry = "elsewhere"


class NodeDown(Unreachable):
    """The peer cannot be reached. Fields: `url`."""

    code = "node_down"


class NoCapableWorker(Unreachable):
    """No worker offers what the action requires. Fields: `requirements`."""

    code = "no_capable_worker"


class DeadlinePassed(Unreachable):
    """The action's or the call's time is over. Fields: `timeout_s`."""

    code = "deadline_passed"


class Cancelled(Unreachable):
    """Somebody asked for it to stop."""

    code = "cancelled"


class Untrusted(BuildNetError):
    """Stop, keep the evidence, record it."""


class DigestMismatch(Untrusted):
    """Bytes are not what their digest says. Fields: `expected`, `actual`, `blame` (caller, store or peer)."""

    code = "digest_mismatch"


class BadSignature(Untrusted):
    """A signature does not verify."""

    code = "bad_signature"


class Replayed(Untrusted):
    """It was said, and believed, before."""

    code = "replayed"


class Expired(Untrusted):
    """Its time is over, or has not come."""

    code = "expired"


class LedgerCorrupt(Untrusted):
    """The ledger is not what its checkpoint says. Fields: `where`."""

    code = "ledger_corrupt"


class Broken(BuildNetError):
    """Our fault or the machine's."""


class SandboxFailed(Broken):
    """The command could not be started in its sandbox."""

    code = "sandbox_failed"


class StateCorrupt(Broken):
    """The state directory is damaged. Fields: `path`."""

    code = "state_corrupt"


class StateNewer(Broken):
    """The state directory was written by a newer version. Fields: `path`, `found`, `supported`."""

    code = "state_newer"


class StateLocked(Broken):
    """Another process uses the state directory. Fields: `path`."""

    code = "state_locked"


class PortInUse(Broken):
    """The address to listen on is taken. Fields: `listen`."""

    code = "port_in_use"


class InvariantBroken(Broken):
    """A bug."""

    code = "internal"


def _leaves(cls: type[BuildNetError]) -> list[type[BuildNetError]]:
    below = [leaf for child in cls.__subclasses__() for leaf in _leaves(child)]
    return [*below, *([cls] if "code" in vars(cls) else [])]


BY_CODE: dict[str, type[BuildNetError]] = {cls.code: cls for cls in _leaves(BuildNetError)} | {
    "internal": InvariantBroken
}


def from_code(code: str, message: str, **fields: Any) -> BuildNetError:
    """Rebuild an error that crossed the native boundary or the wire; unknown codes become InvariantBroken."""
    return BY_CODE.get(code, InvariantBroken)(message, **fields)
