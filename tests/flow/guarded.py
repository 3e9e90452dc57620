"""A controller whose callers must show something, and stock clients that do."""

from __future__ import annotations

import http.client
import itertools
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from buildnet.access import keys, tokens
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from tests.conftest import Role

RE = "/build.bazel.remote.execution.v2."
CAS = RE + "ContentAddressableStorage/"
AC = RE + "ActionCache/"
Code = grpc.StatusCode
_IDS = itertools.count()


@dataclass
class Guarded:
    """One controller, as its callers see it."""

    role: Role
    ca_file: Path | None = None

    @property
    def listen(self) -> str:
        return str(self.role.ready["listen"])

    @property
    def state(self) -> Path:
        return Path(self.role.ready["state"])

    def token(self, *scopes: str, expires_s: float = 600, valid_s: float = 0, **more: Any) -> str:
        """A token of this controller."""
        now = int(time.time())
        token = tokens.Token(
            id=more.pop("id", f"t{next(_IDS)}"),
            scopes=scopes,
            expires_unix_s=int(now + expires_s),
            valid_from_unix_s=int(now + valid_s) if valid_s else 0,
            subject=more.pop("subject", "tester"),
            **more,
        )
        return tokens.sign(keys.load_or_create(self.state), token)

    def caller(self, token: str = "", certificate: tuple[bytes, bytes] | None = None) -> Caller:
        """Somebody who shows a token, a certificate or nothing."""
        return Caller(self, token, certificate)


class Caller:
    """Calls one server by gRPC and HTTP, always with the same credentials."""

    def __init__(self, server: Guarded, token: str, certificate: tuple[bytes, bytes] | None) -> None:
        self._server = server
        self._token = token
        if server.ca_file is None:
            self._channel = grpc.insecure_channel(server.listen)
        else:
            chain, key = certificate or (None, None)
            credentials = grpc.ssl_channel_credentials(server.ca_file.read_bytes(), key, chain)
            self._channel = grpc.secure_channel(server.listen, credentials)

    def raw(self, path: str, body: bytes = b"") -> list[bytes]:
        """Any call of any kind with one request; raises grpc.RpcError."""
        call = self._channel.stream_stream(path, None, None)
        metadata = (("authorization", f"Bearer {self._token}"),) if self._token else ()
        return list(call(iter([body]), timeout=20, metadata=metadata))

    def code(self, path: str, body: bytes = b"") -> Code:
        """The status of any call."""
        try:
            self.raw(path, body)
        except grpc.RpcError as error:
            return error.code()
        return Code.OK

    def ask(self, path: str, request: Any, response: type[Any]) -> Any:
        """A unary call."""
        return response.FromString(self.raw(path, request.SerializeToString())[0])

    def put(self, data: bytes, instance: str = "") -> re.Digest:
        """Store a blob."""
        digest = digest_message(Digest.of(data))
        request = re.BatchUpdateBlobsRequest(instance_name=instance)
        request.requests.add(digest=digest, data=data)
        answer = self.ask(CAS + "BatchUpdateBlobs", request, re.BatchUpdateBlobsResponse)
        assert answer.responses[0].status.code == 0
        return digest

    def update(self, action: re.Digest, exit_code: int, instance: str = "") -> None:
        """Write a result, told from others by its exit code."""
        request = re.UpdateActionResultRequest(instance_name=instance, action_digest=action)
        request.action_result.exit_code = exit_code
        self.ask(AC + "UpdateActionResult", request, re.ActionResult)

    def result(self, action: re.Digest, instance: str = "") -> int | None:
        """The exit code of an action's result; None when there is none."""
        request = re.GetActionResultRequest(instance_name=instance, action_digest=action)
        try:
            return int(self.ask(AC + "GetActionResult", request, re.ActionResult).exit_code)
        except grpc.RpcError as error:
            if error.code() is Code.NOT_FOUND:
                return None
            raise

    def http(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
        """One HTTP request: status, headers, body."""
        host, port = self._server.listen.rsplit(":", 1)
        if self._server.ca_file is None:
            connection = http.client.HTTPConnection(host, int(port), timeout=20)
        else:
            context = ssl.create_default_context(cafile=str(self._server.ca_file))
            connection = http.client.HTTPSConnection(host, int(port), timeout=20, context=context)
        if self._token and "authorization" not in headers:
            headers["authorization"] = f"Bearer {self._token}"
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def close(self) -> None:
        self._channel.close()
