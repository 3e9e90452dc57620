"""Results that clients write, whichever way, are in the ledger before anybody can read them; and after a kill too."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from buildnet.ledger import audit
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from tests.conftest import House
from tests.http_calls import Http

UPDATE = "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult"


def rows(state: Path) -> Counter[str]:
    entries = [json.loads(body) for _, body in audit.iterate(state)]
    return Counter(row for entry in entries if entry["kind"] == "results.updated" for row in entry["results"])


def test_every_way_to_write_is_told(house: House) -> None:
    server = house.up("--no-worker")
    action = Digest.of(b"action")
    result = re.ActionResult(exit_code=3)
    with grpc.insecure_channel(server.ready["listen"]) as channel:
        update = channel.unary_unary(UPDATE, lambda message: message.SerializeToString(), re.ActionResult.FromString)
        request = re.UpdateActionResultRequest(
            instance_name="team", action_digest=digest_message(action), action_result=result
        )
        assert update(request, timeout=10) == result
    call = Http(server.ready["listen"])
    named = hashlib.sha256(b"named").hexdigest()
    assert call("PUT", f"/team/ac/{named}", b"not a result").status == 200
    large = b"x" * (2 << 20)
    assert call("PUT", "/ccache/ab/cdef", large).status == 201
    # Told before it was answered, and kept although the server dies now.
    server.kill()
    found = rows(house.directory / "controller")
    assert found == Counter(
        [
            f"team {action.text} {hashlib.sha256(result.SerializeToString()).hexdigest()}",
            f"team sha256/{named} {hashlib.sha256(b'not a result').hexdigest()}",
            f" ccache/ab/cdef {hashlib.sha256(large).hexdigest()}",
        ]
    )
    again = house.up("--no-worker")
    assert Http(again.ready["listen"])("GET", "/ccache/ab/cdef").body == large
    # The first start and what the killed server acknowledged are under a checkpoint now.
    assert audit.verify(house.directory / "controller").size >= 1 + len(found)


def test_many_writers_share_entries_and_none_is_left_out(house: House) -> None:
    server = house.up("--no-worker")
    actions = [Digest.of(b"action %d" % number) for number in range(500)]
    with grpc.insecure_channel(server.ready["listen"]) as channel, ThreadPoolExecutor(32) as threads:
        update = channel.unary_unary(UPDATE, lambda message: message.SerializeToString(), re.ActionResult.FromString)

        def write(action: Digest) -> None:
            result = re.ActionResult(exit_code=1)
            update(re.UpdateActionResultRequest(action_digest=digest_message(action), action_result=result), timeout=30)

        list(threads.map(write, actions))
    server.kill()
    told = rows(house.directory / "controller")
    assert {row.split(" ")[1] for row in told} == {action.text for action in actions}
    assert set(told.values()) == {1}
