"""What an attempt came to, as the controller is told: each failure names its remedy. Looks at nothing."""

from __future__ import annotations

from typing import Final

from buildnet.errors import (
    BuildNetError,
    Cancelled,
    Forbidden,
    SandboxFailed,
    StorageFull,
    Unauthenticated,
    from_code,
)
from buildnet.model.action import Outcome
from buildnet.sandbox.policy import Plan
from buildnet.wire.usage import UndeclaredWrites

# Undeclared writes that an error names.
_NAMED_MAX: Final = 10

_LIMIT_REMEDIES: Final = {
    "memory": (
        "used more memory than the worker allows ({memory_bytes} bytes); make it smaller, use a larger worker, or "
        "raise its --memory-max"
    ),
    "pids": "started more processes than the worker allows ({pids_max}); let it start fewer, or raise its --pids-max",
    "cpu": "used more processor time than the worker allows ({cpu_s} s); split it",
    "disk": (
        "wrote more to its execution root and /tmp than it may ({disk_bytes} bytes); write less, ask for more with "
        "resource:disk_bytes, or raise the worker's --disk-max"
    ),
    "log_limit": ("printed more than the worker keeps ({log_size_bytes_max} bytes); write to an output file instead"),
}


def strict_failure(writes: UndeclaredWrites) -> BuildNetError | None:
    """The error of a command that declared its writes and did not keep to them."""
    if not writes.count and not writes.partial:
        return None
    if not writes.count:
        return from_code(
            "output_invalid",
            "effect:write=declared cannot be kept: the execution root has too many entries to look at; leave fewer",
        )
    named = ", ".join(writes.paths[:_NAMED_MAX])
    more = f" and {writes.count - _NAMED_MAX} more" if writes.count > _NAMED_MAX else ""
    return from_code(
        "output_invalid",
        f"the command wrote what effect:write=declared forbids: {named}{more}; declare them as outputs, write them to "
        "/tmp, or leave the effect out (on a strict worker: declare effect:write=ambient, to run on another)",
        path=writes.paths[0],
    )


def limit_failure(reason: str, plan: Plan) -> BuildNetError | None:
    """The error of a command that was stopped, with what would help."""
    if not reason:
        return None
    if reason == "timeout":
        return from_code(
            "deadline_passed",
            f"the command ran for its whole timeout of {plan.timeout_s:g} s and was stopped; give it a longer timeout",
            timeout_s=plan.timeout_s,
        )
    if reason == "killed":
        return Cancelled("the command was stopped")
    if reason == "storage_full":
        return StorageFull("the worker's disk was full while the command printed; free some space")
    if reason == "sandbox_failed":
        return SandboxFailed("the worker could not keep what the command printed")
    limits = {name: getattr(plan.limits, name) for name in plan.limits.__slots__}
    return from_code(
        "too_large",
        "the command " + _LIMIT_REMEDIES[reason].format(**limits),
        limit=reason,
    )


def outcome_of(result: bytes, exit_code: int, failure: BuildNetError | None, node: str) -> Outcome:
    """What a command came to, `result` being its encoded ActionResult; with a failure it is told beside it."""
    if failure is None:
        return Outcome("ok", result, worker=node, exit_code=exit_code)
    return Outcome(failure.code, result, failure.message, worker=node, exit_code=exit_code)


def failure_of(error: BuildNetError) -> Outcome:
    """An attempt that came to no result."""
    if isinstance(error, (Unauthenticated, Forbidden)):
        # The worker's own credentials: to whoever waits for the action, a worker that cannot reach its controller.
        return Outcome("node_down", None, f"the controller refused this worker's credentials: {error.message}")
    return Outcome(error.code, None, error.message, missing=tuple(error.fields.get("digests", ())))
