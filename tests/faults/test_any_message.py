"""Messages that no client would send, to every method: each is answered, and no answer blames the server.

A permanent error that is told as INTERNAL, UNKNOWN or UNAVAILABLE is tried again by clients, five times.
`BUILDNET_FUZZ_S` is for how long each test sends them; the seed is printed with what it finds.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import pkgutil
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

import buildnet.wire._gen as generated
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.longrunning import operations_pb2
from tests.conftest import Role

SECONDS = float(os.environ.get("BUILDNET_FUZZ_S", "5"))
CALL_TIMEOUT_S = 0.5
EXECUTE_TIMEOUT_S = 20
ANSWERS_MAX = 20
DEPTH_MAX = 5
BLAMED = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS}
HASH = "a" * 64
EMPTY = hashlib.sha256().hexdigest()
TEXTS = (
    *("", "a", "..", "/", "//", "local", "sha256", "operations/1", "-1", "\x00", "é\u202e", "9" * 40, "x" * 5000),
    *("sh", "/bin/true", "OSFamily", "linux", "gcc>=12", "arch=x86_64", "%s", "bin/../../x", "a/b", "a//b", "a/"),
    *("blobs/", f"blobs/{HASH}/10", f"uploads/{'1' * 36}/blobs/{HASH}/5", f"compressed-blobs/zstd/{HASH}/3"),
)
HASHES = (EMPTY, HASH, HASH.upper(), "a" * 40, "a" * 32, "a" * 96, "a" * 128, "zz", "")
DATA = (b"", b"x", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x00" + b"\xff" * 40, b"y" * 100_000)
FLOATS = (0.0, 1.5, -1e300, float("nan"), float("inf"))


def _methods() -> list[MethodDescriptor]:
    services = {}
    for module in pkgutil.walk_packages(generated.__path__, f"{generated.__name__}."):
        descriptor = getattr(importlib.import_module(module.name), "DESCRIPTOR", None)
        for service in descriptor.services_by_name.values() if descriptor is not None else ():
            services[service.full_name] = service
    return [method for _, service in sorted(services.items()) for method in service.methods]


class Sender:
    """Makes messages from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def message(self, kind: Descriptor, depth: int = 0) -> Any:
        """One with most of its fields, each of a value that is at some edge."""
        made = message_factory.GetMessageClass(kind)()
        for field in kind.fields:
            if self.random.random() < 0.35:
                continue
            if field.message_type is None:
                values = [self.value(field) for _ in range(self.count(field))]
                try:
                    getattr(made, field.name).extend(values) if field.is_repeated else setattr(
                        made, field.name, values[0]
                    )
                except (ValueError, TypeError):
                    # A number beyond the field's range.
                    continue
            elif depth < DEPTH_MAX and not field.message_type.GetOptions().map_entry:
                for _ in range(self.count(field)):
                    inner = self.message(field.message_type, depth + 1)
                    (getattr(made, field.name).add() if field.is_repeated else getattr(made, field.name)).CopyFrom(
                        inner
                    )
        return made

    def count(self, field: FieldDescriptor) -> int:
        return self.random.choice((1, 2, 3, 40)) if field.is_repeated else 1

    def value(self, field: FieldDescriptor) -> Any:
        choose = self.random.choice
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                if field.type == FieldDescriptor.TYPE_BYTES:
                    return choose((*DATA, self.random.randbytes(20)))
                return choose(HASHES if "hash" in field.name else TEXTS)
            case FieldDescriptor.CPPTYPE_BOOL:
                return choose((False, True))
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return choose(FLOATS)
            case FieldDescriptor.CPPTYPE_ENUM:
                return choose((0, 1, 2, 3, 99))
        bits = 64 if field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else 32
        return choose((0, 1, -1, 7, 100, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 2**bits - 1))

    def body(self, kind: Descriptor) -> bytes:
        """A message, one with a byte altered, or no message at all."""
        chance = self.random.random()
        if chance < 0.1:
            return self.random.randbytes(self.random.choice((1, 10, 1000)))
        data = bytearray(self.message(kind).SerializeToString())
        if chance < 0.25 and data:
            data[self.random.randrange(len(data))] ^= self.random.randrange(1, 256)
        return bytes(data)


