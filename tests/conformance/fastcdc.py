"""Where FastCDC 2020 cuts, byte by byte: slow and plain. tests/unit/test_conformance_fastcdc.py holds it against the
published tables and vectors, those of the image where that is named."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

_WORD = (1 << 64) - 1
# The published gear table: the comment in the specification says MD5 of the byte, the vectors say of 64 copies of it.
GEAR = [int.from_bytes(hashlib.md5(bytes([i]) * 64, usedforsecurity=False).digest()[:8]) for i in range(256)]
# The published masks, by the number of bits; from 2**5 to 2**25.
MASKS = [
    0x0000000001804110,
    0x0000000001803110,
    0x0000000018035100,
    0x0000001800035300,
    0x0000019000353000,
    0x0000590003530000,
    0x0000D90003530000,
    0x0000D90103530000,
    0x0000D90303530000,
    0x0000D90313530000,
    0x0000D90F03530000,
    0x0000D90303537000,
    0x0000D90703537000,
    0x0000D90707537000,
    0x0000D91707537000,
    0x0000D91747537000,
    0x0000D91767537000,
    0x0000D93767537000,
    0x0000D93777537000,
    0x0000D93777577000,
    0x0000DB3777577000,
]
_NORMALIZATION = 2


def chunk_sizes(
    data: bytes, average: int, *, seed: int = 0, smallest: int | None = None, largest: int | None = None
) -> Iterator[int]:
    """Sizes in bytes of the chunks of `data`, in order; the bounds are a quarter and four times the average."""
    low = average // 4 if smallest is None else smallest
    high = average * 4 if largest is None else largest
    gear = [value ^ seed for value in GEAR]
    bits = round(math.log2(average))
    hard, easy = MASKS[bits + _NORMALIZATION - 5], MASKS[bits - _NORMALIZATION - 5]
    start = 0
    while start < len(data):
        size = _cut(data, start, (low, average, high), (hard, easy), gear)
        yield size
        start += size


def _cut(data: bytes, start: int, sizes: tuple[int, int, int], masks: tuple[int, int], gear: list[int]) -> int:
    low, average, high = sizes
    rest = min(len(data) - start, high)
    if rest <= low:
        return rest
    rolling = 0
    # The published form looks at two bytes at once: it begins and changes masks at even places, and ends at one.
    spans = (
        (low // 2 * 2, min(average, rest) // 2 * 2, masks[0]),
        (min(average, rest) // 2 * 2, rest // 2 * 2, masks[1]),
    )
    for first, last, mask in spans:
        for at in range(first, last):
            rolling = ((rolling << 1) + gear[data[start + at]]) & _WORD
            if not rolling & mask:
                return at
    return rest
