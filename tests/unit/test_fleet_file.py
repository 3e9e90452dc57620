"""What was decided of nodes, on disk: it comes back as it was, and nothing else is taken for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.app import fleet_file
from buildnet.errors import BuildNetError, StateCorrupt, StorageFull
from buildnet.model.node import NodePolicy

ids = st.from_regex(r"[0-9A-Za-z._-]{1,128}", fullmatch=True)
decided = st.builds(NodePolicy, st.booleans(), st.booleans(), st.text(max_size=40))


@given(st.dictionaries(ids, decided, max_size=5))
def test_what_is_written_is_read(policies: dict[str, NodePolicy]) -> None:
    assert fleet_file.parse(fleet_file.encode(policies).encode()) == policies


@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((ValueError, RecursionError, BuildNetError)):
        fleet_file.parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, ids)
def test_a_decision_of_another_shape_is_refused(value: object, node: str) -> None:
    with pytest.raises((ValueError, BuildNetError)):
        fleet_file.parse(json.dumps({"version": 1, "nodes": {node: value}}).encode())


def test_it_outlives_the_process_and_a_damaged_one_stops_the_start(tmp_path: Path) -> None:
    assert fleet_file.load(tmp_path) == {}
    policies = {"n": NodePolicy(cordoned=True, by="ann"), "m": NodePolicy(removed=True)}
    asyncio.run(fleet_file.keep(tmp_path, policies))
    assert fleet_file.load(tmp_path) == policies
    path = fleet_file.path_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StateCorrupt, match="restore it from a copy"):
        fleet_file.load(tmp_path)
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(StateCorrupt):
        fleet_file.load(tmp_path)


def test_a_disk_that_refuses_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    asyncio.run(fleet_file.keep(tmp_path, {"n": NodePolicy(removed=True)}))
    fleet_file.path_of(tmp_path).with_name("fleet.json.new").mkdir()
    with pytest.raises(StorageFull, match="nothing was changed"):
        asyncio.run(fleet_file.keep(tmp_path, {}))
    assert fleet_file.load(tmp_path) == {"n": NodePolicy(removed=True)}
