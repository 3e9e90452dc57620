"""Which contracts this server shows, and which calls the door answers by itself."""

from __future__ import annotations

from buildnet.wire._gen._pool import POOL
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2
from buildnet.wire._gen.buildnet.v1 import (
    action_pb2,
    cache_pb2,
    fleet_pb2,
    job_pb2,
    ledger_pb2,
    resource_pb2,
    transport_pb2,
)
from buildnet.wire._gen.google.bytestream import bytestream_pb2
from buildnet.wire._gen.google.longrunning import operations_pb2
from buildnet.wire._gen.grpc.health.v1 import health_pb2
from buildnet.wire._gen.grpc.reflection.v1 import reflection_pb2
from buildnet.wire._gen.grpc.reflection.v1alpha import reflection_pb2 as reflection_alpha_pb2

__all__ = ["BYTE_CALLS", "DECLARED", "POOL", "SERVICES"]

DECLARED = tuple(
    module.DESCRIPTOR
    for module in (
        remote_execution_pb2,
        bytestream_pb2,
        operations_pb2,
        health_pb2,
        action_pb2,
        cache_pb2,
        fleet_pb2,
        job_pb2,
        ledger_pb2,
        resource_pb2,
        transport_pb2,
    )
)

SERVICES = tuple(
    service.full_name
    for file in (*DECLARED, reflection_pb2.DESCRIPTOR, reflection_alpha_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
)

_RE = "/build.bazel.remote.execution.v2."

# Answered in native/door/src/server.rs.
BYTE_CALLS = (
    _RE + "Capabilities/GetCapabilities",
    _RE + "ContentAddressableStorage/FindMissingBlobs",
    _RE + "ContentAddressableStorage/BatchUpdateBlobs",
    _RE + "ContentAddressableStorage/BatchReadBlobs",
    _RE + "ContentAddressableStorage/GetTree",
    _RE + "ActionCache/GetActionResult",
    _RE + "ActionCache/UpdateActionResult",
    "/google.bytestream.ByteStream/Read",
    "/google.bytestream.ByteStream/Write",
    "/google.bytestream.ByteStream/QueryWriteStatus",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
)
