"""What the catalog tells a client, as values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from buildnet.client.connection import Connection
from buildnet.client.patience import OnBreak, watched
from buildnet.model.resource import Key, Resource
from buildnet.wire._gen.buildnet.v1 import resource_pb2
from buildnet.wire.announcements import resource_of

_RESOURCES: Final = "/buildnet.v1.ResourceService/"


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


class ResourceCalls(Connection):
    """The calls of ResourceService."""

    async def resources(self, *, kind: str = "", node: str = "") -> AsyncIterator[tuple[str, Resource]]:
        """What nodes offer, each with its node, by node, kind and name.

        Args:
            kind: only this one, such as tool.
            node: only this one, by its id or an unambiguous beginning of it.

        Raises:
            NotFound: no such node has announced.
            InvalidRequest: no such kind.
        """
        async for page in self.resource_pages(kind=kind, node=node):
            for row in page:
                yield row

    async def resource_pages(self, *, kind: str = "", node: str = "") -> AsyncIterator[list[tuple[str, Resource]]]:
        """The same, some thousands at once."""
        request = resource_pb2.ListResourcesRequest(kind=kind, node_id=node)
        while True:
            page = await self._unary(_RESOURCES + "ListResources", request, resource_pb2.ListResourcesResponse)
            yield [(message.node_id, resource_of(message)) for message in page.resources]
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def watch_resources(
        self, *, after: tuple[str, int] = ("", 0), on_break: OnBreak | None = None
    ) -> AsyncIterator[ResourceNews]:
        """A snapshot, then what changes, for ever. `after`: the catalog and revision of news that were applied. A
        connection that breaks is made again, for as long as a server that is started anew may take, and goes on where
        it stood, or with a snapshot; `on_break` is called with why.

        Raises:
            NodeDown: the server stayed away.
        """
        request = resource_pb2.WatchResourcesRequest(catalog=after[0], after_revision=after[1])
        events = watched(
            lambda: self._stream(_RESOURCES + "WatchResources", request, resource_pb2.ResourceEvent),
            self._patience.absence(),
            on_break,
        )
        async for event in events:
            if event.revision:
                request.catalog, request.after_revision = event.catalog, event.revision
            yield news_of(event)

    async def explain_resources(self, constraints: Sequence[str]) -> list[NodeVerdict]:
        """For each node that joined whether it meets all constraints, and why not.

        Raises:
            InvalidRequest: one is not a constraint.
        """
        request = resource_pb2.ExplainResourcesRequest(constraints=constraints)
        answer = await self._unary(_RESOURCES + "ExplainResources", request, resource_pb2.ExplainResourcesResponse)
        return [NodeVerdict(v.node_id, v.meets, tuple(v.reasons), v.left_out) for v in answer.nodes]
