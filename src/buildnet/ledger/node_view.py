"""What the ledger says of nodes: who has joined, who left and how, and what was decided of them. Pure: `state, entry ->
state`.

No session outlives its controller: at each start nobody has joined. No entry makes it fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final

from buildnet.ledger.said import Fields, Row, number_of, text_of

ABSENT_MAX: Final = 1000


@dataclass(slots=True)
class SeenNode:
    """One node. Times are the controller's; `last_seen_unix_ms` is that of the newest entry that names it.

    `key` is what its id is bound to, "" for none; `drained`: it left owing nothing.
    """

    node: str
    last_seen_unix_ms: int
    is_joined: bool = False
    boot: str = ""
    version: str = ""
    tier: str = ""
    slots: int = 0
    joined_at_unix_ms: int = 0
    left_at_unix_ms: int = 0
    draining: bool = False
    drained: bool = False
    cordoned: bool = False
    removed: bool = False
    key: str = ""

    @property
    def state(self) -> str:
        """As the fleet calls it: removed, left, draining, cordoned or active."""
        if self.removed:
            return "removed"
        if not self.is_joined:
            return "left"
        if self.draining:
            return "draining"
        return "cordoned" if self.cordoned else "active"


_NAMES: Final = tuple(field.name for field in fields(SeenNode))
_ROW: Final = attrgetter(*_NAMES)


class NodeView:
    """Nodes that have joined or of whom something was decided, and the `absent_max` others that left last."""

    def __init__(self, absent_max: int = ABSENT_MAX) -> None:
        self._absent_max = absent_max
        self._nodes: dict[str, SeenNode] = {}
        # In the order in which they went; a dictionary is an ordered set.
        self._absent: dict[str, None] = {}
        # Open sessions by their number: the key of each.
        self._sessions: dict[int, str] = {}

    def nodes(self) -> list[SeenNode]:
        """Every one, by id."""
        return [self._nodes[name] for name in sorted(self._nodes)]

    def sessions(self) -> Counter[str]:
        """How many sessions are open, by the key that they were opened with."""
        return Counter(self._sessions.values())

    def apply(self, kind: str, at_unix_ms: int, said: Fields) -> None:
        """Take one entry of any kind; those that name no node mean nothing to it."""
        room, _, what = kind.partition(".")
        if room == "action":
            if (seen := self._nodes.get(text_of(said, "worker"))) is not None:
                seen.last_seen_unix_ms = at_unix_ms
        elif room == "node":
            self._node(what, at_unix_ms, said)
        elif room == "session":
            self._session(what, said)
        elif kind == "controller.started":
            self._sessions.clear()
            for node in self._nodes.values():
                self._leave(node, at_unix_ms)
            self._forget()

    def _session(self, what: str, said: Fields) -> None:
        number = number_of(said, "session")
        if number is None:
            return
        if what == "opened":
            self._sessions[number] = text_of(said, "key")
        elif what == "closed":
            self._sessions.pop(number, None)

    def _node(self, what: str, at_unix_ms: int, said: Fields) -> None:
        name = text_of(said, "node")
        if not name or what == "refused":
            # It was not let in: whoever dials by any name would be held here.
            return
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = SeenNode(name, at_unix_ms)
        if what not in ("cordoned", "uncordoned", "removed", "allowed", "tier_set"):
            # What somebody decides of a node is no sign of it.
            node.last_seen_unix_ms = at_unix_ms
        match what:
            case "joined":
                self._join(node, at_unix_ms, said)
            case "left":
                self._leave(node, at_unix_ms, draining=node.draining)
            case "draining":
                node.draining = True
            case "drained":
                node.draining, node.drained = False, True
            case "cordoned" | "uncordoned":
                node.cordoned = what == "cordoned"
            case "removed":
                node.removed = True
                self._leave(node, at_unix_ms)
            case "allowed":
                node.removed = False
            case "tier_set":
                node.tier = text_of(said, "tier")
            case "key_bound":
                node.key = text_of(said, "key")
        if node.is_joined or node.cordoned or node.removed:
            self._absent.pop(name, None)
        else:
            self._absent.setdefault(name)
            self._forget()

    def _join(self, node: SeenNode, at_unix_ms: int, said: Fields) -> None:
        boot = text_of(said, "boot")
        # A drain outlives a broken connection, and no start of its process (scheduler/fleet.py).
        node.draining = node.draining and boot == node.boot
        node.is_joined, node.drained, node.boot = True, False, boot
        node.version, node.tier = text_of(said, "version"), text_of(said, "tier")
        node.slots = number_of(said, "slots") or 0
        node.joined_at_unix_ms = at_unix_ms

    def _leave(self, node: SeenNode, at_unix_ms: int, *, draining: bool = False) -> None:
        if node.is_joined:
            node.is_joined, node.left_at_unix_ms = False, at_unix_ms
            if not (node.cordoned or node.removed):
                self._absent[node.node] = None
        node.draining = draining

    def _forget(self) -> None:
        while len(self._absent) > self._absent_max:
            name = next(iter(self._absent))
            del self._absent[name], self._nodes[name]

    def rows(self) -> Iterator[Row]:
        """All that it holds, for `restore`: nodes, those that went first before the others; then sessions."""
        others = (name for name in self._nodes if name not in self._absent)
        for name in (*self._absent, *others):
            yield _ROW(self._nodes[name])
        yield from self._sessions.items()

    def restore(self, row: Row) -> None:
        """Take one of the rows, in their order, as JSON gives them back.

        Raises:
            ValueError, TypeError: it is none.
        """
        if len(row) == 2:
            self._sessions[int(row[0])] = str(row[1])
            return
        if len(row) != len(_NAMES):
            raise ValueError(f"a node has {len(_NAMES)} fields")
        node = SeenNode(*row)
        self._nodes[node.node] = node
        if not (node.is_joined or node.cordoned or node.removed):
            self._absent[node.node] = None
