"""Identity, offers, configuration and delays of a worker."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest, StateCorrupt
from buildnet.model.credentials import Address
from buildnet.sandbox.policy import Means
from buildnet.worker.backoff import Backoff
from buildnet.worker.config import WorkerConfig
from buildnet.worker.identity import identity_of, offered, platform_properties


def test_a_node_keeps_its_name_and_each_start_is_another(tmp_path: Path) -> None:
    rng = random.Random(1)
    first, second = identity_of(tmp_path, rng), identity_of(tmp_path, rng)
    assert first.node == second.node
    assert first.boot != second.boot
    assert len(first.node) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["id"]


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xfe", b"a" * 33])
def test_a_damaged_id_is_not_replaced_in_silence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "id").write_bytes(content)
    with pytest.raises(StateCorrupt, match="id"):
        identity_of(tmp_path, random.Random(1))
    assert (tmp_path / "id").read_bytes() == content


def test_the_platform_is_offered_in_the_spellings_in_use() -> None:
    properties = platform_properties("Linux", "x86_64")
    assert {
        ("OSFamily", "linux"),
        ("OSFamily", "Linux"),
        ("ISA", "x86-64"),
        ("os", "linux"),
        ("arch", "x86_64"),
    } <= properties
    assert ("ISA", "arm-a64") in platform_properties("Linux", "aarch64")
    assert ("arch", "odd64") in platform_properties("Linux", "odd64")


def test_a_worker_offers_no_trust_and_no_container_image() -> None:
    names = {name for name, _ in offered(Means("namespaces", private_network=True), [("rack", "7")])}
    assert "rack" in names
    assert not names & {"tier", "container-image"}


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("grpc://127.0.0.1:8980", "127.0.0.1:8980"),
        ("http://host:1/", "host:1"),
        ("grpcs://host:1", "host:1"),
        ("host:99", "host:99"),
        ("grpc://[::1]:5", "[::1]:5"),
    ],
)
def test_a_url_becomes_a_target(tmp_path: Path, url: str, target: str) -> None:
    assert WorkerConfig(url, tmp_path).address == Address(target, url.startswith("grpcs"))


@pytest.mark.parametrize("url", ["", "grpc://", "host", "ftp://host:1", "grpc://h:99999", "grpcs://h", "http://h:1/a"])
def test_what_cannot_be_dialled_is_refused_before_anything_opens(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidRequest, match="grpc://"):
        WorkerConfig(url, tmp_path)


@given(st.text(max_size=40))
def test_any_url_is_taken_or_refused_in_words(url: str) -> None:
    with suppress(InvalidRequest):
        assert ":" in WorkerConfig(url, Path("/nowhere")).address.target


@pytest.mark.parametrize("slots", [0, -1, 1025])
def test_slots_are_bounded(tmp_path: Path, slots: int) -> None:
    with pytest.raises(InvalidRequest, match="slots"):
        WorkerConfig("h:1", tmp_path, slots=slots)


def test_delays_double_up_to_their_bound_and_start_anew_after_a_stable_while() -> None:
    backoff = Backoff(0.1, 1.0, random.Random(3))
    delays = [backoff.next_s() for _ in range(8)]
    for number, delay in enumerate(delays):
        ceiling = min(1.0, 0.1 * 2**number)
        assert ceiling / 2 <= delay <= ceiling
    backoff.lasted(0.5)
    assert backoff.next_s() >= 0.5
    backoff.lasted(60.0)
    assert backoff.next_s() <= 0.1
