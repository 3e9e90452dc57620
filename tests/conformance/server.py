"""Raw calls to one server with a stock gRPC client and its stock limits. It retries nothing and hides no error."""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import grpc
import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs
from tests.conformance import zstd
from tests.conformance.digests import HASHERS, INFERRED, SHA256, digest_of, function_name, text_of

RE = "/build.bazel.remote.execution.v2."
CAS = RE + "ContentAddressableStorage/"
CACHE = RE + "ActionCache/"
BYTES = "/google.bytestream.ByteStream/"
Code = grpc.StatusCode
CALL_TIMEOUT_S = 10.0
# What gRPC takes in one message unless told otherwise, less room for what surrounds the data.
BATCH_BYTES = 4 * 1024 * 1024 - 64 * 1024
PIECE_BYTES = 256 * 1024
# Codes that tell a client that it asked for something wrong, not that the server is unwell.
CLIENTS_FAULT = (
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.OUT_OF_RANGE,
    Code.FAILED_PRECONDITION,
    Code.UNIMPLEMENTED,
    Code.ABORTED,
)
# Field 1000 of any message, a varint: the specification has none of this number.
UNKNOWN_FIELD = b"\xc0\x3e\x01"
INVALID = Code.INVALID_ARGUMENT.value[0]
ABSENT = Code.NOT_FOUND.value[0]


def fresh(size: int = 64) -> bytes:
    """Bytes that no server has seen."""
    return os.urandom(size)


def _outcome(call: Callable[[], Any]) -> tuple[Any, Any]:
    try:
        return call(), None
    except grpc.RpcError as error:
        return None, error


def refused(call: Callable[[], object], *codes: grpc.StatusCode) -> grpc.StatusCode:
    """The code of a call that must fail with one of `codes`, by default any that blames the client."""
    answer, error = _outcome(call)
    assert error is not None, f"the call succeeded: {str(answer)[:200]!r}"
    assert error.code() in (codes or CLIENTS_FAULT), f"{error.code().name}: {error.details()}"
    return error.code()


def allowed(call: Callable[[], Any], *codes: grpc.StatusCode) -> Any:
    """The answer of a call, or None where it is refused with one of `codes`."""
    answer, error = _outcome(call)
    if error is not None:
        assert error.code() in (codes or CLIENTS_FAULT), f"{error.code().name}: {error.details()}"
    return answer