@pytest.fixture
def channel(running: Role) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.url.removeprefix("grpc://")) as channel:
        yield channel


def _same(body: bytes) -> bytes:
    return body


def _answered(channel: grpc.Channel, method: MethodDescriptor, bodies: list[bytes]) -> tuple[grpc.StatusCode, str]:
    """How a call with these requests ended."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    call = kind(path, request_serializer=_same, response_deserializer=_same)
    try:
        answer: Any = call(iter(bodies) if method.client_streaming else bodies[0], timeout=CALL_TIMEOUT_S)
        if method.server_streaming:
            for _ in itertools.islice(answer, ANSWERS_MAX):
                pass
            answer.cancel()
    except grpc.RpcError as error:
        return error.code(), str(error.details())
    return grpc.StatusCode.OK, ""


def test_no_message_makes_a_method_fail_inside(channel: grpc.Channel) -> None:
    seed = random.SystemRandom().getrandbits(32)
    sender, methods = Sender(seed), _methods()
    blamed: Counter[tuple[str, str, str]] = Counter()
    answered = set()
    until = time.monotonic() + SECONDS
    for method in itertools.cycle(methods):
        if time.monotonic() > until and len(answered) == len(methods):
            break
        count = sender.random.choice((0, 1, 1, 2, 5)) if method.client_streaming else 1
        code, details = _answered(channel, method, [sender.body(method.input_type) for _ in range(count)])
        if code in BLAMED:
            blamed[method.full_name, code.name, details] += 1
        answered.add(method.full_name)
    assert not blamed, (seed, blamed)


def test_no_action_makes_execution_fail_inside(channel: grpc.Channel) -> None:
    seed = random.SystemRandom().getrandbits(32)
    sender = Sender(seed)
    update = channel.unary_unary(
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=re.BatchUpdateBlobsResponse.FromString,
    )
    execute = channel.unary_stream(
        "/build.bazel.remote.execution.v2.Execution/Execute",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=operations_pb2.Operation.FromString,
    )

    def put(data: bytes) -> Any:
        digest = re.Digest(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        blob = re.BatchUpdateBlobsRequest.Request(digest=digest, data=data)
        (answer,) = update(re.BatchUpdateBlobsRequest(requests=[blob]), timeout=EXECUTE_TIMEOUT_S).responses
        assert not answer.status.code
        return digest

    codes: Counter[str] = Counter()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        command = sender.message(re.Command.DESCRIPTOR)
        if sender.random.random() < 0.8:
            # Most would be turned away for their command alone.
            del command.arguments[:]
            command.arguments.extend(["/bin/sh", "-c", f"echo {sender.random.random()}"])
        action = re.Action(command_digest=put(command.SerializeToString()))
        action.input_root_digest.CopyFrom(put(sender.message(re.Directory.DESCRIPTOR).SerializeToString()))
        if sender.random.random() < 0.7:
            action.input_root_digest.CopyFrom(re.Digest(hash=EMPTY))
        if sender.random.random() < 0.5:
            action.timeout.seconds = sender.random.choice((1, -1, 10, 2**62))
            action.timeout.nanos = sender.random.choice((0, -1, 10**9, 2**31 - 1))
        if sender.random.random() < 0.3:
            action.platform.CopyFrom(sender.message(re.Platform.DESCRIPTOR))
        request = re.ExecuteRequest(action_digest=put(action.SerializeToString()))
        try:
            for operation in execute(request, timeout=EXECUTE_TIMEOUT_S):
                last = operation
            answer = re.ExecuteResponse()
            last.response.Unpack(answer)
            code = grpc.StatusCode[_NAMES[answer.status.code]]
        except grpc.RpcError as error:
            code = error.code()
        codes[code.name] += 1
        assert code not in BLAMED | {grpc.StatusCode.DEADLINE_EXCEEDED}, (seed, command, action)
    assert codes["OK"], codes


_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
