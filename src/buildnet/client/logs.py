"""Logs that are followed over broken connections: what came is remembered as offsets, and nothing is shown twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, Final

from buildnet.client.results import LogPiece
from buildnet.errors import NodeDown
from buildnet.wire._gen.buildnet.v1 import action_pb2

_PATH: Final = "/buildnet.v1.ActionService/StreamLogs"
# Enough for a server to be started anew; any record in between counts from the beginning.
_ATTEMPTS_MAX: Final = 8
_BACKOFF_S: Final = 0.1

Stream = Callable[[str, Any, type[Any]], AsyncIterator[Any]]


def logs_request(
    operation_id: str, follow: bool, streams: Collection[int], offsets: tuple[int, int], fence: int
) -> action_pb2.StreamLogsRequest:
    """A request for a log from these offsets of stdout and stderr on."""
    request = action_pb2.StreamLogsRequest(
        id=operation_id, follow=follow, stdout_offset=offsets[0], stderr_offset=offsets[1], fence=fence
    )
    for stream in sorted(streams):
        request.streams.append(stream)  # type: ignore[arg-type]
    return request


async def resumed(stream: Stream, request: action_pb2.StreamLogsRequest) -> AsyncIterator[LogPiece]:
    """The pieces of one log to its end, over as many connections as it takes.

    Raises:
        NodeDown: the server stayed away.
    """
    failures = 0
    while True:
        try:
            async for record in stream(_PATH, request, action_pb2.LogRecord):
                failures = 0
                _remember(request, record)
                yield _piece_of(record)
            return
        except NodeDown:
            failures += 1
            if failures == _ATTEMPTS_MAX:
                raise
        await asyncio.sleep(_BACKOFF_S * 2**failures)


def _remember(request: action_pb2.StreamLogsRequest, record: action_pb2.LogRecord) -> None:
    if record.fence != request.fence:
        if request.fence:
            request.stdout_offset = request.stderr_offset = 0
        request.fence = record.fence
    end = record.offset + len(record.data)
    if record.stream == 1:
        request.stdout_offset = end
    else:
        request.stderr_offset = end


def _piece_of(record: action_pb2.LogRecord) -> LogPiece:
    at = record.printed_at.ToNanoseconds() / 1e9 if record.HasField("printed_at") else None
    return LogPiece(record.stream, record.offset, record.data, record.gap, at, record.fence)
