"""Whose turn it is among those who wait for the same thing. Decides nothing about workers; pure, and without a clock.

The turn is the organisation's that has least running for its weight, in it the user's, in it the invocation's (max-min
fairness, taken step by step as in DRF, Ghodsi et al., NSDI 2011). Of equals it is the turn of the one that was served
least (start-time fair queueing, Goyal et al., SIGCOMM 1996), so that one worker of one slot serves all in turn. Within
an invocation it is first come, where a priority is worth so many seconds of waiting: nothing is overtaken for ever.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Final

from buildnet.scheduler.share import INVOCATION, Share

Ticket = tuple[float, int]
"""When its turn comes, and the entry's id: lower first."""

Turn = tuple[float, float, int]
"""What runs for the share by its weight, how far it was served, when it came."""

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

    def enter(self) -> None:
        """Stand in the parent's heap, and the parent in its own, if anything waits here."""
        branch = self
        while branch.waiting and (parent := branch.parent) is not None:
            if branch.best is None:
                share = branch.share
                branch.best = (share.used / share.weight, share.virtual, share.rank, branch)
                heapq.heappush(parent.heap, branch.best)
            branch = parent

    def lowered(self) -> None:
        """Less runs for the share than before."""
        best, share, parent = self.best, self.share, self.parent
        if best is None or parent is None:
            return
        used = share.used / share.weight
        if used < best[0]:
            self.best = (used, share.virtual, share.rank, self)
            heap = parent.heap
            heapq.heappush(heap, self.best)
            if len(heap) > 2 * len(parent.share.children) + _STALE_MAX:
                heap[:] = [place for place in heap if place[3].best is place]
                heapq.heapify(heap)


class FairQueue:
    """Entries that one another's workers may run. `is_waiting` says whether a ticket is still good."""

    __slots__ = ("cpu_milli", "is_waiting", "root")

    def __init__(self, root: Share, cpu_milli: int, is_waiting: Callable[[Ticket, Branch], bool]) -> None:
        self.root = Branch(self, root, None)
        self.cpu_milli = cpu_milli
        self.is_waiting = is_waiting

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self.root.waiting

    def push(self, leaf: Share, ticket: Ticket) -> Branch:
        """One more waits; returns where."""
        branch = self._branch(leaf)
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
            branch.tickets[:] = [ticket for ticket in branch.tickets if self.is_waiting(ticket, branch)]
            heapq.heapify(branch.tickets)

    def head(self) -> tuple[tuple[object, ...], Branch] | None:
        """Whose turn it is: what orders it among the heads of other queues, and where it waits; None when no quota
        lets anybody.
        """
        branch = self.root
        turns: list[object] = []
        while branch.share.depth < INVOCATION:
            child = self._first(branch)
            if child is None:
                if branch is self.root:
                    return None
                # Nobody below may: out, until a quota below has room again (`Branch.enter`).
                branch.best = None
                branch, turns = self.root, []
                continue
            turns.append(child.best[:3] if child.best is not None else ())
            branch = child
        turns.append(self.ticket(branch))
        return tuple(turns), branch

    def ticket(self, branch: Branch) -> Ticket:
        """The first ticket that is good; something waits here."""
        tickets = branch.tickets
        while not self.is_waiting(tickets[0], branch):
            heapq.heappop(tickets)
        return tickets[0]

    def tickets(self) -> Iterator[Ticket]:
        """Every good ticket, each at least once."""
        todo = [self.root]
        while todo:
            branch = todo.pop()
            for ticket in branch.tickets:
                if self.is_waiting(ticket, branch):
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
            if used == top[0] and share.virtual == top[1]:
                return child
            child.best = fresh = (used, share.virtual, share.rank, child)
            heapq.heapreplace(heap, fresh)
        return None
