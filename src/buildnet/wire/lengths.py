"""The beginning of a field whose bytes are written by somebody else (protobuf's encoding, wire type 2). Fields may come
in any order, so such a field can be a message's last one.
"""

from __future__ import annotations

_OF_A_LENGTH = 2


def field_of(number: int, size_bytes: int) -> bytes:
    """Tag and length of field `number`; its `size_bytes` are to follow."""
    return _varint(number << 3 | _OF_A_LENGTH) + _varint(size_bytes)


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
