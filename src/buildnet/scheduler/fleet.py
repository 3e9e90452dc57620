"""Where every node stands: `step(event) -> effects`. No I/O, no clock; it knows no worker's leases and gives no work.

What it promises, and what tests/explore/test_fleet.py walks: a node has at most one session that the scheduler knows
of; a removed node has none; a cordoned one is told to the scheduler as such before it can be given work; a start of a
node's process that another start has displaced never comes back (two processes of one copied state directory do not
take turns); every session that began is lost once.

A session is a number that only rises. A boot id names one start of a worker's process: its state directory is locked,
so two starts of one node are one after the other, or are of copies of the directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from buildnet.errors import Forbidden, NotFound, TooLarge
from buildnet.model.entry import Value
from buildnet.model.node import NODE_POLICIES_MAX, Greeting, NodePolicy, NodeState, NodeView
from buildnet.scheduler.clock_skew import ClockSkew
from buildnet.scheduler.fleet_events import (
    AllowAsked,
    Ask,
    Begin,
    Changed,
    Close,
    CordonAsked,
    DrainAsked,
    DrainSaid,
    Effect,
    Ended,
    Event,
    Hello,
    Lose,
    NoMoreWork,
    Plan,
    Policies,
    Record,
    Refuse,
    RemoveAsked,
    SetCordon,
    TellDrain,
    TimeSaid,
    Welcomed,
)

ABSENT_MAX: Final = 1000
SKEW_TOLD_MS: Final = 1000
_OLD_BOOTS_MAX: Final = 8
_FREE: Final = NodePolicy()


@dataclass(slots=True)
class _Node:
    greeting: Greeting
    session: int | None
    joined_at_unix_ms: int
    last_seen_unix_ms: int
    joined_by: str = ""
    welcomed: bool = False
    draining: bool = False
    drain_by: str = ""
    # Newest last; the present one is not among them.
    displaced_boots: tuple[str, ...] = ()
    refusals_told: set[str] = field(default_factory=set)
    skew: ClockSkew | None = None
    skew_told_of: str = ""

    @property
    def boot(self) -> str:
        return self.greeting.offer.boot_id


class FleetCore:
    """All that is known of nodes. Not thread-safe: one loop owns it."""

    def __init__(self, policies: Policies, *, absent_max: int = ABSENT_MAX) -> None:
        self.policies: Policies = dict(policies)
        self._absent_max = absent_max
        self._nodes: dict[str, _Node] = {}
        self._by_session: dict[int, str] = {}
        # Removed nodes that were refused since the controller started: each is told to the ledger once.
        self._removed_told: set[str] = set()

    # What is known.

    def view(self, node: str) -> NodeView | None:
        """A node as it stands; None for one that is not known."""
        known, policy = self._nodes.get(node), self.policies.get(node, _FREE)
        if known is None:
            if policy.is_free:
                return None
            return NodeView(node, "removed" if policy.removed else "left", policy, asked_by=policy.by)
        return NodeView(
            node,
            _state_of(known, policy),
            policy,
            known.greeting,
            known.session,
            known.draining,
            known.drain_by if known.draining else policy.by,
            known.joined_at_unix_ms,
            known.last_seen_unix_ms,
            None if known.skew is None else known.skew.ms,
        )

    def names(self) -> list[str]:
        """Every node that is known, in order."""
        return sorted({*self._nodes, *self.policies})

    def is_current(self, session: int) -> bool:
        """Whether a session is open, and not displaced or closed."""
        return session in self._by_session

    # What happens.

    def plan(self, ask: Ask) -> Plan | None:
        """What an ask would change; None when it is so already.

        Raises:
            NotFound: the node is not known, or has no session to drain.
            TooLarge: as many nodes are cordoned or removed as may be.
        """
        facts: dict[str, Value] = {"node": ask.node, "by": ask.by}
        if isinstance(ask, DrainAsked):
            known = self._known_open(ask.node)
            return None if known.draining else Plan(self.policies, "node.draining", facts)
        if isinstance(ask, CordonAsked) and self.view(ask.node) is None:
            raise _unknown(ask.node)
        policies = self._policies_after(ask)
        return None if policies is None else Plan(policies, _kind_of(ask), facts)

    def _policies_after(self, ask: CordonAsked | RemoveAsked | AllowAsked) -> Policies | None:
        policy = self.policies.get(ask.node, _FREE)
        wanted = _decided(ask, policy)
        if (wanted.cordoned, wanted.removed) == (policy.cordoned, policy.removed):
            return None
        policies = {node: known for node, known in self.policies.items() if node != ask.node}
        if wanted.is_free:
            return policies
        if len(policies) >= NODE_POLICIES_MAX:
            raise TooLarge(
                f"{NODE_POLICIES_MAX} nodes are cordoned or removed already; allow or uncordon those that are no more",
                limit=NODE_POLICIES_MAX,
            )
        return {**policies, ask.node: wanted}

    def step(self, event: Event) -> list[Effect]:
        """Apply one event; stale sessions change nothing. An ask is planned first; its entry is the caller's."""
        match event:
            case Hello():
                return list(self._hello(event))
            case Welcomed():
                return list(self._welcomed(event.session))
            case TimeSaid():
                return list(self._time_said(event))
            case DrainSaid():
                return list(self._drain_said(event.session))
            case Ended():
                return list(self._ended(event))
            case DrainAsked():
                return list(self._drain_asked(event))
            case CordonAsked() | RemoveAsked() | AllowAsked():
                return list(self._decided(event))

    def _hello(self, event: Hello) -> Iterator[Effect]:
        name, boot = event.greeting.offer.node, event.greeting.offer.boot_id
        if self.policies.get(name, _FREE).removed:
            if name not in self._removed_told:
                self._removed_told.add(name)
                yield Record("node.refused", {"node": name, "reason": "removed", "by": event.by})
            yield Refuse(event.session, removed_error(name))
            return
        known = self._nodes.get(name)
        if known is not None and boot in known.displaced_boots:
            if boot not in known.refusals_told:
                known.refusals_told.add(boot)
                yield Record("node.refused", {"node": name, "boot": boot, "reason": "displaced", "by": event.by})
            yield Refuse(event.session, _displaced_error(name))
            return
        fresh = _Node(event.greeting, event.session, event.at_unix_ms, event.at_unix_ms, event.by)
        if event.greeting.sent_unix_ms is not None:
            fresh.skew = ClockSkew(event.greeting.sent_unix_ms, event.at_unix_ms)
        if known is not None:
            yield from self._take_over(name, known, fresh)
        self._nodes[name] = fresh
        self._by_session[event.session] = name
        yield Changed(name)

    def _take_over(self, name: str, known: _Node, fresh: _Node) -> Iterator[Effect]:
        """What the node's newest session inherits from the one before, which ends if it is still open."""
        fresh.displaced_boots, fresh.refusals_told = known.displaced_boots, known.refusals_told
        fresh.skew_told_of = known.skew_told_of
        if known.boot == fresh.boot:
            # Its drain outlives a broken connection: the process is the same.
            fresh.draining, fresh.drain_by = known.draining, known.drain_by
        else:
            fresh.displaced_boots = (*known.displaced_boots, known.boot)[-_OLD_BOOTS_MAX:]
            fresh.refusals_told &= set(fresh.displaced_boots)
            yield Record("node.restarted", {"node": name, "boot": fresh.boot, "earlier_boot": known.boot})
        if known.session is not None:
            del self._by_session[known.session]
            yield Close(known.session, _displaced_error(name))
            if known.welcomed:
                yield Lose(name, may_return=True)

    def _welcomed(self, session: int) -> Iterator[Effect]:
        name = self._by_session.get(session)
        if name is None or self._nodes[name].welcomed:
            return
        known, policy = self._nodes[name], self.policies.get(name, _FREE)
        known.welcomed = True
        yield Begin(session, policy.cordoned)
        offer = known.greeting.offer
        facts: dict[str, Value] = {"node": name, "boot": offer.boot_id, "slots": offer.slots, "tier": offer.tier}
        yield Record("node.joined", {**facts, "version": known.greeting.version, "by": known.joined_by})
        yield from self._skewed(name, known)
        if known.draining:
            yield NoMoreWork(name)
            yield TellDrain(session)
        yield Changed(name)

    def _time_said(self, event: TimeSaid) -> Iterator[Effect]:
        name = self._by_session.get(event.session)
        if name is None or (known := self._nodes[name]).skew is None:
            return
        known.skew.heard(event.sent_unix_ms, event.heard_unix_ms)
        if known.welcomed:
            yield from self._skewed(name, known)

    def _skewed(self, name: str, known: _Node) -> Iterator[Effect]:
        """Tell of a clock that is certainly off, once for each start."""
        skew_ms = 0 if known.skew is None else known.skew.certain_ms
        if abs(skew_ms) > SKEW_TOLD_MS and known.skew_told_of != known.boot:
            known.skew_told_of = known.boot
            yield Record("node.clock_skewed", {"node": name, "skew_ms": skew_ms})
            yield Changed(name)

    def _drain_said(self, session: int) -> Iterator[Effect]:
        name = self._by_session.get(session)
        if name is None or not self._nodes[name].welcomed:
            return
        known = self._nodes[name]
        yield NoMoreWork(name)
        if not known.draining:
            known.draining, known.drain_by = True, ""
            yield Record("node.draining", {"node": name, "by": ""})
            yield Changed(name)

    def _ended(self, event: Ended) -> Iterator[Effect]:
        name = self._by_session.pop(event.session, None)
        if name is None:
            return
        known = self._nodes[name]
        began, known.session, known.welcomed = known.welcomed, None, False
        known.last_seen_unix_ms = event.last_seen_unix_ms
        drained = known.draining and event.clean
        if began:
            yield Lose(name, may_return=True)
            yield Record("node.left", {"node": name, "drained": int(drained)})
        if drained:
            yield Record("node.drained", {"node": name, "by": known.drain_by})
            known.draining = False
        yield Changed(name)
        self._forget_absent()

    def _drain_asked(self, event: DrainAsked) -> Iterator[Effect]:
        known = self._nodes.get(event.node)
        if known is None or known.session is None or known.draining:
            return
        known.draining, known.drain_by = True, event.by
        if known.welcomed:
            yield NoMoreWork(event.node)
            yield TellDrain(known.session)
        yield Changed(event.node)

    def _decided(self, event: CordonAsked | RemoveAsked | AllowAsked) -> Iterator[Effect]:
        policies = self._policies_after(event)
        if policies is None:
            return
        self.policies = policies
        known = self._nodes.get(event.node)
        if isinstance(event, AllowAsked):
            self._removed_told.discard(event.node)
        if isinstance(event, CordonAsked) and known is not None and known.welcomed:
            yield SetCordon(event.node, event.cordoned)
        if isinstance(event, RemoveAsked) and known is not None and known.session is not None:
            del self._by_session[known.session]
            yield Close(known.session, removed_error(event.node))
            if known.welcomed:
                yield Lose(event.node, may_return=False)
            known.session, known.welcomed, known.draining = None, False, False
        yield Changed(event.node)

    def _known_open(self, name: str) -> _Node:
        known = self._nodes.get(name)
        if known is None:
            raise _unknown(name)
        if known.session is None:
            raise NotFound(
                f"node {name} has no session, so nothing is to drain; cordon it to keep it from work when it returns",
                kind="node",
                name=name,
            )
        return known

    def _forget_absent(self) -> None:
        absent = [name for name, known in self._nodes.items() if known.session is None and name not in self.policies]
        if len(absent) > self._absent_max:
            del self._nodes[min(absent, key=lambda name: (self._nodes[name].last_seen_unix_ms, name))]


