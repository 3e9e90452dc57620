"""Who has how much of the fleet: a tree of organisations, their users, their invocations. Pure; it knows no action.

Each share counts the cost of what runs for it now, and how far it has been served. What it may not pass is its quota.

A beginning and an end touch no more numbers than the next turn is decided by: how many wait and run is counted in an
invocation, and above it where a quota asks for it; elsewhere it is added up for whoever wants to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buildnet.scheduler.limits import INVOCATION, NO_QUOTA, USER, Quota, Quotas

if TYPE_CHECKING:
    from buildnet.scheduler.queue import Branch, FairQueue

Path = tuple[str, ...]
"""An invocation by its names from the organisation on. Not told to be three: compiled, that would be another tuple each
time, and each of many that wait would hold its own.
"""

PRIORITY_MAX: Final = 100
"""Priorities are cut to -100 and 100."""

_HALVING: Final = 10
# 2^(p/10) in 1024ths: what one unit of cost weighs among a user's invocations. Whole, so that counts come back to zero.
_WEIGHS: Final = tuple(round(1024 * 2 ** (p / _HALVING)) for p in range(-PRIORITY_MAX, PRIORITY_MAX + 1))


def bounded(priority: int) -> int:
    """The priority within its bounds."""
    return max(-PRIORITY_MAX, min(PRIORITY_MAX, priority))


def weighed(cost: int, priority: int) -> int:
    """What a cost counts among a user's invocations: twice as much for each 10 of priority. Never 0."""
    return max(1, cost * _WEIGHS[bounded(priority) + PRIORITY_MAX] >> 10)


class Share:
    """One organisation, user or invocation. `used` is the cost of what runs for it, `virtual` how far it was served.

    It is compared by `used` over its weight. `path` names an invocation from its organisation on. `counted` are those
    from this one up that have a quota: they count what waits and runs, as each invocation does. `active` is how many of
    its children have anything that waits.
    """

    __slots__ = (
        "_counts",
        "active",
        "branches",
        "children",
        "counted",
        "cpu_milli",
        "depth",
        "limited",
        "name",
        "own_queued",
        "own_running",
        "parent",
        "parked",
        "path",
        "quota",
        "rank",
        "served",
        "used",
        "virtual",
        "weight",
    )

    def __init__(self, name: str, parent: Share | None, rank: int, quota: Quota) -> None:
        self.name = name
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.rank = rank
        self.quota = quota
        self.weight = quota.weight
        self.limited = quota.actions_max is not None or quota.cpu_milli_max is not None
        above = parent.counted if parent is not None else ()
        has_quota = self.limited or quota.queued_max is not None
        self.counted: tuple[Share, ...] = (self, *above) if has_quota else above
        self._counts = has_quota or self.depth == INVOCATION
        self.used = 0
        self.path: Path = ("", "", "")
        self.cpu_milli = 0
        self.own_running = 0
        self.own_queued = 0
        self.active = 0
        # Start-time fair queueing: a share that was away starts where those that are served stand.
        self.virtual: float = parent.served if parent is not None else 0.0
        self.served: float = 0.0
        self.children: dict[str, Share] = {}
        self.branches: dict[FairQueue, Branch] = {}
        self.parked: list[Branch] = []

    def admits(self, cpu_milli: int) -> bool:
        """Whether one more that takes so much stays within the quota of what runs at once."""
        quota = self.quota
        return (quota.actions_max is None or self.own_running < quota.actions_max) and (
            quota.cpu_milli_max is None or self.cpu_milli + cpu_milli <= quota.cpu_milli_max
        )

    @property
    def running(self) -> int:
        """How many run for it."""
        return self.own_running if self._counts else sum(share.running for share in self.children.values())

    @property
    def queued(self) -> int:
        """How many wait for it, or are being looked up."""
        return self.own_queued if self._counts else sum(share.queued for share in self.children.values())

    @property
    def title(self) -> str:
        """For people."""
        kind = ("the fleet", "the organisation", "the user", "the invocation")[self.depth]
        return f"{kind} {self.name!r}" if self.name else f"{kind} without a name"


