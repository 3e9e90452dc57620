"""What people read of where a node stands, and the token that it joins with."""

from __future__ import annotations

from typing import Final

from buildnet.wire._gen.buildnet.v1 import fleet_pb2

NODE_STATES: Final = {
    fleet_pb2.NODE_STATE_JOINING: "joining",
    fleet_pb2.NODE_STATE_ACTIVE: "active",
    fleet_pb2.NODE_STATE_CORDONED: "cordoned",
    fleet_pb2.NODE_STATE_DRAINING: "draining",
    fleet_pb2.NODE_STATE_LEFT: "left",
    fleet_pb2.NODE_STATE_REMOVED: "removed",
}

JOIN_TOKEN_STATES: Final = {
    fleet_pb2.JOIN_TOKEN_STATE_VALID: "valid",
    fleet_pb2.JOIN_TOKEN_STATE_USED: "used",
    fleet_pb2.JOIN_TOKEN_STATE_EXPIRED: "expired",
    fleet_pb2.JOIN_TOKEN_STATE_REVOKED: "revoked",
}
