"""What a worker has to give: looked for, said in Hello, checked by the controller, and reserved in Assign."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.app.config import default_slots, offered_cpu_milli
from buildnet.app.scheduling import quotas_of
from buildnet.edge.fleet_session import Session, greeting_of
from buildnet.edge.flow import Duplex
from buildnet.errors import InvalidRequest
from buildnet.model.action import ActionKey, Lease
from buildnet.model.amounts import Amounts
from buildnet.model.caller import share_of
from buildnet.model.digest import EMPTY
from buildnet.model.node import SLOTS_MAX
from buildnet.sandbox.policy import Limits
from buildnet.scheduler.limits import ORGANISATION, USER, Quota
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.worker.capacity import capacity_of, given_in, processors_milli, quota_milli_of
from buildnet.worker.config import WorkerConfig
from buildnet.worker.identity import Identity
from buildnet.worker.messages import hello_of


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


CORES_MILLI = 1000 * len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("own", "files", "milli"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 500),
        ("0::/a/b", {"a/b/cpu.max": "max 100000"}, CORES_MILLI),
        ("0::/elsewhere/x", {"cpu.max": "25000 100000"}, 250),
        ("0::/../../x", {"cpu.max": "25000 100000"}, 250),
        ("0::/", {"cpu.max": "99900000 100000"}, CORES_MILLI),
        (
            "4:memory:/m\n3:cpu,cpuacct:/a\n0::/",
            {"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "200000"},
            750,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CORES_MILLI),
        ("\n:\nnothing", {}, CORES_MILLI),
    ],
)
def test_processors_are_those_that_control_groups_leave(
    tmp_path: Path, own: str, files: dict[str, str], milli: int
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (file := tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert processors_milli(tmp_path / "own", tmp_path / "groups") == milli


@given(st.text(max_size=40) | st.from_regex(r"-?[0-9]{1,20} [0-9]{1,20}"))
def test_any_quota_is_none_or_more_than_nothing(text: str) -> None:
    milli = quota_milli_of(text)
    assert milli is None or milli >= 1


def test_what_a_worker_offers_is_asked_or_all_and_never_more(tmp_path: Path) -> None:
    assert offered_cpu_milli(None) == processors_milli()
    assert offered_cpu_milli(1) == 1
    assert capacity_of(tmp_path, cpu_milli=500).cpu_milli == 500
    assert (default_slots(500), default_slots(2999), default_slots(10**9)) == (1, 2, SLOTS_MAX)
    with pytest.raises(InvalidRequest, match=r"a worker cannot offer 100000 cpus: this machine, .* gives it "):
        offered_cpu_milli(100_000_000)


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


def test_what_one_action_may_ask_for_is_told_and_bounded(tmp_path: Path) -> None:
    config = WorkerConfig("grpc://127.0.0.1:1", tmp_path, version="0.1.0", limits=Limits(memory_bytes=2 << 30))
    said = hello_of(config, Identity("n", "b"), frozenset(), (), sent_unix_ms=0).hello
    assert greeting_of(said, "0.1.0").offer.action_max == Amounts(memory_bytes=2 << 30)
    said.action_max.disk_bytes = 1 << 60
    with pytest.raises(InvalidRequest) as refused:
        greeting_of(said, "0.1.0")
    assert refused.value.fields["field"] == "hello.action_max"
    plain = hello_of(replace(config, limits=Limits()), Identity("n", "b"), frozenset(), (), sent_unix_ms=0).hello
    assert greeting_of(plain, "0.1.0").offer.action_max == Amounts()


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
