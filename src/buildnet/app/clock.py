"""The only place that asks the machine what time it is or for randomness."""

from __future__ import annotations

import secrets
import time
from typing import Final

_DRAWN_AT_ONCE: Final = 64


class SystemClock:
    """The machine's clocks behind buildnet.ports.Clock."""

    def now_unix_ms(self) -> int:
        """Wall clock in milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Monotonic clock in seconds."""
        return time.monotonic()


_drawn: list[str] = []


def random_id() -> str:
    """A fresh 128-bit identity as 32 hex digits; the machine is asked for many at once."""
    if not _drawn:
        digits = secrets.token_hex(16 * _DRAWN_AT_ONCE)
        _drawn.extend(digits[start : start + 32] for start in range(0, len(digits), 32))
    return _drawn.pop()