class Server:
    """One server under one instance name; `ours` when nothing may stay untried.

    Digests are under `function` unless a call says otherwise.
    """

    def __init__(self, url: str, instance: str = "", token: str = "", *, ours: bool = False) -> None:
        self.ours = ours
        scheme, _, rest = url.rpartition("://")
        self.target = rest.rstrip("/")
        self.instance = instance
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        options = [("grpc.enable_http_proxy", 0)]
        if scheme == "grpcs":
            self.channel = grpc.secure_channel(self.target, grpc.ssl_channel_credentials(), options=options)
        else:
            self.channel = grpc.insecure_channel(self.target, options=options)

    def __enter__(self) -> Server:
        try:
            grpc.channel_ready_future(self.channel).result(timeout=CALL_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            pytest.exit(f"no server answers at {self.target}", returncode=2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    # What it says it can do.

    @functools.cached_property
    def capabilities(self) -> re.ServerCapabilities:
        """Read once."""
        request = re.GetCapabilitiesRequest(instance_name=self.instance)
        return self.unary(RE + "Capabilities/GetCapabilities", request, re.ServerCapabilities)

    @property
    def cache(self) -> re.CacheCapabilities:
        """As a cache."""
        return self.capabilities.cache_capabilities

    @functools.cached_property
    def functions(self) -> list[int]:
        """Advertised digest functions, SHA256 for a server that names none."""
        return list(self.cache.digest_functions) or [SHA256]

    @functools.cached_property
    def function(self) -> int:
        """The one that tests use when it does not matter which."""
        if SHA256 in self.functions:
            return SHA256
        known = [function for function in self.functions if function in HASHERS]
        if not known:
            pytest.exit(f"no digest function here is known to {self.target}: {self.functions}", returncode=2)
        return known[0]

    def lacks(self, reason: str) -> None:
        """Skip what cannot be tried for want of a module; of our own server everything is tried."""
        if self.ours:
            pytest.fail(f"{reason}; requirements/dev.in names it")
        pytest.skip(reason)

    def need_function(self, function: int) -> None:
        """Skip unless it is advertised and can be computed here."""
        if function not in self.functions:
            pytest.skip(f"{function_name(function)} is not advertised")
        if function not in HASHERS:
            self.lacks(f"no module here computes {function_name(function)}")

    def need_zstd(self, advertised: Sequence[int] | None = None) -> None:
        """Skip unless it is advertised, on ByteStream or in the list given, and there is a codec here."""
        if re.Compressor.ZSTD not in (self.cache.supported_compressors if advertised is None else advertised):
            pytest.skip("zstd is not advertised" if advertised is None else "zstd in batches is not advertised")
        if not zstd.AVAILABLE:
            self.lacks("no module here speaks zstd")

    def need_updates(self) -> None:
        """Skip unless results may be written."""
        if not self.cache.action_cache_update_capabilities.update_enabled:
            pytest.skip("writing results is not advertised")

    # Calls.

    def unary(
        self, path: str, request: Any, response: type[Any], metadata: Sequence[tuple[str, Any]] = (), **options: Any
    ) -> Any:
        call = self.channel.unary_unary(path, lambda m: m.SerializeToString(), response.FromString)
        return call(request, metadata=[*self.metadata, *metadata], timeout=CALL_TIMEOUT_S, **options)

    def _of(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"instance_name": self.instance, "digest_function": self.function, **fields}

    def missing(self, *digests: re.Digest, metadata: Sequence[tuple[str, Any]] = (), **fields: Any) -> list[str]:
        """`hash/size` of each digest that FindMissingBlobs reports."""
        request = re.FindMissingBlobsRequest(blob_digests=digests, **self._of(fields))
        answer = self.unary(CAS + "FindMissingBlobs", request, re.FindMissingBlobsResponse, metadata)
        return [text_of(digest) for digest in answer.missing_blob_digests]

    def update(self, *blobs: tuple[re.Digest, bytes], compressor: int = 0, **fields: Any) -> dict[str, int]:
        """BatchUpdateBlobs: `hash/size` to status code."""
        request = re.BatchUpdateBlobsRequest(**self._of(fields))
        for digest, data in blobs:
            request.requests.add(digest=digest, data=data, compressor=compressor)  # type: ignore[arg-type]
        answer = self.unary(CAS + "BatchUpdateBlobs", request, re.BatchUpdateBlobsResponse)
        return {text_of(r.digest): r.status.code for r in answer.responses}

    def read_batch(self, *digests: re.Digest, **fields: Any) -> list[Any]:
        """BatchReadBlobs: its responses."""
        request = re.BatchReadBlobsRequest(digests=digests, **self._of(fields))
        return list(self.unary(CAS + "BatchReadBlobs", request, re.BatchReadBlobsResponse).responses)

    def tree(self, root: re.Digest, **fields: Any) -> Iterator[re.GetTreeResponse]:
        """GetTree: its pages, as they come."""
        request = re.GetTreeRequest(root_digest=root, **self._of(fields))
        call = self.channel.unary_stream(
            CAS + "GetTree", re.GetTreeRequest.SerializeToString, re.GetTreeResponse.FromString
        )(request, metadata=self.metadata, timeout=CALL_TIMEOUT_S)
        try:
            yield from call
        finally:
            call.cancel()

    def split(self, digest: re.Digest, **fields: Any) -> re.SplitBlobResponse:
        request = re.SplitBlobRequest(blob_digest=digest, **self._of(fields))
        return self.unary(CAS + "SplitBlob", request, re.SplitBlobResponse)

    def splice(self, digest: re.Digest, chunks: Iterable[re.Digest], **fields: Any) -> re.SpliceBlobResponse:
        request = re.SpliceBlobRequest(blob_digest=digest, chunk_digests=chunks, **self._of(fields))
        return self.unary(CAS + "SpliceBlob", request, re.SpliceBlobResponse)

    def result(self, action: re.Digest, **fields: Any) -> re.ActionResult:
        """GetActionResult."""
        request = re.GetActionResultRequest(action_digest=action, **self._of(fields))
        return self.unary(CACHE + "GetActionResult", request, re.ActionResult)

    def store_result(self, action: re.Digest, result: re.ActionResult, **fields: Any) -> re.ActionResult:
        """UpdateActionResult."""
        request = re.UpdateActionResultRequest(action_digest=action, action_result=result, **self._of(fields))
        return self.unary(CACHE + "UpdateActionResult", request, re.ActionResult)

    def write(self, messages: Iterable[bs.WriteRequest], timeout_s: float = CALL_TIMEOUT_S) -> int:
        """ByteStream.Write: the committed size."""
        call = self.channel.stream_unary(
            BYTES + "Write", bs.WriteRequest.SerializeToString, bs.WriteResponse.FromString
        )
        answer = call(iter(messages), metadata=self.metadata, timeout=timeout_s)
        return int(answer.committed_size)

    def start_write(self, messages: Iterable[bs.WriteRequest]) -> Any:
        """A Write that goes on meanwhile; `cancel()` breaks it off."""
        call = self.channel.stream_unary(
            BYTES + "Write", bs.WriteRequest.SerializeToString, bs.WriteResponse.FromString
        )
        return call.future(iter(messages), metadata=self.metadata, timeout=CALL_TIMEOUT_S)

    def read_pieces(self, name: str, offset: int = 0, limit: int = 0) -> list[bytes]:
        """ByteStream.Read: the data of each message."""
        call = self.channel.unary_stream(BYTES + "Read", bs.ReadRequest.SerializeToString, bs.ReadResponse.FromString)
        request = bs.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        return [m.data for m in call(request, metadata=self.metadata, timeout=CALL_TIMEOUT_S)]

    def read(self, name: str, offset: int = 0, limit: int = 0) -> bytes:
        """ByteStream.Read: all of it."""
        return b"".join(self.read_pieces(name, offset, limit))

    def written(self, name: str) -> bs.QueryWriteStatusResponse:
        """ByteStream.QueryWriteStatus."""
        request = bs.QueryWriteStatusRequest(resource_name=name)
        return self.unary(BYTES + "QueryWriteStatus", request, bs.QueryWriteStatusResponse)

    # Names and blobs.

    def name(self, digest: re.Digest, *, function: int | None = None, kind: str = "blobs") -> str:
        """The resource name to read a blob by; `kind` is `blobs` or `compressed-blobs/COMPRESSOR`."""
        used = self.function if function is None else function
        parts = [self.instance, kind, "" if used in INFERRED else function_name(used).lower(), text_of(digest)]
        return "/".join(part for part in parts if part)

    def upload_name(self, digest: re.Digest, *, function: int | None = None, kind: str = "blobs") -> str:
        """A new resource name to write a blob by."""
        name = self.name(digest, function=function, kind=kind)
        prefix = f"{self.instance}/" if self.instance else ""
        return f"{prefix}uploads/{uuid.uuid4()}/{name.removeprefix(prefix)}"

    def digest(self, data: bytes) -> re.Digest:
        return digest_of(data, self.function)

    def put(self, data: bytes, function: int | None = None) -> re.Digest:
        """Store a blob by whichever call it fits."""
        used = self.function if function is None else function
        digest = digest_of(data, used)
        if len(data) > PIECE_BYTES:
            assert self.write(pieces(self.upload_name(digest, function=used), data)) == len(data)
        else:
            assert self.update((digest, data), digest_function=used) == {text_of(digest): 0}
        return digest

    def put_message(self, message: Any) -> re.Digest:
        """Store a message's bytes."""
        return self.put(message.SerializeToString(deterministic=True))

    def action(self) -> re.Digest:
        """Store a new Action, its Command and its input root, as must be done before a result is written."""
        command = self.put_message(re.Command(arguments=["true"]))
        root = self.put_message(re.Directory())
        return self.put_message(re.Action(command_digest=command, input_root_digest=root, salt=fresh()))


def pieces(
    name: str, data: bytes, *, size: int = PIECE_BYTES, finish: bool = True, first_offset: int = 0
) -> Iterator[bs.WriteRequest]:
    """An upload as a careful client sends it: the name once, offsets that add up, the end said."""
    starts = range(0, len(data), size) or [0]
    for start in starts:
        yield bs.WriteRequest(
            resource_name=name if start == 0 else "",
            write_offset=first_offset + start,
            data=data[start : start + size],
            finish_write=finish and start == starts[-1],
        )
