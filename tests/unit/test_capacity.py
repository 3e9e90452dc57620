"""What a worker has to give: looked for, said in Hello, checked by the controller, and reserved in Assign."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buildnet.app.scheduling import quotas_of
from buildnet.edge.fleet_session import Session, greeting_of
from buildnet.edge.flow import Duplex
from buildnet.errors import InvalidRequest
from buildnet.model.action import ActionKey, Lease
from buildnet.model.amounts import Amounts
from buildnet.model.caller import share_of
from buildnet.model.digest import EMPTY
from buildnet.scheduler.limits import ORGANISATION, USER, Quota
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.worker.capacity import capacity_of, given_in


def hello(**capacity: int) -> fleet_pb2.Hello:
    said = fleet_pb2.Hello(node_id="n", boot_id="b", version="0.1.0", slots=2)
    if capacity:
        said.capacity.CopyFrom(fleet_pb2.Amounts(**capacity))
    return said


def test_a_machine_is_looked_at(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    found = capacity_of(tmp_path / "state", tmp_path)
    assert found.cpu_milli >= 1000
    assert found.memory_bytes > 0
    assert found.disk_bytes > 0
    assert found.gpus == 2
    # A sandbox with a /dev of its own has none of them to give.
    assert given_in("process", found) == found
    assert given_in("namespaces", found) == replace(found, gpus=0)


def test_something_is_left_for_the_machine(tmp_path: Path) -> None:
    found = capacity_of(tmp_path / "state", tmp_path)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.memory_bytes == memory_bytes - min(memory_bytes // 8, 1 << 30)
    assert 0 < found.disk_bytes < shutil.disk_usage(tmp_path).total


def test_a_capacity_is_taken_as_it_was_said_and_bounded() -> None:
    assert greeting_of(hello(), "0.1.0").offer.capacity is None
    assert greeting_of(hello(cpu_milli=4000, gpus=1), "0.1.0").offer.capacity == Amounts(4000, 0, 0, 1)
    with pytest.raises(InvalidRequest) as refused:
        greeting_of(hello(memory_bytes=1 << 60), "0.1.0")
    assert refused.value.fields["field"] == "hello.capacity"


async def test_what_is_reserved_is_told_to_the_worker() -> None:
    sent: list[tuple[int, int, Any]] = []
    stream = Duplex(sent.append, 1, fleet_pb2.JoinRequest.FromString)
    session = Session(1, greeting_of(hello(), "0.1.0"), (), 0.0, lambda node: None, stream)
    session.assign(Lease(7, ActionKey("", EMPTY), "n", 1, 10.0, reserved=Amounts(1500, 1 << 30)))
    ((_, _, body),) = sent
    reserved = fleet_pb2.JoinResponse.FromString(body).assign.reserved
    assert (reserved.cpu_milli, reserved.memory_bytes, reserved.gpus) == (1500, 1 << 30, 0)


def test_a_caller_is_counted_for_the_organisation_before_the_slash() -> None:
    assert share_of("acme/alice", "i1") == ("acme", "alice", "i1")
    assert share_of("alice") == ("", "alice", "")
    assert share_of("") == ("", "", "")


def test_quotas_are_read() -> None:
    tables = [{"organisation": "acme", "weight": 3, "cpus_max": 1.5}, {"user": "*", "queued_max": 9}]
    quotas = quotas_of(tables, "share")
    assert quotas.of(ORGANISATION, "acme") == Quota(3, None, 1500, None)
    assert quotas.of(USER, "anybody") == Quota(queued_max=9)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"weight": 1}, "either organisation or user"),
        ({"organisation": "a", "user": "b"}, "either organisation or user"),
        ({"user": "a", "weight": 0}, "weight must be a whole number from 1"),
        ({"user": "a", "weight": True}, "weight"),
        ({"user": "a", "cpus_max": "many"}, "cpus_max must be a number"),
        ({"user": "a", "cpu_max": 1}, "no key 'cpu_max'"),
        ({"user": "a", "actions_max": -1}, "actions_max"),
    ],
)
def test_a_share_that_cannot_be_is_refused(table: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        quotas_of([table], "share")
    with pytest.raises(InvalidRequest, match="twice"):
        quotas_of([{"user": "a"}, {"user": "a"}], "share")
