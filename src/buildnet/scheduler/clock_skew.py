"""How far a peer's clock is from ours, by what its messages say of when they were sent. Pure; it reads no clock.

A message only comes later than it was sent: on its way, or unread while we stood still, it makes the peer's clock look
late and never early. So the greatest difference among messages is the nearest to the truth (as the clock filter of
RFC 5905, section 10, prefers the least delay): one message tells that a clock is ahead, several that one is behind.
"""

from __future__ import annotations

from typing import Final

WINDOW_MS: Final = 10_000
"""Of two such windows, the present and the one before, the message with the least delay counts. Longer than two beats
of a worker without leases; a clock that was set is seen as it is after two.
"""


class ClockSkew:
    """The peer's clock less ours. Times are Unix milliseconds: `sent` by the peer's clock, `heard` by ours."""

    __slots__ = ("_began_unix_ms", "_earlier_ms", "_present_ms", "_windows")

    def __init__(self, sent_unix_ms: int, heard_unix_ms: int) -> None:
        self._began_unix_ms = heard_unix_ms
        self._earlier_ms = self._present_ms = sent_unix_ms - heard_unix_ms
        self._windows = 0

    @property
    def ms(self) -> int:
        """How far it is ahead, at least; below zero: how far it is behind, at most."""
        return max(self._earlier_ms, self._present_ms)

    @property
    def certain_ms(self) -> int:
        """As `ms`; zero while what looks like a clock that is behind may be the delay of the few messages so far."""
        return self.ms if self._windows >= 2 else max(0, self.ms)

    def heard(self, sent_unix_ms: int, heard_unix_ms: int) -> None:
        """Take one more message into account."""
        skew_ms = sent_unix_ms - heard_unix_ms
        # Our own clock may have been set back.
        if 0 <= heard_unix_ms - self._began_unix_ms < WINDOW_MS:
            self._present_ms = max(self._present_ms, skew_ms)
            return
        self._earlier_ms, self._present_ms, self._began_unix_ms = self._present_ms, skew_ms, heard_unix_ms
        self._windows += 1
