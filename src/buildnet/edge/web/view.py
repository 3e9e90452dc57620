"""What the page shows, read from the ledger and from what follows it. It changes nothing.

Whoever watches is told that something changed, never what: a slow watcher reads the newest state and misses the steps
between. While nobody watches, nothing is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from buildnet.catalog.catalog import Catalog
from buildnet.edge.action import ActionService
from buildnet.edge.fleet import FleetService
from buildnet.edge.web.facts import (
    Fact,
    Wanted,
    absent_fact,
    entry_fact,
    head_fact,
    node_fact,
    operation_fact,
    resources_fact,
    run_fact,
)
from buildnet.errors import NotFound, StateCorrupt, StorageFull
from buildnet.ledger.action_view import Run
from buildnet.ledger.follower import Follower
from buildnet.ledger.log import LedgerLog
from buildnet.ledger.node_view import SeenNode
from buildnet.model.caller import Caller

log = logging.getLogger(__name__)

RUNNING_SHOWN: Final = 100
RECENT_SHOWN: Final = 50
ABSENT_SHOWN: Final = 50
# Changes within it are told as one.
_SAMPLE_S: Final = 0.25


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
    """The state of one controller, as a reader sees it: what the ledger's follower made of its entries, joined by id
    with what is no fact of the ledger (docs/design/ledger.md, section Views).
    """

    def __init__(
        self, ledger: LedgerLog, follower: Follower, actions: ActionService, fleet: FleetService, catalog: Catalog
    ) -> None:
        self._ledger = ledger
        self._follower = follower
        self._actions = actions
        self._fleet = fleet
        self._catalog = catalog
        self._watches: list[Watch] = []
        self._watched = asyncio.Event()

    async def current(self) -> View:
        """This view, with all that is acknowledged by now. Where that is much, or cannot be read because the disk is
        full, it is as it was, and `behind` says how much it lacks.
        """
        with suppress(StorageFull, StateCorrupt):
            # Whoever writes the ledger, or follows it, has said so in the log.
            await self._follower.catch_up()
        return self

    def nodes(self) -> Fact:
        """The nodes that have joined, and those that left last or of whom something was decided."""
        seen, sessions = self._follower.views.nodes.nodes(), self._follower.views.nodes.sessions()
        absent = sorted((node for node in seen if not node.is_joined), key=lambda node: -node.last_seen_unix_ms)
        return {
            "nodes": [self._node(node, sessions[node.key] if node.key else 0) for node in seen if node.is_joined],
            "absent": [absent_fact(node) for node in absent[:ABSENT_SHOWN]],
            "behind": self._follower.behind,
        }

    def _node(self, seen: SeenNode, sessions: int) -> Fact:
        return node_fact(seen, sessions, self._fleet.find(seen.node), self._catalog.count(seen.node))

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
        seen = self._follower.views.actions
        waiting = list(islice((run for run in seen.open() if caller.may_see(run.instance)), running + 1))
        ended = islice((run for run in seen.ended() if caller.may_see(run.instance)), recent)
        return {
            "running": [self._action(run) for run in waiting[:running]],
            "recent": [self._action(run) for run in ended],
            "more_running": len(waiting) > running,
            "behind": self._follower.behind,
        }

    def _action(self, run: Run) -> Fact:
        return run_fact(run, self._actions.arguments(run.operation, run.action))

    def action(self, id_: str, caller: Caller) -> Fact:
        """One action by its id, or an operation by its id or the beginning of it.

        Raises:
            NotFound: the caller sees none of that name.
        """
        run = self._follower.views.actions.find(id_)
        if run is not None and caller.may_see(run.instance):
            return self._action(run)
        operation = self._actions.find(id_, caller)
        run = self._follower.views.actions.find(operation.id)
        return operation_fact(self._actions.summary(operation.id)) if run is None else self._action(run)

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
                await self.current()
                self._sample(self._watches)
            except Exception:
                # Watchers keep what they have, and the next look may succeed.
                log.exception("the view could not be read")
            await asyncio.sleep(_SAMPLE_S)

    def _sample(self, watches: list[Watch]) -> None:
        nodes = json.dumps(self.nodes())
        seen: dict[tuple[str, ...] | None, dict[str, str]] = {}
        for watch in watches:
            instances = watch.caller.instances
            if instances not in seen:
                seen[instances] = {"nodes": nodes, "actions": json.dumps(self.actions(watch.caller))}
            if watch.parts != seen[instances] or watch.size != self._ledger.size:
                watch.parts, watch.size = seen[instances], self._ledger.size
                watch.news.set()
