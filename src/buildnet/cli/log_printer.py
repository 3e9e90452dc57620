"""Pieces of a log on a terminal or in a file: the bytes as they are, and before lines what was asked for."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING

from buildnet.cli import moments

if TYPE_CHECKING:
    from buildnet.client import LogPiece
    from buildnet.errors import NodeDown


class LogPrinter:
    """Writes stdout to stdout and stderr to stderr. With `timestamps` every line begins with when it was printed."""

    def __init__(self, *, timestamps: bool = False, outs: dict[int, IO[bytes]] | None = None) -> None:
        self._outs = outs or {1: sys.stdout.buffer, 2: sys.stderr.buffer}
        self._timestamps = timestamps
        self._fence = 0
        self._line_begins = {1: True, 2: True}

    def show(self, piece: LogPiece) -> None:
        """Write one piece, at once."""
        if piece.fence != self._fence:
            if self._fence:
                self._remark("the action runs again, from its beginning")
            self._fence = piece.fence
        if piece.gap:
            self._remark(f"not kept: what was printed to {('stdout', 'stderr')[piece.stream - 1]} before this")
        out = self._outs[piece.stream]
        out.write(self._stamped(piece) if self._timestamps else piece.data)
        out.flush()

    def broke(self, failure: NodeDown) -> None:
        """Say that the log goes on once the server is back."""
        self._remark(f"the connection broke, and is made again: {failure.message}")

    def _remark(self, text: str) -> None:
        self._outs[2].write(f"buildnet: {text}\n".encode())
        self._outs[2].flush()

    def _stamped(self, piece: LogPiece) -> bytes:
        at_unix_s = piece.printed_at_unix_s
        stamp = " " * 23 if at_unix_s is None else moments.shown(round(at_unix_s * 1000))
        prefix = stamp.encode() + b"  "
        lines = _lines(piece.data)
        shown = []
        for line in lines:
            shown.append(prefix + line if self._line_begins[piece.stream] else line)
            self._line_begins[piece.stream] = line.endswith(b"\n")
        return b"".join(shown)


def _lines(data: bytes) -> list[bytes]:
    """Lines by their newlines alone: a carriage return begins none."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])
