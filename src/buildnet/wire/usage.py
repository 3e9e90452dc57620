"""What a command used and could do, within its result's metadata: told by the worker, read by whoever wants to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from buildnet.model.timeout import TIMEOUT_CEILING_S
from buildnet.wire import times
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire._gen.google.protobuf import any_pb2

# A worker is believed up to the longest execution on as many processors as one machine may have.
CPU_MS_MAX: Final = TIMEOUT_CEILING_S * 1000 * 4096


@dataclass(frozen=True, slots=True)
class UndeclaredWrites:
    """Paths below the execution root, sorted, and how many there are; `partial` when not everything was looked at."""

    paths: tuple[str, ...] = ()
    count: int = 0
    partial: bool = False


def effects_of(result: re.ActionResult) -> action_pb2.EffectReport | None:
    """What the worker told of a command's effects; None when it told nothing that can be read."""
    for detail in result.execution_metadata.auxiliary_metadata:
        report = action_pb2.EffectReport()
        try:
            if detail.Unpack(report):
                return report
        except DecodeError:
            continue
    return None


def cpu_of(result: re.ActionResult) -> tuple[int, str]:
    """Processor time in milliseconds, and how it is known.

    Returns:
        With `usage` it was measured. With `wall` only how long the command took is known, and one processor is
        supposed. With "" nothing is known, and the time is 0.
    """
    metadata = result.execution_metadata
    for detail in metadata.auxiliary_metadata:
        if (usage := _usage_of(detail)) is not None:
            return _bounded_ms(times.nanoseconds(usage.user_cpu) + times.nanoseconds(usage.system_cpu)), "usage"
    if metadata.HasField("virtual_execution_duration"):
        return _bounded_ms(times.nanoseconds(metadata.virtual_execution_duration)), "wall"
    if metadata.HasField("execution_start_timestamp") and metadata.HasField("execution_completed_timestamp"):
        return _bounded_ms(
            times.nanoseconds(metadata.execution_completed_timestamp)
            - times.nanoseconds(metadata.execution_start_timestamp)
        ), "wall"
    return 0, ""


def _usage_of(detail: any_pb2.Any) -> action_pb2.Usage | None:
    usage = action_pb2.Usage()
    try:
        return usage if detail.Unpack(usage) else None
    except DecodeError:
        # Metadata that cannot be read tells nothing; the result is as good.
        return None


def _bounded_ms(nanoseconds: int) -> int:
    return min(max(nanoseconds // 1_000_000, 0), CPU_MS_MAX)
