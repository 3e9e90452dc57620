"""Whose turn it is among those who wait for the same thing. Decides nothing about workers; pure, and without a clock.

The turn is the organisation's that has least running for its weight, in it the user's, in it the invocation's (max-min
fairness, taken step by step as in DRF, Ghodsi et al., NSDI 2011). Of equals it is the turn of the one that was served
least (start-time fair queueing, Goyal et al., SIGCOMM 1996), so that one worker of one slot serves all in turn. Within
an invocation it is first come, where a priority is worth so many seconds of waiting: nothing is overtaken for ever.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from buildnet.scheduler.share import Share

Ticket = tuple[float, int]
"""When its turn comes, and the entry's id: lower first."""


class Waits(Protocol):
    """An entry: `branch` is where it waits, None while it does not; `order` is when its turn comes."""

    order: float
    branch: Branch | None


_STALE_MAX: Final = 64


class Branch:
    """A share in one queue. `best` is its live place in its parent's heap; None while it stands in none.

    A place is never too high: what a share has running falls only when something ends, and then `lowered` gives it a
    new one. It may be too low; `FairQueue` puts it right when it meets it.
    """

    __slots__ = ("best", "heap", "parent", "parked", "queue", "share", "tickets", "waiting")

    def __init__(self, queue: FairQueue, share: Share, parent: Branch | None) -> None:
        self.queue = queue
        self.share = share
        self.parent = parent
        self.waiting = 0
        self.parked = False
        self.best: tuple[float, float, int, Branch] | None = None
        self.heap: list[tuple[float, float, int, Branch]] = []
        self.tickets: list[Ticket] = []

    def __lt__(self, other: Branch) -> bool:
        # Asked by heapq alone, and only for two places of one share, of which at most one is live.
        return False

    def enter(self) -> None:
        """Stand in the parent's heap, and the parent in its own, if anything waits here."""
        branch = self
        while branch.waiting and (parent := branch.parent) is not None:
            if branch.best is None:
                share = branch.share
                branch.best = (share.used / share.weight, share.virtual, share.rank, branch)
                heapq.heappush(parent.heap, branch.best)
            branch = parent

    def lowered(self, used: float) -> None:
        """Less runs for the share, by its weight, than when it took its place."""
        share, parent = self.share, self.parent
        assert parent is not None
        self.best = (used, share.virtual, share.rank, self)
        heap = parent.heap
        heapq.heappush(heap, self.best)
        if len(heap) > 2 * len(parent.share.children) + _STALE_MAX:
            heap[:] = [place for place in heap if place[3].best is place]
            heapq.heapify(heap)


Turn = tuple[Branch, ...]
"""Whose turn it is: an organisation's, in it a user's, in it an invocation's."""


def is_before(turn: Turn, other: Turn) -> bool:
    """Whether the turn of one queue comes before that of another."""
    for mine, theirs in zip(turn, other, strict=True):
        if mine.share is not theirs.share:
            # Their ranks differ, so that the places do.
            return mine.best is not None and theirs.best is not None and mine.best < theirs.best
    return turn[-1].tickets[0] < other[-1].tickets[0]


class FairQueue:
    """Entries that the same workers may run, by their ids in `entries`."""

    __slots__ = ("cpu_milli", "entries", "root")

    def __init__(self, root: Share, cpu_milli: int, entries: Mapping[int, Waits]) -> None:
        self.root = Branch(self, root, None)
        self.cpu_milli = cpu_milli
        self.entries = entries

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self.root.waiting

    def push(self, leaf: Share, ticket: Ticket) -> Branch:
        """One more waits; returns where."""
        branch = leaf.branches.get(self) or self._branch(leaf)
        heapq.heappush(branch.tickets, ticket)
        at: Branch | None = branch
        while at is not None:
            at.waiting += 1
            at = at.parent
        branch.enter()
        return branch

    def again(self, branch: Branch, ticket: Ticket) -> None:
        """One that waits has another ticket now."""
        heapq.heappush(branch.tickets, ticket)

    def removed(self, branch: Branch) -> None:
        """One waits no more; its ticket is passed over when it is met."""
        at: Branch | None = branch
        while at is not None:
            at.waiting -= 1
            if not at.waiting and at.parent is not None:
                at.best = None
                del at.share.branches[self]
            at = at.parent
        # Tickets of those that left are met only when a worker is free: without one they would pile up.
        if len(branch.tickets) > 2 * branch.waiting + _STALE_MAX:
            branch.tickets[:] = [ticket for ticket in branch.tickets if self.is_good(ticket, branch)]
            heapq.heapify(branch.tickets)

    def is_good(self, ticket: Ticket, branch: Branch) -> bool:
        """Whether what holds this ticket waits here, and has no other."""
        entry = self.entries.get(ticket[1])
        return entry is not None and entry.branch is branch and entry.order == ticket[0]

    def head(self) -> Turn | None:
        """Whose turn it is; the first ticket of the last branch is the entry's. None when no quota lets anybody."""
        root = self.root
        while (organisation := self._first(root)) is not None:
            user = self._first(organisation)
            if user is None:
                # Nobody there may: out, until a quota has room again (`Branch.enter`).
                organisation.best = None
                continue
            invocation = self._first(user)
            if invocation is None:
                user.best = None
                continue
            tickets, entries = invocation.tickets, self.entries
            while True:
                order, number = tickets[0]
                entry = entries.get(number)
                if entry is not None and entry.branch is invocation and entry.order == order:
                    return organisation, user, invocation
                heapq.heappop(tickets)
        return None

    def tickets(self) -> Iterator[Ticket]:
        """Every good ticket, each at least once."""
        todo = [self.root]
        while todo:
            branch = todo.pop()
            for ticket in branch.tickets:
                if self.is_good(ticket, branch):
                    yield ticket
            todo += [share.branches[self] for share in branch.share.children.values() if self in share.branches]

    def _branch(self, share: Share) -> Branch:
        if share.parent is None:
            return self.root
        found = share.branches.get(self)
        if found is None:
            found = share.branches[self] = Branch(self, share, self._branch(share.parent))
        return found

    def _first(self, branch: Branch) -> Branch | None:
        heap = branch.heap
        while heap:
            top = heap[0]
            child = top[3]
            if child.best is not top:
                heapq.heappop(heap)
                continue
            share = child.share
            if share.limited and not share.admits(self.cpu_milli):
                heapq.heappop(heap)
                child.best = None
                if not child.parked:
                    child.parked = True
                    share.parked.append(child)
                continue
            used = share.used / share.weight
            virtual = share.virtual
            if virtual == top[1] and used == top[0]:
                return child
            child.best = fresh = (used, virtual, share.rank, child)
            if len(heap) == 1:
                heap[0] = fresh
                return child
            heapq.heapreplace(heap, fresh)
            if heap[0] is fresh:
                return child
        return None
