"""Amounts of a machine as messages have them, and back. Nothing is checked here."""

from __future__ import annotations

from buildnet.model.amounts import Amounts
from buildnet.wire._gen.buildnet.v1 import action_pb2, fleet_pb2


def amounts_of(message: fleet_pb2.Amounts | action_pb2.ActionResources) -> Amounts:
    """What a message says."""
    return Amounts(message.cpu_milli, message.memory_bytes, message.disk_bytes, message.gpus)


def amounts_message(amounts: Amounts) -> fleet_pb2.Amounts:
    """Amounts as a message."""
    return fleet_pb2.Amounts(
        cpu_milli=amounts.cpu_milli,
        memory_bytes=amounts.memory_bytes,
        disk_bytes=amounts.disk_bytes,
        gpus=amounts.gpus,
    )
