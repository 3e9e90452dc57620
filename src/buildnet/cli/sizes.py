"""Sizes as people write and read them: `10 GiB` is 10 * 2**30 bytes, `10 GB` is 10 * 10**9. It guesses nothing."""

from __future__ import annotations

import re

import click

_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)B?", re.IGNORECASE)
_SIZE_BYTES_MAX = 2**63 - 1
_POWERS = ["", "K", "M", "G", "T", "P"]


def shown(size_bytes: int) -> str:
    """A size for a person, with binary units."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


class Size(click.ParamType[int]):
    """A size in bytes, plainly or with a unit."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes; usage error for anything that is not a size."""
        if isinstance(value, int):
            return value
        match = _TEXT.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size; write bytes, or a unit as in 10GiB or 500MB", param, ctx)
        number, power, binary = match.groups()
        size_bytes = int(float(number) * (1024 if binary else 1000) ** _POWERS.index(power.upper()))
        if size_bytes > _SIZE_BYTES_MAX:
            self.fail(f"{value!r} is more than any store holds", param, ctx)
        return size_bytes
