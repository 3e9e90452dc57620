"""Sizes and durations as people write them. A number without a unit is refused: nobody can tell what it meant."""

from __future__ import annotations

import re

from buildnet.errors import InvalidRequest

_SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40} | {
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DECIMAL = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,3}))?")
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]+)")


def size_bytes_of(text: str, field: str = "size") -> int:
    """Bytes of `50 GiB`, `1.5TB` and the like.

    Raises:
        InvalidRequest: it is not a size.
    """
    return _parse(text, _SIZES, field, "a size; write a number with B, KiB, MiB, GiB, TiB, MB, GB or TB, as in 50 GiB")


def duration_s_of(text: str, field: str = "duration") -> int:
    """Seconds of `15m`, `30d` and the like.

    Raises:
        InvalidRequest: it is not a duration.
    """
    return _parse(text, _DURATIONS, field, "a duration; write a number with s, m, h, d or w, as in 15m")


def milli_of(text: str, field: str = "cpus") -> int:
    """Thousandths of a number such as `2` or `0.5`.

    Raises:
        InvalidRequest: it is no number, is not over zero, or has more than three places.
    """
    match = _DECIMAL.fullmatch(text.strip())
    milli = int(match[1]) * 1000 + int((match[2] or "").ljust(3, "0")) if match else 0
    if not milli:
        raise InvalidRequest(f"{text!r} is not a number over 0 with at most three places, as in 0.5", field=field)
    return milli


def _parse(text: str, units: dict[str, int], field: str, what: str) -> int:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in units:
        raise InvalidRequest(f"{text!r} is not {what}", field=field)
    return int(float(match[1]) * units[match[2]]) if "." in match[1] else int(match[1]) * units[match[2]]
