"""Instance names: read from the right, nested or empty, the same in requests and in resource names."""

from __future__ import annotations

import uuid

import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance.digests import text_of
from tests.conformance.scoring import MAY, MUST, SHOULD, rule
from tests.conformance.server import CLIENTS_FAULT, RE, Code, Server, allowed, fresh, pieces, refused

WHERE = "ContentAddressableStorage, instance_name"
OTHERS = ["", "other", "nested/other", "a/b/c/d"]
REFUSALS = (*CLIENTS_FAULT, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)
names = pytest.mark.parametrize("instance", OTHERS, ids=lambda name: name or "empty")


def put(server: Server, instance: str, data: bytes) -> re.Digest:
    """Store a blob under an instance; skip where the server has no such instance."""
    digest = server.digest(data)
    statuses = allowed(lambda: server.update((digest, data), instance_name=instance), *REFUSALS)
    if statuses is None or set(statuses.values()) != {0}:
        pytest.skip("other instances are not served")
    return digest


def joined(instance: str, rest: str) -> str:
    return f"{instance}/{rest}" if instance else rest


@rule(SHOULD, "GetCapabilitiesRequest.instance_name", "An instance is described or refused, never INTERNAL.")
@names
def test_capabilities_of_instances(server: Server, instance: str) -> None:
    request = re.GetCapabilitiesRequest(instance_name=instance)
    allowed(lambda: server.unary(RE + "Capabilities/GetCapabilities", request, re.ServerCapabilities), *REFUSALS)


@rule(MUST, WHERE, "What is stored under an instance by a batch is read under it by ByteStream.")
@names
def test_batches_and_streams_share_an_instance(server: Server, instance: str) -> None:
    data = fresh()
    digest = put(server, instance, data)
    assert server.read(joined(instance, f"blobs/{text_of(digest)}")) == data


@rule(MUST, WHERE, "What is written under an instance by ByteStream is found under it.")
@names
def test_streams_and_batches_share_an_instance(server: Server, instance: str) -> None:
    put(server, instance, fresh())
    data = fresh()
    digest = server.digest(data)
    name = joined(instance, f"uploads/{uuid.uuid4()}/blobs/{text_of(digest)}")
    assert server.write(pieces(name, data)) == len(data)
    assert server.missing(digest, instance_name=instance) == []


@rule(MUST, WHERE, "Under the empty instance the leading slash is left out.")
def test_the_empty_instance_has_no_slash(server: Server) -> None:
    digest = put(server, "", fresh())
    assert len(server.read(f"blobs/{text_of(digest)}")) == 64


@rule(SHOULD, WHERE, "A name with a leading slash is read as the empty instance or refused, never INTERNAL.")
def test_a_leading_slash(server: Server) -> None:
    data = fresh()
    digest = put(server, "", data)
    assert allowed(lambda: server.read(f"/blobs/{text_of(digest)}"), *REFUSALS) in (None, data)
    allowed(lambda: server.write(pieces(f"/uploads/{uuid.uuid4()}/blobs/{text_of(digest)}", data)), *REFUSALS)


@rule(MAY, WHERE, "Instances of several segments are served.")
def test_nested_instances_are_served(server: Server) -> None:
    digest = server.digest(fresh())
    assert server.missing(digest, instance_name="nested/other") == [text_of(digest)]


@rule(MAY, "GetActionResultRequest.instance_name", "Each instance has results of its own.")
def test_instances_have_results_of_their_own(server: Server) -> None:
    server.need_updates()
    action = server.action()
    server.store_result(action, re.ActionResult(exit_code=0, stdout_raw=b"x"))
    refused(lambda: server.result(action, instance_name=f"other-{uuid.uuid4()}"), *REFUSALS)


@rule(SHOULD, WHERE, "A reserved word is no instance: a name that cannot be parsed is refused by the client's fault.")
@pytest.mark.parametrize("instance", ["blobs", "uploads", "compressed-blobs", "a/blobs/b"])
def test_reserved_words_are_no_instances(server: Server, instance: str) -> None:
    digest = server.digest(fresh())
    allowed(lambda: server.read(f"{instance}/blobs/{text_of(digest)}"), *REFUSALS)
    allowed(lambda: server.missing(digest, instance_name=instance), *REFUSALS)
