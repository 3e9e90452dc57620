"""A result with tens of thousands of outputs is more than a message of 4 MiB: it is run, published, cached and told."""

from __future__ import annotations

import grpc
import pytest

from buildnet.client import Client
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from tests.conftest import House

GET = "/build.bazel.remote.execution.v2.ActionCache/GetActionResult"
MESSAGE_BYTES = 4 << 20
FILES = 42_000


def result_of(listen: str, request: re.GetActionResultRequest, size_bytes_max: int) -> re.ActionResult:
    options = [("grpc.max_receive_message_length", size_bytes_max)]
    with grpc.insecure_channel(listen, options=options) as channel:
        get = channel.unary_unary(GET, lambda message: message.SerializeToString(), re.ActionResult.FromString)
        found: re.ActionResult = get(request, timeout=60)
        return found


async def test_tens_of_thousands_of_single_outputs(house: House) -> None:
    server = house.up("--slots", "1")
    outputs = [f"a/directory/of/many/file-{number:05}" for number in range(FILES)]
    make = f"cd a/directory/of/many && seq -f file-%05.0f 0 {FILES - 1} | xargs touch && echo made"
    async with Client(server.url) as client:
        first = await client.run(["sh", "-c", make], outputs=outputs)
        assert (first.exit_code, first.cached) == (0, False)
        again = await client.run(["sh", "-c", make], outputs=outputs)
        assert (again.cached, again.action) == (True, first.action)

    listen = server.ready["listen"]
    request = re.GetActionResultRequest(action_digest=digest_message(first.action), inline_stdout=True)
    result = result_of(listen, request, 64 << 20)
    assert result.ByteSize() > MESSAGE_BYTES
    assert [file.path for file in result.output_files] == outputs
    # What may be left out for room is (REAPI, GetActionResultRequest.inline_stdout).
    assert (result.stdout_raw, result.stdout_digest.size_bytes) == (b"", len("made\n"))
    # A client that takes no more than the usual refuses it by itself, with the code that says so.
    with pytest.raises(grpc.RpcError) as refused:
        result_of(listen, request, MESSAGE_BYTES)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
