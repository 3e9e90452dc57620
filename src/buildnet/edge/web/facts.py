"""The shapes of what the page's API tells, as JSON (docs/reference/http.md). Fields are added, never renamed. Pure.

Times are milliseconds since 1970 by the controller's clock; digests are `HASH/SIZE`; hashes are lower-case hex.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from buildnet.ledger import tree
from buildnet.ledger.action_view import Run
from buildnet.ledger.checkpoint import Checkpoint
from buildnet.ledger.node_view import SeenNode
from buildnet.model.caller import public_instance
from buildnet.model.resource import Resource
from buildnet.wire._gen.buildnet.v1 import action_pb2, fleet_pb2
from buildnet.wire.actions import ACTION_STATES

Fact = dict[str, Any]


class Wanted(NamedTuple):
    """Which of a node's resources: of this kind, "" for all; with these letters in name or version; at most so many."""

    kind: str
    name: str
    most: int


# A command line may be megabytes; whoever wants all of it asks for the action's Command.
_ARGUMENT_CHARACTERS: Final = 200


def node_fact(seen: SeenNode, sessions: int, live: fleet_pb2.Node, resources: int) -> Fact:
    """One node as the ledger has it, and what it says of itself in its open session, which no entry holds: its name,
    properties, what it can bear, how many resources it announced. What it did not tell is empty, or 0.
    """
    capacity = live.capacity
    return {
        "node": seen.node,
        "hostname": live.hostname,
        "version": seen.version,
        "state": seen.state,
        "tier": seen.tier,
        "slots": seen.slots,
        "cpu_milli": capacity.cpu_milli,
        "memory_bytes": capacity.memory_bytes,
        "disk_bytes": capacity.disk_bytes,
        "gpus": capacity.gpus,
        "joined_at_unix_ms": seen.joined_at_unix_ms,
        "last_seen_unix_ms": seen.last_seen_unix_ms,
        "sessions": sessions,
        "properties": [[pair.name, pair.value] for pair in live.properties],
        "resources": resources,
    }


def absent_fact(seen: SeenNode) -> Fact:
    """One node that has no session."""
    return {
        "node": seen.node,
        "state": seen.state,
        "drained": seen.drained,
        "cordoned": seen.cordoned,
        "left_at_unix_ms": seen.left_at_unix_ms or None,
        "last_seen_unix_ms": seen.last_seen_unix_ms,
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


def run_fact(run: Run, arguments: Sequence[str]) -> Fact:
    """One action as the ledger has it, with the arguments that its digest is of; what is not yet is null."""
    return {
        "id": run.id,
        "action": run.action,
        "instance": public_instance(run.instance),
        "state": run.state,
        "arguments": [argument[:_ARGUMENT_CHARACTERS] for argument in arguments],
        "worker": run.worker,
        "attempts": run.attempts,
        "submitted_at_unix_ms": run.submitted_at_unix_ms,
        "assigned_at_unix_ms": None if run.state == "queued" else run.assigned_at_unix_ms,
        "completed_at_unix_ms": run.ended_at_unix_ms,
        "exit_code": run.exit_code,
        "cached": run.cached,
        "error": run.error,
        "message": run.message,
        "entry": run.entry,
    }


def operation_fact(action: action_pb2.ActionSummary) -> Fact:
    """One operation that no entry names: it joined an action, or was turned away. Its shape is an action's."""
    ended = action.HasField("completed_at")
    return {
        "id": action.id,
        "action": f"{action.action_digest.hash}/{action.action_digest.size_bytes}",
        "instance": action.instance_name,
        "state": ACTION_STATES.get(action.state, "unknown"),
        "arguments": [argument[:_ARGUMENT_CHARACTERS] for argument in action.command_arguments],
        "worker": action.worker,
        "attempts": 0,
        "submitted_at_unix_ms": action.submitted_at.ToMilliseconds(),
        "assigned_at_unix_ms": None,
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
