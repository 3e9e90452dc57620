"""Which nodes are cordoned and which were removed, in one file of the state directory that is replaced as a whole.

A file that cannot be understood stops the start: without it a removed node would be let in again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from buildnet.errors import BuildNetError, StateCorrupt, StorageFull
from buildnet.files import replace_file
from buildnet.model.node import NODE_POLICIES_MAX, NodePolicy, check_node_id

_VERSION: Final = 1
_BYTES_MAX: Final = 16 << 20


def path_of(directory: Path) -> Path:
    """Where a state directory keeps it; it need not be there."""
    return directory / "fleet.json"


def load(directory: Path) -> dict[str, NodePolicy]:
    """What was decided of nodes; nothing when there is no file.

    Raises:
        StateCorrupt: the file cannot be read or is not one.
    """
    path = path_of(directory)
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _corrupt(path, str(error.strerror)) from error
    try:
        return parse(data)
    except (ValueError, RecursionError, BuildNetError) as error:
        raise _corrupt(path, str(error)) from error


def parse(data: bytes) -> dict[str, NodePolicy]:
    """The file's bytes: `{"version": 1, "nodes": {ID: {"cordoned": BOOL, "removed": BOOL, "by": TEXT}}}`.

    Raises:
        ValueError: they are anything else.
        InvalidRequest: a node's id is none.
    """
    if len(data) > _BYTES_MAX:
        raise ValueError(f"over {_BYTES_MAX} bytes")
    body = json.loads(data)
    if not isinstance(body, dict) or body.get("version") != _VERSION or not isinstance(body.get("nodes"), dict):
        raise ValueError(f"not a list of nodes of version {_VERSION}")
    if len(body["nodes"]) > NODE_POLICIES_MAX:
        raise ValueError(f"over {NODE_POLICIES_MAX} nodes")
    return {check_node_id(node, "a node's id"): _policy_of(node, value) for node, value in body["nodes"].items()}


def _policy_of(node: str, value: Any) -> NodePolicy:
    if not isinstance(value, dict) or value.keys() != {"cordoned", "removed", "by"}:
        raise ValueError(f"node {node} has not the fields cordoned, removed and by")
    cordoned, removed, by = value["cordoned"], value["removed"], value["by"]
    if not (isinstance(cordoned, bool) and isinstance(removed, bool) and isinstance(by, str)):
        raise ValueError(f"node {node} has a field of another type")
    return NodePolicy(cordoned, removed, by)


def encode(policies: Mapping[str, NodePolicy]) -> str:
    """The file's text; `parse` gives the policies back."""
    nodes = {
        node: {"cordoned": policy.cordoned, "removed": policy.removed, "by": policy.by}
        for node, policy in sorted(policies.items())
    }
    return json.dumps({"version": _VERSION, "nodes": nodes}, indent=1) + "\n"


async def keep(directory: Path, policies: Mapping[str, NodePolicy]) -> None:
    """Write it so that it outlives this process and the machine's power.

    Raises:
        StorageFull: the disk refused; the file is as it was.
    """
    try:
        await asyncio.to_thread(replace_file, path_of(directory), encode(policies), synced=True)
    except OSError as error:
        raise StorageFull(f"cannot write {path_of(directory)}: {error.strerror}; nothing was changed") from error


def _corrupt(path: Path, why: str) -> StateCorrupt:
    return StateCorrupt(
        f"cannot use {path}: {why}; restore it from a copy, or delete it to let removed and cordoned nodes in again",
        path=str(path),
    )
