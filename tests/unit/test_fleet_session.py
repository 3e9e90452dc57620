"""What a node says of itself: bounded, printable, or refused with the field."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from buildnet.edge.fleet_session import greeting_of, node_message, stored_outcome_of
from buildnet.errors import BlobsMissing, InvalidRequest
from buildnet.model.action import RESULT_BYTES_MAX
from buildnet.model.digest import Digest
from buildnet.scheduler import fleet_events as fe
from buildnet.scheduler.fleet import FleetCore
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.actions import digest_message

NOW_MS = 1_700_000_000_000


def hello(**fields: object) -> fleet_pb2.Hello:
    said = {"node_id": "n", "boot_id": "b", "version": "0.1.0", "slots": 1, "hostname": "here", **fields}
    return fleet_pb2.Hello(**said)  # type: ignore[arg-type]


def seen(said: fleet_pb2.Hello) -> fleet_pb2.Node:
    """What people see of a node that said this at `NOW_MS`."""
    core = FleetCore({})
    core.step(fe.Hello(1, greeting_of(said, "0.1.0"), NOW_MS))
    view = core.view("n")
    assert view is not None
    return node_message(view, running=0, last_seen_unix_ms=NOW_MS)


def test_a_clock_that_is_told_is_compared() -> None:
    assert not seen(hello()).HasField("clock_skew")
    said = hello()
    said.sent_at.FromMilliseconds(NOW_MS + 2500)
    assert seen(said).clock_skew.ToMilliseconds() == 2500


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_a_node_is_seen_whatever_its_clock_shows(seconds: int, nanos: int) -> None:
    said = hello()
    said.sent_at.seconds, said.sent_at.nanos = seconds, nanos
    assert seen(said).clock_skew.ToJsonString(), "it is one that protobuf takes"


def test_another_minor_version_is_refused_with_the_remedy() -> None:
    greeting_of(hello(version="0.1.7"), "0.1.0")
    with pytest.raises(InvalidRequest, match="install the same on both") as refused:
        greeting_of(hello(version="0.2.0"), "0.1.0")
    assert refused.value.fields["field"] == "hello.version"


def many_properties(said: fleet_pb2.Hello) -> None:
    for number in range(1001):
        said.properties.add(name=f"p{number}", value="v")


def long_property(said: fleet_pb2.Hello) -> None:
    said.properties.add(name="p", value="v" * 1024)


def raw_property(said: fleet_pb2.Hello) -> None:
    said.properties.add(name="p", value="\x1b[2J")


def no_slots(said: fleet_pb2.Hello) -> None:
    said.slots = 0


def raw_id(said: fleet_pb2.Hello) -> None:
    said.node_id = "n\x1b[31m"


def no_boot(said: fleet_pb2.Hello) -> None:
    said.boot_id = ""


@pytest.mark.parametrize("spoil", [many_properties, long_property, raw_property, no_slots, raw_id, no_boot])
def test_what_is_over_a_limit_or_not_printable_is_refused(spoil: Callable[[fleet_pb2.Hello], None]) -> None:
    said = hello()
    spoil(said)
    with pytest.raises(InvalidRequest):
        greeting_of(said, "0.1.0")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_host_may_be_called_anything_and_is_kept_printable(name: str) -> None:
    kept = greeting_of(hello(hostname=name), "0.1.0").hostname
    assert kept.isprintable()
    assert len(kept) <= 255
    if name.isprintable() and len(name) <= 255:
        assert kept == name


def stored(digest: Digest, error_code: str = "") -> fleet_pb2.Done:
    done = fleet_pb2.Done(fence=1, error_code=error_code, result_digest=digest_message(digest))
    done.status.message = "said"
    return done


@given(st.binary(max_size=100))
def test_a_result_that_is_a_blob_is_read_or_refused(data: bytes) -> None:
    try:
        outcome = stored_outcome_of(
            stored(Digest.of(data), "output_invalid"), "n", {Digest.of(data).text: data}.__getitem__
        )
    except DecodeError:
        with pytest.raises(DecodeError):
            re.ActionResult.FromString(data)
        return
    assert (outcome.code, outcome.message, outcome.worker) == ("output_invalid", "said", "n")
    assert outcome.result == (data or None)
    assert outcome.exit_code == re.ActionResult.FromString(data).exit_code


def test_a_result_that_is_gone_is_made_again_and_one_beyond_the_limit_is_refused() -> None:
    def gone(digest: str) -> bytes:
        raise BlobsMissing("evicted", digests=[digest])

    assert stored_outcome_of(stored(Digest("a" * 64, 5 << 20)), "n", gone).code == "storage_full"
    with pytest.raises(InvalidRequest, match="at most"):
        stored_outcome_of(stored(Digest("a" * 64, RESULT_BYTES_MAX + 1)), "n", gone)
