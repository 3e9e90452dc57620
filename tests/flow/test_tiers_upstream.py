"""Another server as a tier: over TLS, with a bearer token. What stands there is a server of another make."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance.digests import text_of
from tests.conformance.server import CAS, RE, fresh, refused
from tests.engines import PASSWORD, Front, until


def certificate() -> tuple[bytes, bytes]:
    """A certificate for 127.0.0.1 that signs itself, and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return built.public_bytes(encoding), private


class Upstream:
    """Holds blobs in memory, offers no compression, and answers only those who show the token."""

    def __init__(self, chain: bytes, key: bytes) -> None:
        self.blobs: dict[str, bytes] = {}
        self.calls: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((self._handler(),))
        credentials = grpc.ssl_server_credentials([(key, chain)])
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _handler(self) -> grpc.GenericRpcHandler:
        def answered(path: str, request: Any, answer: Any) -> Any:
            def call(message: Any, context: grpc.ServicerContext) -> Any:
                if ("authorization", f"Bearer {PASSWORD}") not in context.invocation_metadata():
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
                self.calls.append(path)
                return answer(message)

            return grpc.unary_unary_rpc_method_handler(call, request.FromString, lambda m: m.SerializeToString())

        methods = {
            RE + "Capabilities/GetCapabilities": (re.GetCapabilitiesRequest, lambda _: re.ServerCapabilities()),
            CAS + "FindMissingBlobs": (re.FindMissingBlobsRequest, self._missing),
            CAS + "BatchReadBlobs": (re.BatchReadBlobsRequest, self._read),
            CAS + "BatchUpdateBlobs": (re.BatchUpdateBlobsRequest, self._update),
        }
        handlers = {path: answered(path, *how) for path, how in methods.items()}

        class Handler(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> Any:
                return handlers.get(details.method)

        return Handler()

    def _missing(self, request: Any) -> re.FindMissingBlobsResponse:
        absent = [digest for digest in request.blob_digests if digest.hash not in self.blobs]
        return re.FindMissingBlobsResponse(missing_blob_digests=absent)

    def _read(self, request: Any) -> re.BatchReadBlobsResponse:
        answer = re.BatchReadBlobsResponse()
        for digest in request.digests:
            assert list(request.acceptable_compressors) == [0]
            found = self.blobs.get(digest.hash)
            answer.responses.add(digest=digest, data=found or b"").status.code = 5 if found is None else 0
        return answer

    def _update(self, request: Any) -> re.BatchUpdateBlobsResponse:
        answer = re.BatchUpdateBlobsResponse()
        for blob in request.requests:
            self.blobs[blob.digest.hash] = blob.data
            answer.responses.add(digest=blob.digest)
        return answer


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    chain, key = certificate()
    (tmp_path / "ca.pem").write_bytes(chain)
    upstream = Upstream(chain, key)
    yield upstream
    upstream.stop()


def start(directory: Path, upstream: Upstream, **more: Any) -> Front:
    table = {
        "name": "up", "kind": "reapi", "address": f"grpcs://127.0.0.1:{upstream.port}", "token_env": "TEST_PASSWORD",
        "ca_file": str(directory / "ca.pem"), "write": "through", **more,
    }  # fmt: skip
    return Front(directory / "front", [table]).start()


def test_blobs_go_and_come_over_tls_with_a_token(upstream: Upstream, tmp_path: Path) -> None:
    front = start(tmp_path, upstream, required=True)
    try:
        with front.client() as server:
            data, theirs = fresh(2000), fresh(2000)
            digest = server.put(data)
            assert upstream.blobs == {digest.hash: data}
            other = server.digest(theirs)
            upstream.blobs[other.hash] = theirs
            assert server.missing(other) == []
            assert server.read(server.name(other)) == theirs
            # A server that lies is not believed.
            lie = server.digest(fresh(2000))
            upstream.blobs[lie.hash] = fresh(2000)
            refused(lambda: server.read(server.name(lie)), grpc.StatusCode.NOT_FOUND)
        assert front.counts("up")["damaged"] == 1
    finally:
        front.stop()


def test_who_shows_no_token_or_trusts_another_certificate_learns_nothing(upstream: Upstream, tmp_path: Path) -> None:
    chain, _ = certificate()
    (tmp_path / "other.pem").write_bytes(chain)
    for more in ({"token_env": "TEST_S3_KEY"}, {"ca_file": str(tmp_path / "other.pem")}):
        front = start(tmp_path, upstream, write="never", **more)
        try:
            until(lambda front=front: "does not answer at the start" in front.log, "it is reported")
            with front.client() as server:
                refused(lambda server=server: server.read(server.name(server.digest(fresh()))))
        finally:
            front.stop()
            (tmp_path / "front" / "log").unlink()
    assert upstream.calls == []


@pytest.fixture(params=[2, 3])
def ring(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Front]]:
    """Servers of which each asks the one before it, and the first the last."""
    ring: list[Front] = []

    def asks(other: Front) -> dict[str, Any]:
        return {"name": "next", "kind": "reapi", "address": other.url, "write": "never", "timeout": "30s"}

    try:
        for number in range(request.param):
            ring.append(Front(tmp_path / str(number), [asks(ring[-1])] if ring else []).start())
        ring[0].stop()
        ring[0].tiers = [asks(ring[-1])]
        ring[0].start()
        yield ring
    finally:
        for front in ring:
            front.stop()


def test_servers_that_ask_each_other_find_what_one_has_and_wait_for_nothing_that_none_has(ring: list[Front]) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(front.client()) for front in ring]
        data = fresh(2000)
        digest = servers[0].put(data)
        assert [server.read(server.name(digest)) for server in reversed(servers)] == [data] * len(servers)

        def finds_nothing(number: int) -> None:
            server, absent = servers[number % len(servers)], servers[0].digest(b"%d" % (number // len(servers)))
            refused(lambda: server.read(server.name(absent)), grpc.StatusCode.NOT_FOUND)
            refused(lambda: server.result(absent), grpc.StatusCode.NOT_FOUND)
            assert server.missing(absent) == [text_of(absent)]

        # More at once than one server brings at once, each of them asked for everywhere.
        with ThreadPoolExecutor(100) as threads:
            list(threads.map(finds_nothing, range(100 * len(servers))))
    counts = [front.counts("next") for front in ring]
    assert [(count["errors"], count["left_alone"]) for count in counts] == [(0, 0)] * len(ring)
