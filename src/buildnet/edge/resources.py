"""ResourceService: the catalog in pages, as it changes, and why a constraint is not met. Changes nothing."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import chain
from typing import Final

from buildnet.catalog.catalog import NodeChange
from buildnet.edge.announcements import Announcements
from buildnet.edge.bridge import Call, Method
from buildnet.errors import InvalidRequest, NotFound
from buildnet.model.resource import KINDS
from buildnet.wire._gen.buildnet.v1 import resource_pb2 as pb
from buildnet.wire.announcements import name_message, resource_message

_SERVICE = "/buildnet.v1.ResourceService/"
_PAGE_MAX: Final = 5_000
_PAGE_BYTES_MAX: Final = 2 << 20
_EVENT_BYTES_MAX: Final = 128 << 10
_CONSTRAINTS_MAX: Final = 32
_PREFIX_MIN: Final = 4


class ResourceService:
    """What nodes offer."""

    def __init__(self, announcements: Announcements) -> None:
        self._announcements = announcements
        self._catalog = announcements.catalog

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        return {
            _SERVICE + "ListResources": Method(
                "unary", self.list_resources, pb.ListResourcesRequest, pb.ListResourcesResponse
            ),
            _SERVICE + "WatchResources": Method(
                "server_stream", self.watch, pb.WatchResourcesRequest, pb.ResourceEvent
            ),
            _SERVICE + "ExplainResources": Method(
                "unary", self.explain, pb.ExplainResourcesRequest, pb.ExplainResourcesResponse
            ),
        }

    def list_resources(self, request: pb.ListResourcesRequest, call: Call) -> pb.ListResourcesResponse:
        """One page, by node, kind and name."""
        if request.kind and request.kind not in KINDS:
            raise InvalidRequest(f"{request.kind!r} is no kind; kinds are {', '.join(KINDS)}", field="kind")
        nodes = [self._node(request.node_id)] if request.node_id else self._catalog.nodes()
        after = _after(request.page_token)
        answer = pb.ListResourcesResponse()
        room, room_bytes = min(request.page_size or _PAGE_MAX, _PAGE_MAX), _PAGE_BYTES_MAX
        for node in nodes:
            if node < after[0]:
                continue
            found = self._catalog.resources(node, request.kind)
            first = bisect_right(found, (after[1], after[2]), key=lambda r: r.key) if node == after[0] else 0
            for resource in found[first:]:
                message = resource_message(resource, node)
                room_bytes -= message.ByteSize()
                if room == 0 or (room_bytes < 0 and answer.resources):
                    last = answer.resources[-1]
                    answer.next_page_token = _token(last.node_id, last.kind, last.name)
                    return answer
                room -= 1
                answer.resources.append(message)
        return answer

    def _node(self, node_id: str) -> str:
        nodes = self._catalog.nodes()
        if node_id in nodes:
            return node_id
        found = [node for node in nodes if node.startswith(node_id)] if len(node_id) >= _PREFIX_MIN else []
        if len(found) != 1:
            raise NotFound(
                f"{len(found) or 'no'} nodes that announced begin with {node_id!r}; `buildnet resources ls` lists them",
                kind="node",
                name=node_id,
            )
        return found[0]

    async def watch(self, request: pb.WatchResourcesRequest, call: Call) -> AsyncIterator[pb.ResourceEvent]:
        """A snapshot unless the reader's revision is still known, then changes as fast as the reader takes them."""
        catalog, name = self._catalog, self._announcements.controller_id
        news = asyncio.Event()
        self._announcements.follow(news.set)
        try:
            at = request.after_revision if request.catalog == name else 0
            # Revision 0 is of an empty catalog: everything is a change to it, yet the journal need not hold it all.
            if at == 0 or not catalog.reaches_back_to(at):
                at = catalog.revision
                yield pb.ResourceEvent(catalog=name, snapshot=True)
                for event in _events(catalog.snapshot()):
                    event.catalog = name
                    yield event
                yield pb.ResourceEvent(catalog=name, revision=at)
            while True:
                while at < catalog.revision:
                    if not catalog.reaches_back_to(at):
                        # So slow a reader that the journal has forgotten where it stands.
                        yield pb.ResourceEvent(catalog=name, snapshot=True)
                        changes = catalog.snapshot()
                    else:
                        changes = catalog.changes(at)
                    at = catalog.revision
                    for event in _events(changes):
                        event.catalog = name
                        yield event
                    yield pb.ResourceEvent(catalog=name, revision=at)
                news.clear()
                await news.wait()
        finally:
            self._announcements.unfollow(news.set)

    def explain(self, request: pb.ExplainResourcesRequest, call: Call) -> pb.ExplainResourcesResponse:
        """Every node that joined, with the reasons why it does not meet the constraints."""
        if not 0 < len(request.constraints) <= _CONSTRAINTS_MAX:
            raise InvalidRequest(f"ask for 1 to {_CONSTRAINTS_MAX} constraints", field="constraints")
        answer = pb.ExplainResourcesResponse()
        for node, reasons in self._announcements.verdicts(tuple(request.constraints)).items():
            answer.nodes.add(node_id=node, meets=not reasons, reasons=reasons, left_out=self._catalog.left_out(node))
        return answer


def _events(changes: Iterable[NodeChange]) -> Iterator[pb.ResourceEvent]:
    """Changes in messages of bounded size, several of a node one after the other."""
    for change in changes:
        event, size_bytes = pb.ResourceEvent(node_id=change.node, replaced=change.whole), 0
        parts: Iterable[pb.Resource | pb.ResourceName] = chain(
            map(resource_message, change.present), map(name_message, change.gone)
        )
        for part in parts:
            part_bytes = part.ByteSize()
            if size_bytes and size_bytes + part_bytes > _EVENT_BYTES_MAX:
                yield event
                event, size_bytes = pb.ResourceEvent(node_id=change.node), 0
            size_bytes += part_bytes
            if isinstance(part, pb.Resource):
                event.present.append(part)
            else:
                event.gone.append(part)
        yield event


def _token(*position: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def _after(token: str) -> tuple[str, str, str]:
    if not token:
        return "", "", ""
    try:
        node, kind, name = json.loads(base64.urlsafe_b64decode(token))
        if not all(isinstance(part, str) for part in (node, kind, name)):
            raise ValueError
    except (ValueError, TypeError, binascii.Error, RecursionError) as error:
        raise InvalidRequest("the page token is not one of ours", field="page_token") from error
    return node, kind, name
