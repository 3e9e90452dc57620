"""Delays before trying again: doubling, bounded, jittered. It never says to give up."""

from __future__ import annotations

from typing import Final

from buildnet.worker.identity import Randomness

_STABLE_S: Final = 5.0


class Backoff:
    """The next delay, from `first_s` up to `max_s`; the upper half of each is random, so that a
    fleet spreads out.
    """

    def __init__(self, first_s: float, max_s: float, rng: Randomness) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._rng = rng
        self._ceiling_s = first_s

    def lasted(self, duration_s: float) -> None:
        """A connection has ended; one that held for a while starts the delays anew."""
        if duration_s >= _STABLE_S:
            self._ceiling_s = self._first_s

    def next_s(self) -> float:
        """Seconds to wait now."""
        ceiling_s = self._ceiling_s
        self._ceiling_s = min(self._max_s, ceiling_s * 2)
        return ceiling_s * (0.5 + self._rng.random() / 2)
