"""Logs that are followed over broken connections: what came is remembered as offsets, and nothing is shown twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing
from typing import Final

from buildnet._native import Body, log_record
from buildnet.client.patience import Absence, OnBreak
from buildnet.client.results import LogPiece
from buildnet.errors import InvariantBroken, NodeDown
from buildnet.wire._gen.buildnet.v1 import action_pb2

PATH: Final = "/buildnet.v1.ActionService/StreamLogs"

Records = Callable[[bytes], AsyncGenerator[bytes | Body, None]]
"""Encoded LogRecords for an encoded StreamLogsRequest, over a connection of their own."""


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


async def resumed(
    records: Records, request: action_pb2.StreamLogsRequest, absence: Absence, on_break: OnBreak | None = None
) -> AsyncIterator[LogPiece]:
    """The pieces of one log to its end, over as many connections as it takes. `on_break` hears of each that broke, once
    until something comes again.

    Raises:
        NodeDown: the server stayed away for longer than `absence` bears.
    """
    while True:
        try:
            async with aclosing(records(request.SerializeToString())) as messages:
                async for message in messages:
                    absence.over()
                    piece = _piece_of(message)
                    _remember(request, piece)
                    yield piece
            return
        except NodeDown as error:
            failure = error
        await absence.broke(failure, on_break)


def _remember(request: action_pb2.StreamLogsRequest, piece: LogPiece) -> None:
    if piece.fence != request.fence:
        if request.fence:
            request.stdout_offset = request.stderr_offset = 0
        request.fence = piece.fence
    end = piece.offset + len(piece.data)
    if piece.stream == 1:
        request.stdout_offset = end
    else:
        request.stderr_offset = end


def _piece_of(message: bytes | Body) -> LogPiece:
    try:
        return LogPiece(*log_record(message))
    except ValueError as error:
        raise InvariantBroken(f"the server sent what is no piece of a log: {error}") from error
