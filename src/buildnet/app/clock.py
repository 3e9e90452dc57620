"""The only place that asks the machine what time it is or for randomness."""

from __future__ import annotations

import secrets
import time


class SystemClock:
    """The machine's clocks behind buildnet.ports.Clock."""

    def now_unix_ms(self) -> int:
        """Wall clock in milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Monotonic clock in seconds."""
        return time.monotonic()


def random_id() -> str:
    """A fresh 128-bit identity as 32 hex digits."""
    return secrets.token_hex(16)
