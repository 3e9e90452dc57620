"""What the catalog tells a client, as values."""

from __future__ import annotations

from dataclasses import dataclass

from buildnet.model.resource import Key, Resource
from buildnet.wire._gen.buildnet.v1 import resource_pb2
from buildnet.wire.announcements import resource_of


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """Whether a node meets constraints; `reasons` say why not. `left_out`: how many resources it did not announce."""

    node: str
    meets: bool
    reasons: tuple[str, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class ResourceNews:
    """A part of a snapshot or change. `snapshot`: forget all nodes first; `replaced`: forget this node first.

    `revision` is 0 while more of the same change follows; else, with `catalog`, it is where a later watch goes on.
    """

    catalog: str
    revision: int
    snapshot: bool
    node: str
    replaced: bool
    present: tuple[Resource, ...]
    gone: tuple[Key, ...]


def news_of(event: resource_pb2.ResourceEvent) -> ResourceNews:
    """Read one message of WatchResources."""
    return ResourceNews(
        catalog=event.catalog,
        revision=event.revision,
        snapshot=event.snapshot,
        node=event.node_id,
        replaced=event.replaced,
        present=tuple(map(resource_of, event.present)),
        gone=tuple((name.kind, name.name) for name in event.gone),
    )
