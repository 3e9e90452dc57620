"""Moments as people write them: `10m` ago, or a date and time of ISO 8601. It guesses nothing; now is an argument."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from buildnet.errors import InvalidRequest

_AGO = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|w)")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_EPOCH = datetime.fromtimestamp(0, UTC)


def unix_ms(text: str, now_unix_ms: int) -> int:
    """Unix milliseconds of a moment; a time without a zone is the machine's.

    Raises:
        InvalidRequest: it is neither.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(0, now_unix_ms - round(float(ago[1]) * _UNIT_MS[ago[2]]))
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        message = f"{text!r} is no moment; write how long ago, as in 10m, 2h or 7d, or a time, as in 2031-05-01T12:00"
        raise InvalidRequest(message, field="since") from error
    return max(0, (moment - _EPOCH) // timedelta(milliseconds=1))


def shown(at_unix_ms: int) -> str:
    """A moment for a person, in UTC."""
    try:
        moment = _EPOCH + timedelta(milliseconds=at_unix_ms)
    except OverflowError:
        return f"{at_unix_ms} ms"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"
