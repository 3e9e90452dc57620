"""What the page shows, read from the ledger and from the calls that anybody may make. It follows; it changes nothing.

Whoever watches is told that something changed, never what: a slow watcher reads the newest state and misses the steps
between. While nobody watches, nothing is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from buildnet.catalog.catalog import Catalog
from buildnet.edge.action import ActionService
from buildnet.edge.bridge import Call
from buildnet.edge.fleet import FleetService
from buildnet.edge.web.facts import Fact, Wanted, action_fact, entry_fact, head_fact, node_fact, resources_fact
from buildnet.errors import NotFound
from buildnet.ledger.log import LedgerLog
from buildnet.model.caller import Caller
from buildnet.wire._gen.buildnet.v1 import action_pb2, fleet_pb2

log = logging.getLogger(__name__)

RUNNING_SHOWN: Final = 100
RECENT_SHOWN: Final = 50
# Changes within it are told as one.
_SAMPLE_S: Final = 0.25
_RUNNING: Final = (action_pb2.ACTION_STATE_QUEUED, action_pb2.ACTION_STATE_EXECUTING)
_ENDED: Final = (
    action_pb2.ACTION_STATE_COMPLETED,
    action_pb2.ACTION_STATE_FAILED,
    action_pb2.ACTION_STATE_CANCELLED,
)


@dataclass(slots=True)
class Watch:
    """One watcher: `news` is set when `parts` (JSON by the name of its event) or `size` have changed."""

    caller: Caller
    parts: dict[str, str] = field(default_factory=dict)
    size: int = -1
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def sees_ledger(self) -> bool:
        """The ledger tells of every instance, so who is limited to some is told nothing of it."""
        return self.caller.instances is None


class View:
    """The state of one controller, as a reader sees it."""

    def __init__(self, ledger: LedgerLog, actions: ActionService, fleet: FleetService, catalog: Catalog) -> None:
        self._ledger = ledger
        self._actions = actions
        self._fleet = fleet
        self._catalog = catalog
        self._watches: list[Watch] = []
        self._watched = asyncio.Event()

    def nodes(self, caller: Caller) -> Fact:
        """The nodes that have joined."""
        answer = self._fleet.list_nodes(fleet_pb2.ListNodesRequest(), _call(caller))
        return {"nodes": [node_fact(node, self._catalog.count(node.node_id)) for node in answer.nodes]}

    def resources(self, node: str, wanted: Wanted) -> Fact:
        """Some of what a node has announced.

        Raises:
            NotFound: no such node has.
        """
        if not self._catalog.knows(node):
            raise NotFound(f"no node {node} has announced what it offers", kind="node", name=node)
        return resources_fact(node, self._catalog.resources(node), self._catalog.left_out(node), wanted)

    def actions(self, caller: Caller, running: int = RUNNING_SHOWN, recent: int = RECENT_SHOWN) -> Fact:
        """Actions that wait or run, and those that ended last; newest first. `more_running`: some are left out."""
        waiting = self._actions.list_actions(_request(_RUNNING, running), _call(caller))
        ended = self._actions.list_actions(_request(_ENDED, recent), _call(caller))
        return {
            "running": [action_fact(action) for action in waiting.actions],
            "recent": [action_fact(action) for action in ended.actions],
            "more_running": bool(waiting.next_page_token),
        }

    def action(self, operation_id: str, caller: Caller) -> Fact:
        """One action by its id or the beginning of it.

        Raises:
            NotFound: the caller sees none of that name.
        """
        return action_fact(self._actions.get_action(action_pb2.GetActionRequest(id=operation_id), _call(caller)))

    async def head(self) -> Fact:
        """The newest signed head of the ledger; its signature is checked on the way.

        Raises:
            BadSignature: the stored checkpoint is not what the key signed.
        """
        note = await self._ledger.checkpoint()
        return head_fact(self._ledger.verifier.open(note), note, self._ledger.verifier.text)

    async def size(self) -> int:
        """How many entries are under the newest checkpoint."""
        return await self._ledger.signed_size()

    async def entries(self, start: int, count: int) -> list[Fact]:
        """At most `count` entries from `start` on."""
        bodies = await self._ledger.read(start, count)
        return [entry_fact(index, body) for index, body in enumerate(bodies, start)]

    @contextmanager
    def watch(self, caller: Caller) -> Iterator[Watch]:
        """Hear of changes until the end of the block; the first news come at once."""
        watch = Watch(caller)
        self._watches.append(watch)
        self._sample([watch])
        self._watched.set()
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    async def run(self) -> None:
        """Look for changes while somebody watches, until cancelled."""
        while True:
            if not self._watches:
                self._watched.clear()
                await self._watched.wait()
            try:
                self._sample(self._watches)
            except Exception:
                # Watchers keep what they have, and the next look may succeed.
                log.exception("the view could not be read")
            await asyncio.sleep(_SAMPLE_S)

    def _sample(self, watches: list[Watch]) -> None:
        seen: dict[tuple[str, ...] | None, dict[str, str]] = {}
        for watch in watches:
            instances = watch.caller.instances
            if instances not in seen:
                seen[instances] = {
                    "nodes": json.dumps(self.nodes(watch.caller)),
                    "actions": json.dumps(self.actions(watch.caller)),
                }
            if watch.parts != seen[instances] or watch.size != self._ledger.size:
                watch.parts, watch.size = seen[instances], self._ledger.size
                watch.news.set()


def _request(states: Sequence[action_pb2.ActionState], page_size: int) -> action_pb2.ListActionsRequest:
    return action_pb2.ListActionsRequest(page_size=page_size, filter=action_pb2.ActionFilter(states=states))


def _call(caller: Caller) -> Call:
    return Call(0, "", [], None, caller)
