"""An announcement is believed once, from the node that made it, while it lasts, and by whom it was made for.

Refuses what is forged, replayed, expired, for another controller, of another node or boot, or signed by another key
than the first that was seen for the node (docs/design/catalog.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from buildnet._native import SigningKey, is_signed
from buildnet.errors import BadSignature, Expired, InvalidRequest, Replayed
from buildnet.model.resource import Announcement

DOMAIN: Final = b"buildnet.v1.Announcement\0"
VALID_MS: Final = 180_000
"""For how long a node's announcement lasts; it makes the next after a third of it."""
VALID_MS_MAX: Final = 600_000
SKEW_MS: Final = 30_000
RESOURCES_MAX: Final = 20_000
"""Of one node."""


def signed_bytes(packing: int, body: bytes) -> bytes:
    """What the signature is over: nothing that is signed for another purpose begins so."""
    return DOMAIN + bytes([packing]) + body


def sign(key: SigningKey, packing: int, body: bytes) -> bytes:
    """The signature of an announcement, 64 bytes."""
    return key.sign(signed_bytes(packing, body))


def verify(public_key: bytes, packing: int, body: bytes, signature: bytes) -> None:
    """Check a signature.

    Raises:
        BadSignature: it is not this key's over these bytes, or the key is none.
    """
    if packing not in range(256) or not is_signed(public_key, signature, signed_bytes(packing, body)):
        raise BadSignature("the announcement is not signed by the key that it shows")


@dataclass(frozen=True, slots=True)
class Heard:
    """What was last believed of a node."""

    boot: str
    sequence: int
    made_at_unix_ms: int
    expires_at_unix_ms: int


@dataclass(frozen=True, slots=True)
class Session:
    """Within which session an announcement came: of whom, and to whom."""

    node: str
    boot: str
    controller: str


def check(said: Announcement, session: Session, heard: Heard | None, now_unix_ms: int, *, held: bool) -> Heard:
    """Decide whether to believe an announcement whose signature holds; return what is then known of the node.

    Args:
        said: the announcement.
        session: within which it came.
        heard: what was last believed of the node, in any session.
        now_unix_ms: the controller's clock.
        held: whether the state that `heard` left is still there to be changed.

    Raises:
        BadSignature: it is of another node or boot than the session's, or for another controller.
        Replayed: it, or one that was made later, was believed before.
        Expired: its time is over, or has not come, or would be too long.
        InvalidRequest: it changes a state that is not the last one believed: the node must say all again.
    """
    if (said.node, said.boot) != (session.node, session.boot):
        raise BadSignature(f"the announcement is of node {said.node[:40]!r} or a boot that this session is not of")
    if said.controller != session.controller:
        raise BadSignature("the announcement was made for another controller")
    lasts_ms = said.expires_at_unix_ms - said.made_at_unix_ms
    if not 0 < lasts_ms <= VALID_MS_MAX:
        raise InvalidRequest(f"an announcement lasts up to {VALID_MS_MAX // 1000} s", field="expires_at_unix_ms")
    if now_unix_ms >= said.expires_at_unix_ms + SKEW_MS:
        late_s = (now_unix_ms - said.made_at_unix_ms) / 1000
        raise Expired(
            f"the announcement was made {late_s:.0f} s ago by this controller's clock and has expired; "
            "set both machines' clocks, or it was replayed"
        )
    if said.made_at_unix_ms > now_unix_ms + SKEW_MS:
        early_s = (said.made_at_unix_ms - now_unix_ms) / 1000
        raise Expired(
            f"the announcement is from {early_s:.0f} s ahead of this controller's clock; set both machines' clocks"
        )
    if heard is not None:
        same = heard.boot == said.boot
        if same and said.sequence <= heard.sequence:
            raise Replayed(f"announcement {said.sequence} was heard before; the last was {heard.sequence}")
        if not same and said.made_at_unix_ms <= heard.made_at_unix_ms:
            raise Replayed("the announcement is older than one of a later boot")
    if said.base and not (held and heard is not None and heard.boot == said.boot and heard.sequence == said.base):
        raise InvalidRequest(
            f"the announcement changes what {said.base} said, which is not known here; announce everything",
            field="base_sequence",
        )
    return Heard(said.boot, said.sequence, said.made_at_unix_ms, said.expires_at_unix_ms)
