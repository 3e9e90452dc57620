"""Whose turn it is among those who wait for the same thing. Decides nothing about workers; pure, and without a clock.

The turn is the organisation's that has least running for its weight, in it the user's, in it the invocation's (max-min
fairness, taken step by step as in DRF, Ghodsi et al., NSDI 2011). Of equals it is the turn of the one that was served
least (start-time fair queueing, Goyal et al., SIGCOMM 1996), so that one worker of one slot serves all in turn. Within
an invocation it is first come, where a priority is worth so many seconds of waiting: nothing is overtaken for ever.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from buildnet.scheduler.entry import Entry
from buildnet.scheduler.limits import INVOCATION, ROOT
from buildnet.scheduler.share import Share

Ticket = tuple[float, int]
"""When its turn comes, and the entry's id: lower first."""


class Place:
    """Where a share stands among its like: what it has by its weight, how far it was served, which came first.

    One that stands in a heap is live while it is its branch's `best`, the very one: it is no value.
    """

    __slots__ = ("branch", "load", "rank", "virtual")

    def __init__(self, load: float, virtual: float, rank: int, branch: Branch) -> None:
        self.load = load
        self.virtual = virtual
        self.rank = rank
        self.branch = branch

    def __lt__(self, other: Place) -> bool:
        if self.load != other.load:
            return self.load < other.load
        if self.virtual != other.virtual:
            return self.virtual < other.virtual
        # Equal ranks are two places of one share, of which at most one is live.
        return self.rank < other.rank


_STALE_MAX: Final = 64


class Branch:
    """A share in one queue. `best` is its live place in its parent's heap; None while it stands in none.

    An invocation's tickets are in `line`, in order; those that came after others whose turn is later are `ahead`, which
    is a heap. Most come in order: the length of the line then costs nothing.

    `waiting` is how many wait in an invocation, and above it how many children have any that wait: in most turns it
    changes in the invocation alone.

    A place is never too high: what a share has running falls only when something ends, and then `lowered` gives it a
    new one. It is too low when the share was served since it took its place; `first` puts it right when it meets it.
    """

    __slots__ = ("ahead", "best", "depth", "heap", "line", "parent", "parked", "queue", "share", "waiting")

    def __init__(self, queue: FairQueue, share: Share, parent: Branch | None) -> None:
        self.queue = queue
        self.share = share
        self.parent = parent
        self.depth = share.depth
        self.waiting = 0
        self.parked = False
        self.best: Place | None = None
        self.heap: list[Place] = []
        self.line: deque[Ticket] = deque()
        self.ahead: list[Ticket] = []

    def enter(self) -> None:
        """Stand in the parent's heap, and the parent in its own, if anything waits here."""
        branch = self
        # Those above one that stands are in their places, or out until their quotas have room.
        while branch.waiting and branch.best is None and (parent := branch.parent) is not None:
            share = branch.share
            branch.best = Place(share.used / share.weight, share.virtual, share.rank, branch)
            heappush(parent.heap, branch.best)
            branch = parent

    def lowered(self, load: float) -> None:
        """Less runs for the share, by its weight, than when it took its place."""
        share, parent = self.share, self.parent
        assert parent is not None
        was, heap = self.best, parent.heap
        self.best = place = Place(load, share.virtual, share.rank, self)
        if heap[0] is was:
            # It was the first, and is so all the more.
            heap[0] = place
            return
        heappush(heap, place)
        if len(heap) > _STALE_MAX and len(heap) > 2 * len(parent.share.children) + _STALE_MAX:
            heap[:] = [place for place in heap if place.branch.best is place]
            heapify(heap)

    def first(self) -> Branch | None:
        """The child whose turn it is; None when nothing waits here that its quotas let."""
        heap = self.heap
        while heap:
            top = heap[0]
            child = top.branch
            if child.best is not top:
                heappop(heap)
                continue
            share = child.share
            if share.limited and not share.admits(self.queue.cpu_milli):
                heappop(heap)
                child.best = None
                if not child.parked:
                    child.parked = True
                    share.parked.append(child)
                continue
            virtual = share.virtual
            if virtual == top.virtual:
                return child
            child.best = fresh = Place(share.used / share.weight, virtual, share.rank, child)
            heapreplace(heap, fresh)
            if heap[0] is fresh:
                return child
        return None

    def lowest(self) -> Branch | None:
        """The invocation below whose turn it is; None when nothing waits here that its quotas let."""
        branch = self
        while branch.depth < INVOCATION:
            child = branch.first()
            if child is not None:
                branch = child
                continue
            # Nobody there may: out, until a quota has room again (`enter`).
            branch.best = None
            if branch is self:
                return None
            branch = self
        return branch

    def add(self, ticket: Ticket) -> None:
        """An entry waits here, or has another turn."""
        line = self.line
        if not line or ticket > line[-1]:
            line.append(ticket)
        else:
            heappush(self.ahead, ticket)

    def drop(self) -> None:
        """The first ticket counts no more."""
        line, ahead = self.line, self.ahead
        if ahead and (not line or ahead[0] < line[0]):
            heappop(ahead)
        else:
            line.popleft()

    def emptied(self) -> None:
        """Nothing waits here any more: out of the parent's heap, and of the share's branches. A root stays."""
        branch = self
        while (parent := branch.parent) is not None and not branch.waiting:
            branch.best = None
            del branch.share.branches[self.queue]
            parent.waiting -= 1
            branch = parent

    def ticket(self) -> Ticket:
        """The first of an invocation's that is good: one is, for `waiting` counts them."""
        line, ahead, entries = self.line, self.ahead, self.queue.entries
        while True:
            ticket = ahead[0] if ahead and (not line or ahead[0] < line[0]) else line[0]
            entry = entries.get(ticket[1])
            if entry is not None and entry.waits_in(self) and entry.order == ticket[0]:
                return ticket
            self.drop()

    def next_tickets(self, count: int) -> list[Ticket]:
        """Some of those that come after the first, good or not, in no strict order."""
        return [*itertools.islice(self.line, 1, count), *self.ahead[1:count]]

    def clear_stale(self) -> None:
        """Keep good tickets alone."""
        is_good = self.queue.is_good
        self.line = deque([ticket for ticket in self.line if is_good(ticket, self)])
        self.ahead = [ticket for ticket in self.ahead if is_good(ticket, self)]
        heapify(self.ahead)