def _state_of(known: _Node, policy: NodePolicy) -> NodeState:
    if policy.removed:
        return "removed"
    if known.session is None:
        return "left"
    if not known.welcomed:
        return "joining"
    if known.draining:
        return "draining"
    return "cordoned" if policy.cordoned else "active"


def _decided(ask: CordonAsked | RemoveAsked | AllowAsked, policy: NodePolicy) -> NodePolicy:
    match ask:
        case CordonAsked():
            return replace(policy, cordoned=ask.cordoned, by=ask.by)
        case RemoveAsked():
            return replace(policy, removed=True, by=ask.by)
        case AllowAsked():
            return replace(policy, removed=False, by=ask.by)


def _kind_of(ask: CordonAsked | RemoveAsked | AllowAsked) -> str:
    match ask:
        case CordonAsked():
            return "node.cordoned" if ask.cordoned else "node.uncordoned"
        case RemoveAsked():
            return "node.removed"
        case AllowAsked():
            return "node.allowed"


def removed_error(name: str) -> Forbidden:
    """What a removed node is told."""
    return Forbidden(
        f"node {name} was removed from this fleet; an administrator lets it in with: buildnet fleet allow {name}"
    )


def _displaced_error(name: str) -> Forbidden:
    return Forbidden(
        f"a newer worker process has joined as node {name}; if its state directory was copied, stop this worker, "
        "delete the file `id` in one of the copies, and start it again"
    )


def _unknown(name: str) -> NotFound:
    return NotFound(f"no node {name} is known; `buildnet fleet ls --all` lists those that are", kind="node", name=name)
