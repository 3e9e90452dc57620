"""How far a log was printed, sent and taken, in the order of printing. It reads no file and sends nothing.

What was sent and is not taken is remembered by its place alone: after a break it is sent again from the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

# A result or a heartbeat waits for no more than one. Each costs both ends some turns of their loops, whatever its size.
PIECE_BYTES_MAX: Final = 512 << 10
# A message costs more than its bytes: a program that prints single letters must not fill a session with them.
PIECE_COST_BYTES: Final = 512
WINDOW_BYTES: Final = 4 << 20
# While so much is on its way, a small piece waits for company: for more, or for word that something was taken.
_BUSY_BYTES: Final = 1 << 20
# What is printed so soon after the bytes before it, while those still wait, has their time.
_MOMENT_MS: Final = 10
# So many moments of printing are told apart while they wait; past it later ones share the time of the one before.
PIECES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """`size_bytes` of stream 1 or 2 from `offset` on; None where nobody remembers when they were printed."""

    stream: int
    offset: int
    size_bytes: int
    printed_at_unix_ms: int | None

    @property
    def end(self) -> int:
        """Where the next piece of the stream begins."""
        return self.offset + self.size_bytes

    def since(self, offset: int) -> Piece:
        """What of it lies at `offset` or beyond; that must not be nothing."""
        start = max(self.offset, offset)
        return replace(self, offset=start, size_bytes=self.end - start)


class LogProgress:
    """One attempt's log. Sizes and offsets are pairs: stdout, stderr."""

    def __init__(self) -> None:
        self._printed = [0, 0]
        self._taken = [0, 0]
        self._waiting: deque[Piece] = deque()
        self._sent: deque[Piece] = deque()
        self._cost_sent = 0

    @property
    def waits(self) -> bool:
        """Whether anything was printed that was not sent."""
        return bool(self._waiting)

    def printed(self, sizes: Sequence[int], now_unix_ms: int) -> int:
        """The streams are so long now; returns how many bytes of that are news."""
        news_bytes = 0
        for stream, size_bytes in ((1, sizes[0]), (2, sizes[1])):
            before = self._printed[stream - 1]
            if size_bytes > before:
                self._add(Piece(stream, before, size_bytes - before, now_unix_ms))
                self._printed[stream - 1] = size_bytes
                news_bytes += size_bytes - before
        return news_bytes

    def _add(self, piece: Piece) -> None:
        waiting = self._waiting
        full = len(waiting) >= PIECES_MAX
        if waiting and waiting[-1].stream == piece.stream:
            if full or _in_one_moment(waiting[-1], piece):
                waiting[-1] = _joined(waiting[-1], piece)
                return
        elif full:
            for index in range(len(waiting) - 2, -1, -1):
                if waiting[index].stream == piece.stream:
                    waiting[index] = _joined(waiting[index], piece)
                    return
        waiting.append(piece)

    def take(self) -> Piece | None:
        """What to send next, or None while there is nothing or the window is full. It counts as sent."""
        if not self._waiting or self._cost_sent >= WINDOW_BYTES:
            return None
        if self._cost_sent >= _BUSY_BYTES and len(self._waiting) == 1 and self._waiting[0].size_bytes < PIECE_BYTES_MAX:
            return None
        piece = self._waiting.popleft()
        if piece.size_bytes > PIECE_BYTES_MAX:
            self._waiting.appendleft(piece.since(piece.offset + PIECE_BYTES_MAX))
            piece = replace(piece, size_bytes=PIECE_BYTES_MAX)
        self._sent.append(piece)
        self._cost_sent += piece.size_bytes + PIECE_COST_BYTES
        return piece

    def taken(self, offsets: Sequence[int], *, resend: bool = False) -> None:
        """The controller has everything before `offsets`; `resend`: and nothing of what was sent beyond them."""
        if resend:
            for stream in (1, 2):
                self._remember(stream, offsets[stream - 1])
            self._taken = [min(offset, printed) for offset, printed in zip(offsets, self._printed, strict=True)]
            self.rewind()
            return
        # An answer to an earlier session may come late, and a controller may claim what it never got.
        self._taken = [
            min(max(offset, known), printed)
            for offset, known, printed in zip(offsets, self._taken, self._printed, strict=True)
        ]
        while self._sent and self._sent[0].end <= self._taken[self._sent[0].stream - 1]:
            self._cost_sent -= self._sent.popleft().size_bytes + PIECE_COST_BYTES

    def _remember(self, stream: int, offset: int) -> None:
        """Bring back what was taken once and is not there any more; of its times nothing is left."""
        known = [piece.offset for pieces in (self._sent, self._waiting) for piece in pieces if piece.stream == stream]
        first = min(known, default=self._printed[stream - 1])
        if offset < first:
            self._sent.appendleft(Piece(stream, offset, first - offset, None))

    def rewind(self) -> None:
        """Nothing is on its way any more: what is not taken waits again."""
        while self._sent:
            piece = self._sent.pop()
            taken = self._taken[piece.stream - 1]
            if piece.end > taken:
                self._waiting.appendleft(piece.since(taken))
        self._cost_sent = 0


def _in_one_moment(first: Piece, second: Piece) -> bool:
    if first.printed_at_unix_ms is None or second.printed_at_unix_ms is None:
        return first.printed_at_unix_ms is second.printed_at_unix_ms
    return 0 <= second.printed_at_unix_ms - first.printed_at_unix_ms < _MOMENT_MS


def _joined(first: Piece, second: Piece) -> Piece:
    return replace(first, size_bytes=first.size_bytes + second.size_bytes)
