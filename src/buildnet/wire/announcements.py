"""Announcements and resources to and from their messages. What is signed is read from the exact bytes that came.

Refuses bytes over their limits before it unpacks them, and a body that is not in its one order.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

from google.protobuf.message import DecodeError

from buildnet.errors import InvalidRequest, TooLarge
from buildnet.model.resource import Announcement, Key, Resource, Value, check_key, check_resource
from buildnet.wire._gen.buildnet.v1 import resource_pb2

BODY_BYTES_MAX: Final = 4 << 20
UNPACKED_BYTES_MAX: Final = 16 << 20
_PACKED_FROM_BYTES: Final = 1024
PLAIN: Final = 0
ZLIB: Final = 1


def resource_message(resource: Resource, node: str = "") -> resource_pb2.Resource:
    """The message of a resource; `node` is left empty within an announcement."""
    message = resource_pb2.Resource(node_id=node, kind=resource.kind, name=resource.name, version=resource.version)
    for name, value in resource.attributes:
        if isinstance(value, int):
            message.attributes.add(name=name, number=value)
        else:
            message.attributes.add(name=name, text=value)
    return message


def resource_of(message: resource_pb2.Resource) -> Resource:
    """A resource from its message; unchecked: what comes from a node goes through `check_resource`."""
    attributes: list[tuple[str, Value]] = [
        (a.name, a.number if a.WhichOneof("value") == "number" else a.text) for a in message.attributes
    ]
    return Resource(message.kind, message.name, message.version, tuple(attributes))


def name_message(key: Key) -> resource_pb2.ResourceName:
    """The message of a kind and name."""
    return resource_pb2.ResourceName(kind=key[0], name=key[1])


def body_of(said: Announcement) -> tuple[int, bytes]:
    """How it is packed, and the bytes that are signed and sent.

    Raises:
        TooLarge: it does not fit in one announcement.
    """
    message = resource_pb2.AnnouncementBody(
        node_id=said.node,
        boot_id=said.boot,
        controller_id=said.controller,
        sequence=said.sequence,
        base_sequence=said.base,
        made_at_unix_ms=said.made_at_unix_ms,
        expires_at_unix_ms=said.expires_at_unix_ms,
        present=map(resource_message, said.present),
        gone=map(name_message, said.gone),
        left_out=said.left_out,
    )
    body = message.SerializeToString(deterministic=True)
    packed = zlib.compress(body, 6) if len(body) >= _PACKED_FROM_BYTES else body
    if len(body) > UNPACKED_BYTES_MAX or len(packed) > BODY_BYTES_MAX:
        raise TooLarge(
            f"an announcement of {len(said.present)} resources has {len(packed)} bytes, {len(body)} unpacked",
            limit_bytes=BODY_BYTES_MAX,
        )
    return (ZLIB, packed) if packed is not body else (PLAIN, body)


def announcement_of(packing: int, body: bytes) -> Announcement:
    """Read the bytes of `body_of`, from a node that is not trusted.

    Raises:
        TooLarge: over a limit, packed or unpacked.
        InvalidRequest: not an announcement, or not in its one order.
    """
    message = resource_pb2.AnnouncementBody()
    try:
        message.ParseFromString(_unpacked(packing, body))
    except DecodeError as error:
        raise InvalidRequest("the announcement cannot be decoded", field="announcement.body") from error
    present = tuple(map(resource_of, message.present))
    for resource in present:
        check_resource(resource)
    gone = tuple((name.kind, name.name) for name in message.gone)
    for key in gone:
        check_key(key)
    _check_rising(resource.key for resource in present)
    _check_rising(gone)
    if not {resource.key for resource in present}.isdisjoint(gone):
        raise InvalidRequest("the announcement calls a resource both present and gone", field="announcement.body")
    return Announcement(
        node=message.node_id,
        boot=message.boot_id,
        controller=message.controller_id,
        sequence=message.sequence,
        base=message.base_sequence,
        made_at_unix_ms=message.made_at_unix_ms,
        expires_at_unix_ms=message.expires_at_unix_ms,
        present=present,
        gone=gone,
        left_out=message.left_out,
    )


def check_size(body: bytes) -> None:
    """Refuse an announcement before its signature is looked at.

    Raises:
        TooLarge: it is over the limit.
    """
    if len(body) > BODY_BYTES_MAX:
        raise TooLarge(f"an announcement of {len(body)} bytes is over the limit", limit_bytes=BODY_BYTES_MAX)


def _unpacked(packing: int, body: bytes) -> bytes:
    check_size(body)
    if packing == PLAIN:
        return body
    if packing != ZLIB:
        raise InvalidRequest(f"packing {packing} is not known here", field="announcement.packing")
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(body, UNPACKED_BYTES_MAX)
    except zlib.error as error:
        raise InvalidRequest("the announcement cannot be unpacked", field="announcement.body") from error
    if unpacker.unconsumed_tail:
        raise TooLarge("an announcement is over the limit once unpacked", limit_bytes=UNPACKED_BYTES_MAX)
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidRequest("the announcement is cut off, or something follows it", field="announcement.body")
    return plain


def _check_rising(keys: Iterable[Key]) -> None:
    before = ("", "")
    for key in keys:
        if key <= before:
            raise InvalidRequest(f"{key[0]}:{key[1]} comes twice or out of order", field="announcement.body")
        before = key