class Shares:
    """The tree. A share is there while something waits or runs for it."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._rank = 0
        self._leaves: dict[Path, Share] = {}
        self.root = Share("", None, 0, NO_QUOTA)

    def leaf(self, path: Path) -> Share:
        """The invocation's share, made when it is not there."""
        known = self._leaves.get(path)
        if known is not None:
            return known
        share = self.root
        for name in path:
            found = share.children.get(name)
            if found is None:
                self._rank += 1
                depth = share.depth + 1
                # A user's quota is found by the whole name: two organisations may each have an alice.
                whole = f"{path[0]}/{name}" if depth == USER and path[0] else name
                found = share.children[name] = Share(name, share, self._rank, self._quotas.of(depth, whole))
            share = found
        share.path = path
        self._leaves[path] = share
        return share

    def refused(self, leaf: Share) -> Share | None:
        """Whose quota of waiting actions is full, if anybody's."""
        for share in leaf.counted:
            if share.quota.queued_max is not None and share.own_queued >= share.quota.queued_max:
                return share
        return None

    def too_much(self, leaf: Share, cpu_milli: int) -> Share | None:
        """Whose quota can never hold an action of so many cpus, if anybody's."""
        share: Share | None = leaf
        while share is not None:
            quota = share.quota
            if quota.actions_max == 0 or (quota.cpu_milli_max is not None and cpu_milli > quota.cpu_milli_max):
                return share
            share = share.parent
        return None

    def wait(self, leaf: Share) -> None:
        """One more waits."""
        for share in leaf.counted:
            share.own_queued += 1
        share, others = leaf, leaf.own_queued
        leaf.own_queued = others + 1
        while not others and (parent := share.parent) is not None:
            # Nothing waited for it: it starts where those stand that were served meanwhile.
            if share.virtual < parent.served:
                share.virtual = parent.served
            share, others = parent, parent.active
            parent.active = others + 1

    def go(self, leaf: Share) -> None:
        """One waits no more."""
        for share in leaf.counted:
            share.own_queued -= 1
        leaf.own_queued -= 1
        if not leaf.own_queued:
            self._rest(leaf)

    def _rest(self, leaf: Share) -> None:
        """Nothing waits for an invocation any more."""
        share = leaf.parent
        while share is not None:
            share.active -= 1
            share = share.parent if not share.active else None

    def take(self, leaf: Share, cost: int, charge: int, cpu_milli: int) -> None:
        """One begins to run: `charge` is its cost among the user's invocations."""
        leaf.own_running += 1
        for share in leaf.counted:
            share.own_running += 1
            share.cpu_milli += cpu_milli
        weighs, at = charge, leaf
        while (parent := at.parent) is not None:
            virtual = at.virtual
            at.used += weighs
            if virtual > parent.served:
                parent.served = virtual
            at.virtual = virtual + weighs / at.weight
            weighs, at = cost, parent

    def give_back(self, leaf: Share, cost: int, charge: int, cpu_milli: int) -> None:
        """One runs no more: whoever waited for this share's turn, or for its quota, may have it."""
        leaf.own_running -= 1
        for share in leaf.counted:
            share.own_running -= 1
            share.cpu_milli -= cpu_milli
        weighs, at = charge, leaf
        while (parent := at.parent) is not None:
            at.used = used = at.used - weighs
            if at.parked:
                parked, at.parked = at.parked, []
                for branch in parked:
                    branch.parked = False
                    branch.enter()
            load = used / at.weight
            for branch in at.branches.values():
                best = branch.best
                if best is not None and load < best.load:
                    branch.lowered(load)
            weighs, at = cost, parent

    def forget(self, leaf: Share) -> None:
        """Drop what nothing waits or runs for."""
        share = leaf
        while (parent := share.parent) is not None and not (share.own_queued or share.used or share.children):
            if parent.children.get(share.name) is share:
                del parent.children[share.name]
                # Of a share that is no invocation the path is nobody's, or that of one without names, which is there.
                if self._leaves.get(share.path) is share:
                    del self._leaves[share.path]
            share = parent