def fairest(roots: list[Branch]) -> Branch | None:
    """The invocation's branch whose turn comes first in any of these queues; its first ticket is the entry's.

    From the organisations down only those are looked into that share the best place. None when no quota lets anybody.
    """
    level, depth = roots, ROOT
    while level:
        if len(level) == 1:
            found = level[0].lowest()
            if found is not None or depth == ROOT:
                return found
            # Nobody may in what looked best, which is out now.
            level, depth = roots, ROOT
        elif depth == INVOCATION:
            return min(level, key=Branch.ticket)
        else:
            level, depth = _best_of(level), depth + 1
            if not level and depth > 1:
                level, depth = roots, ROOT
    return None


def _best_of(level: list[Branch]) -> list[Branch]:
    """Of the first children of each, those of the share that has the best place."""
    best: Place | None = None
    chosen: list[Branch] = []
    for branch in level:
        child = branch.first()
        if child is None:
            # Nobody there may: out, until a quota has room again (`Branch.enter`).
            branch.best = None
            continue
        place = child.best
        assert place is not None
        # No two shares have one rank, and of one share all places are alike.
        if best is not None and place.rank == best.rank:
            chosen.append(child)
        elif best is None or place < best:
            best, chosen = place, [child]
    return chosen


class FairQueue:
    """Entries that the same workers may run, by their ids in `entries`."""

    __slots__ = ("cpu_milli", "entries", "root")

    def __init__(self, root: Share, cpu_milli: int, entries: dict[int, Entry]) -> None:
        self.root = Branch(self, root, None)
        self.cpu_milli = cpu_milli
        self.entries = entries

    @property
    def waiting(self) -> bool:
        """Whether anybody waits."""
        return self.root.waiting > 0

    def push(self, leaf: Share, ticket: Ticket) -> Branch:
        """One more waits; returns where."""
        branch = leaf.branches.get(self) or self._branch(leaf)
        branch.add(ticket)
        at: Branch | None = branch
        while at is not None:
            at.waiting += 1
            at = at.parent if at.waiting == 1 else None
        if branch.best is None:
            branch.enter()
        return branch

    def removed(self, branch: Branch, number: int) -> None:
        """One waits no more; a ticket of its that is not the first in line is passed over when it is met."""
        branch.waiting = waiting = branch.waiting - 1
        if not waiting:
            branch.emptied()
        line = branch.line
        if line and line[0][1] == number:
            line.popleft()
        # Stale ones are met only when a worker is free: of what was cancelled meanwhile no more than so many are kept.
        if len(line) + len(branch.ahead) > 2 * waiting + _STALE_MAX:
            branch.clear_stale()

    def is_good(self, ticket: Ticket, branch: Branch) -> bool:
        """Whether what holds this ticket waits here, and has no other."""
        entry = self.entries.get(ticket[1])
        return entry is not None and entry.waits_in(branch) and entry.order == ticket[0]

    def tickets(self) -> Iterator[Ticket]:
        """Every good ticket, each at least once."""
        todo = [self.root]
        while todo:
            branch = todo.pop()
            for ticket in itertools.chain(branch.line, branch.ahead):
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
