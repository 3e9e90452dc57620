"""Capabilities: what a server says of itself is set, is in range and agrees with itself."""

from __future__ import annotations

import grpc
import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.longrunning import operations_pb2 as op
from tests.conformance.execution import EXECUTION
from tests.conformance.scoring import MUST, SHOULD, rule
from tests.conformance.server import CALL_TIMEOUT_S, Code, Server, fresh


@rule(MUST, "Capabilities.GetCapabilities", "It has no errors of its own: an instance that is served is described.")
def test_it_answers(server: Server) -> None:
    assert server.capabilities.ByteSize() > 0


@rule(MUST, "ServerCapabilities.low_api_version", "The oldest and the newest version are told, in that order.")
def test_versions_are_told(server: Server) -> None:
    low, high = server.capabilities.low_api_version, server.capabilities.high_api_version
    assert high.major >= 2
    assert (low.major, low.minor, low.patch) <= (high.major, high.minor, high.patch)


@rule(MUST, "ServerCapabilities.high_api_version", "Version 2 is among the versions spoken.")
def test_version_2_is_spoken(server: Server) -> None:
    assert server.capabilities.low_api_version.major <= 2 <= server.capabilities.high_api_version.major


@rule(MUST, "ServerCapabilities.deprecated_api_version", "Where it is told, it is no later than the oldest version.")
def test_the_deprecated_version_is_the_oldest(server: Server) -> None:
    if not server.capabilities.HasField("deprecated_api_version"):
        pytest.skip("no version is told to be deprecated")
    deprecated, low = server.capabilities.deprecated_api_version, server.capabilities.low_api_version
    assert (deprecated.major, deprecated.minor, deprecated.patch) <= (low.major, low.minor, low.patch)


@rule(SHOULD, "Capabilities.GetCapabilities", "ExecutionCapabilities are told where Execute is served, not elsewhere.")
def test_only_an_executor_describes_itself(server: Server) -> None:
    request = re.ExecuteRequest(instance_name=server.instance, action_digest=server.digest(fresh()))
    stream = server.channel.unary_stream(
        EXECUTION + "Execute", re.ExecuteRequest.SerializeToString, op.Operation.FromString
    )
    try:
        list(stream(request, metadata=server.metadata, timeout=CALL_TIMEOUT_S))
        served = True
    except grpc.RpcError as error:
        if error.code() in (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED):
            pytest.skip("this client may not execute")
        served = error.code() != Code.UNIMPLEMENTED
    assert server.capabilities.HasField("execution_capabilities") == served


@rule(SHOULD, "Capabilities.GetCapabilities", "An endpoint with a CAS or an action cache returns CacheCapabilities.")
def test_a_cache_describes_itself(server: Server) -> None:
    assert server.capabilities.HasField("cache_capabilities")


@rule(MUST, "CacheCapabilities.digest_functions", "It names the digest functions that are supported, and no UNKNOWN.")
def test_digest_functions_are_named(server: Server) -> None:
    assert server.cache.digest_functions
    assert re.DigestFunction.UNKNOWN not in server.cache.digest_functions


@rule(MUST, "ExecutionCapabilities.digest_function", "The singular field is set to a value other than UNKNOWN.")
def test_the_executor_has_a_digest_function(server: Server) -> None:
    if not server.capabilities.HasField("execution_capabilities"):
        pytest.skip("execution is not advertised")
    assert server.capabilities.execution_capabilities.digest_function != re.DigestFunction.UNKNOWN


@rule(MUST, "ExecutionCapabilities.digest_functions", "If it is set, it contains digest_function.")
def test_the_executors_functions_hold_its_function(server: Server) -> None:
    execution = server.capabilities.execution_capabilities
    if not execution.digest_functions:
        pytest.skip("execution names no list of digest functions")
    assert execution.digest_function in execution.digest_functions


@rule(MUST, "CacheCapabilities.max_batch_total_size_bytes", "It is a size, or 0 for no limit.")
def test_the_batch_limit_is_a_size(server: Server) -> None:
    assert server.cache.max_batch_total_size_bytes >= 0


@rule(MUST, "CacheCapabilities.max_cas_blob_size_bytes", "It is a size, or 0 for no limit.")
def test_the_blob_limit_is_a_size(server: Server) -> None:
    assert server.cache.max_cas_blob_size_bytes >= 0


@rule(SHOULD, "CacheCapabilities.symlink_absolute_path_strategy", "It is set: UNKNOWN is an invalid value.")
def test_the_symlink_strategy_is_told(server: Server) -> None:
    assert server.cache.symlink_absolute_path_strategy != re.SymlinkAbsolutePathStrategy.UNKNOWN


@rule(MUST, "PriorityCapabilities.PriorityRange", "A range goes from its smallest number to its largest.")
def test_priority_ranges_are_ranges(server: Server) -> None:
    cache = server.cache.cache_priority_capabilities
    execution = server.capabilities.execution_capabilities.execution_priority_capabilities
    ranges = [*cache.priorities, *execution.priorities]
    if not ranges:
        pytest.skip("no priorities are advertised")
    assert all(r.min_priority <= r.max_priority for r in ranges)


@rule(MUST, "FastCdc2020Params.avg_chunk_size_bytes", "The value is between 1 KiB and 1 MiB.")
def test_fastcdc_is_set_in_range(server: Server) -> None:
    if not server.cache.HasField("fast_cdc_2020_params"):
        pytest.skip("FastCDC is not advertised")
    assert 1 << 10 <= server.cache.fast_cdc_2020_params.avg_chunk_size_bytes <= 1 << 20


@rule(MUST, "RepMaxCdcParams.min_chunk_size_bytes", "The value is at least 64 bytes.")
def test_repmaxcdc_is_set_in_range(server: Server) -> None:
    if not server.cache.HasField("rep_max_cdc_params"):
        pytest.skip("RepMaxCDC is not advertised")
    assert server.cache.rep_max_cdc_params.min_chunk_size_bytes >= 64
