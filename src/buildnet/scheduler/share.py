"""Who has how much of the fleet: a tree of organisations, their users, their invocations. Pure; it knows no action.

Each share counts what runs for it now, and how far it has been served. What it may not pass is its quota.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from buildnet.scheduler.queue import Branch, FairQueue

ROOT, ORGANISATION, USER, INVOCATION = range(4)

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


@dataclass(frozen=True, slots=True)
class Quota:
    """What one organisation or user gets: its weight among its like, and what it may not pass; None is no bound.

    `queued_max` counts actions that wait, `actions_max` and `cpu_milli_max` what runs at once.
    """

    weight: int = 1
    actions_max: int | None = None
    cpu_milli_max: int | None = None
    queued_max: int | None = None


EVERYBODY: Final = "*"
"""The name under which the quota of all who have none of their own stands."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """Quotas by the name of the organisation, and by the name of the user."""

    organisations: Mapping[str, Quota] = field(default_factory=dict)
    users: Mapping[str, Quota] = field(default_factory=dict)

    def of(self, depth: int, name: str) -> Quota:
        """The quota of one, or of everybody, or none."""
        named = self.organisations if depth == ORGANISATION else self.users if depth == USER else {}
        return named.get(name) or named.get(EVERYBODY) or _FREE


_FREE: Final = Quota()


class Share:
    """One organisation, user or invocation. `used` is the cost of what runs for it, `virtual` how far it was served.

    `load` is `used` over its weight: what it is compared by. `path` names an invocation from its organisation on.
    """

    __slots__ = (
        "branches",
        "children",
        "cpu_milli",
        "depth",
        "limited",
        "load",
        "name",
        "parent",
        "parked",
        "path",
        "queued",
        "quota",
        "rank",
        "running",
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
        self.used = 0
        self.load = 0.0
        self.path: tuple[str, str, str] = ("", "", "")
        self.cpu_milli = 0
        self.running = 0
        self.queued = 0
        # Start-time fair queueing: a share that was away starts where those that are served stand.
        self.virtual: float = parent.served if parent is not None else 0.0
        self.served: float = 0.0
        self.children: dict[str, Share] = {}
        self.branches: dict[FairQueue, Branch] = {}
        self.parked: list[Branch] = []

    def admits(self, cpu_milli: int) -> bool:
        """Whether one more that takes so much stays within the quota of what runs at once."""
        quota = self.quota
        return (quota.actions_max is None or self.running < quota.actions_max) and (
            quota.cpu_milli_max is None or self.cpu_milli + cpu_milli <= quota.cpu_milli_max
        )

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
        self._leaves: dict[tuple[str, str, str], Share] = {}
        self.root = Share("", None, 0, _FREE)

    def leaf(self, path: tuple[str, str, str]) -> Share:
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
        share: Share | None = leaf
        while share is not None:
            if share.quota.queued_max is not None and share.queued >= share.quota.queued_max:
                return share
            share = share.parent
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
        share = leaf
        while (parent := share.parent) is not None:
            if not share.queued and share.virtual < parent.served:
                share.virtual = parent.served
            share.queued += 1
            share = parent

    def go(self, leaf: Share) -> None:
        """One waits no more."""
        share = leaf
        while (parent := share.parent) is not None:
            share.queued -= 1
            share = parent

    def take(self, leaf: Share, cost: int, charge: int, cpu_milli: int) -> None:
        """One begins to run: `charge` is its cost among the user's invocations."""
        share, weighs = leaf, charge
        while (parent := share.parent) is not None:
            weight, virtual = share.weight, share.virtual
            share.used += weighs
            share.load = share.used / weight
            share.cpu_milli += cpu_milli
            share.running += 1
            if virtual > parent.served:
                parent.served = virtual
            share.virtual = virtual + weighs / weight
            share, weighs = parent, cost

    def give_back(self, leaf: Share, cost: int, charge: int, cpu_milli: int) -> None:
        """One runs no more: whoever waited for this share's turn, or for its quota, may have it."""
        share, weighs = leaf, charge
        while (parent := share.parent) is not None:
            share.used -= weighs
            share.load = load = share.used / share.weight
            share.cpu_milli -= cpu_milli
            share.running -= 1
            if share.parked:
                parked, share.parked = share.parked, []
                for branch in parked:
                    branch.parked = False
                    branch.enter()
            for branch in share.branches.values():
                best = branch.best
                if best is not None and load < best[0]:
                    branch.lowered()
            share, weighs = parent, cost

    def forget(self, leaf: Share) -> None:
        """Drop what nothing waits or runs for."""
        share = leaf
        while (parent := share.parent) is not None and not (share.queued or share.running or share.children):
            if parent.children.get(share.name) is share:
                del parent.children[share.name]
                # Of a share that is no invocation the path is nobody's, or that of one without names, which is there.
                if self._leaves.get(share.path) is share:
                    del self._leaves[share.path]
            share = parent
