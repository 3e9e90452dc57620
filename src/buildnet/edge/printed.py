"""Pieces of logs as workers send them: bounded, and the bytes of a long one are not looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from buildnet._native import Body, log_chunk
from buildnet.edge.log_spool import RECORD_BYTES_MAX, LogPiece
from buildnet.errors import InvalidRequest
from buildnet.wire import times
from buildnet.wire._gen.buildnet.v1 import fleet_pb2

_OFFSET_MAX: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Printed:
    """A JoinRequest that is a piece of a log, as it came; `piece` is not checked."""

    fence: int
    piece: LogPiece


def said_of(body: bytes | Body) -> fleet_pb2.JoinRequest | Printed:
    """What a worker says. The bytes of a long piece of a log are not looked at.

    Raises:
        DecodeError: it is no JoinRequest.
    """
    if isinstance(body, bytes):
        return fleet_pb2.JoinRequest.FromString(body)
    if (chunk := log_chunk(body)) is None:
        return fleet_pb2.JoinRequest.FromString(memoryview(body))  # type: ignore[arg-type]
    fence, stream, offset, unix_ms, data = chunk
    return Printed(
        fence, LogPiece(stream, offset, data, None if unix_ms is None else max(0, times.bounded_ms(unix_ms)))
    )


def log_piece_of(chunk: fleet_pb2.LogChunk) -> LogPiece:
    """A piece of a log.

    Raises:
        InvalidRequest: as `checked_piece` has it.
    """
    printed_at_unix_ms = None
    if chunk.HasField("printed_at"):
        printed_at_unix_ms = max(0, times.unix_ms(chunk.printed_at))
    return checked_piece(LogPiece(chunk.stream, chunk.offset, chunk.data, printed_at_unix_ms))


def checked_piece(piece: LogPiece) -> LogPiece:
    """The piece, which is bounded.

    Raises:
        InvalidRequest: it is empty or too large, of no stream, or beyond what a stream can hold.
    """
    if piece.stream not in (fleet_pb2.LOG_STREAM_STDOUT, fleet_pb2.LOG_STREAM_STDERR):
        raise InvalidRequest(f"there is no stream {piece.stream}", field="log.stream")
    if not 0 < len(piece.data) <= RECORD_BYTES_MAX:
        raise InvalidRequest(f"a piece of a log has from 1 to {RECORD_BYTES_MAX} bytes", field="log.data")
    if piece.offset > _OFFSET_MAX:
        raise InvalidRequest(f"an offset over {_OFFSET_MAX}", field="log.offset")
    return piece
