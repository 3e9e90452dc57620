"""The shapes of what the page's API tells, as JSON (docs/reference/http.md). Fields are added, never renamed. Pure.

Times are milliseconds since 1970 by the controller's clock; digests are `HASH/SIZE`; hashes are lower-case hex.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from buildnet.ledger import tree
from buildnet.ledger.checkpoint import Checkpoint
from buildnet.model.resource import Resource
from buildnet.wire._gen.buildnet.v1 import action_pb2, fleet_pb2
from buildnet.wire.actions import ACTION_STATES
from buildnet.wire.nodes import NODE_STATES

Fact = dict[str, Any]


class Wanted(NamedTuple):
    """Which of a node's resources: of this kind, "" for all; with these letters in name or version; at most so many."""

    kind: str
    name: str
    most: int


# A command line may be megabytes; whoever wants all of it asks for the action's Command.
_ARGUMENT_CHARACTERS: Final = 200


def node_fact(node: fleet_pb2.Node, resources: int) -> Fact:
    """One node whose session is open, and how many resources it has announced. What it did not tell is 0."""
    capacity = node.capacity
    return {
        "node": node.node_id,
        "hostname": node.hostname,
        "version": node.version,
        "state": NODE_STATES.get(node.state, "unknown"),
        "tier": node.tier,
        "slots": node.slots,
        "cpu_milli": capacity.cpu_milli,
        "memory_bytes": capacity.memory_bytes,
        "disk_bytes": capacity.disk_bytes,
        "gpus": capacity.gpus,
        "joined_at_unix_ms": node.joined_at.ToMilliseconds(),
        "properties": [[pair.name, pair.value] for pair in node.properties],
        "resources": resources,
    }


def resources_fact(node: str, found: Sequence[Resource], left_out: int, wanted: Wanted) -> Fact:
    """Some of what a node has announced: `found` is all of it; `kinds` counts that, `matching` what was asked for."""
    kinds = Counter(resource.kind for resource in found)
    letters = wanted.name.casefold()
    matching = [
        resource
        for resource in found
        if wanted.kind in ("", resource.kind) and letters in f"{resource.name} {resource.version}".casefold()
    ]
    return {
        "node": node,
        "kinds": sorted(kinds.items()),
        "left_out": left_out,
        "matching": len(matching),
        "resources": [_resource(resource) for resource in matching[: wanted.most]],
    }


def _resource(resource: Resource) -> Fact:
    named = {"kind": resource.kind, "name": resource.name, "version": resource.version}
    # As text: a number beyond 2^53 would reach a script as another one.
    return {**named, "attributes": [[name, str(value)] for name, value in resource.attributes]}


def action_fact(action: action_pb2.ActionSummary) -> Fact:
    """One operation; `completed_at_unix_ms`, `exit_code` and `entry` are null until there is one."""
    ended = action.HasField("completed_at")
    return {
        "id": action.id,
        "action": f"{action.action_digest.hash}/{action.action_digest.size_bytes}",
        "instance": action.instance_name,
        "state": ACTION_STATES.get(action.state, "unknown"),
        "arguments": [argument[:_ARGUMENT_CHARACTERS] for argument in action.command_arguments],
        "worker": action.worker,
        "submitted_at_unix_ms": action.submitted_at.ToMilliseconds(),
        "completed_at_unix_ms": action.completed_at.ToMilliseconds() if ended else None,
        "exit_code": action.exit_code if ended else None,
        "cached": action.cached,
        "error": action.error_code,
        "message": action.message,
        "entry": action.entry_index if action.has_entry else None,
    }


def entry_fact(index: int, body: bytes) -> Fact:
    """One entry of the ledger; `leaf` is the hash that its proof begins with (RFC 6962 section 2.1)."""
    fields = json.loads(body)
    return {
        "index": index,
        "leaf": tree.leaf_hash(body).hex(),
        "kind": fields.pop("kind"),
        "at_unix_ms": fields.pop("at_unix_ms"),
        "fields": fields,
    }


def head_fact(checkpoint: Checkpoint, note: str, verifier_key: str) -> Fact:
    """The signed head of the ledger."""
    return {
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
        "origin": checkpoint.origin,
        "note": note,
        "verifier_key": verifier_key,
    }
