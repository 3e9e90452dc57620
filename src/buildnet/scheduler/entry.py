"""What the core keeps of one wanted action: where it waits, what runs, how often it failed. It knows no other entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from buildnet.model.action import Lease, Wanted
from buildnet.scheduler.limits import Limits

if TYPE_CHECKING:
    from buildnet.scheduler.placement import Demand, Worker
    from buildnet.scheduler.queue import Branch
    from buildnet.scheduler.share import Share

# Failures that say more about the node than about the action: tried again on another one.
_FAULTS: Final = frozenset({"sandbox_failed", "storage_full", "internal"})
# The worker itself was ended.
_LOSSES: Final = frozenset({"node_down", "cancelled"})

EntryState = Literal["looking", "queued", "returning", "leased", "publishing"]


class Attempt:
    """A lease in force. `charge` is what its share is given back; `worker` None for one that an earlier controller gave
    and whose worker has not joined this one. `ended` once its command has; `sending` once what that took, but for disk,
    was given back.
    """

    __slots__ = ("began_s", "charge", "deadline_s", "ended", "entry", "fence", "lease", "sending", "worker")

    def __init__(
        self, entry: Entry, lease: Lease, worker: Worker | None, charge: int, began_s: float, deadline_s: float
    ) -> None:
        self.entry = entry
        self.lease = lease
        self.fence = lease.fence
        self.worker = worker
        self.charge = charge
        self.began_s = began_s
        self.deadline_s = deadline_s
        self.ended = self.sending = False


class Entry:
    """One wanted action and everybody who waits for it.

    `branch` is where it waits, None while it does not, `also` where else, for it waits in the shares of all who follow
    it. `share` is the one in which it runs, or would by `branch`; `order` when its turn comes within an invocation.
    `foretold` once a worker was told to fetch its inputs. `second` is the attempt that runs beside a straggler. `lost`
    is the newest lease, while the entry waits for anybody, or for its worker to come back with it.
    """

    __slots__ = (
        "also",
        "attempt",
        "attempts",
        "avoid",
        "branch",
        "demand",
        "demanded",
        "faults",
        "followers",
        "foretold",
        "id",
        "losses",
        "lost",
        "order",
        "publications",
        "published",
        "second",
        "share",
        "state",
        "wanted",
    )

    def __init__(self, number: int, wanted: Wanted, share: Share, order: float, operation: str) -> None:
        self.id = number
        self.wanted = wanted
        self.share = share
        self.order = order
        self.branch: Branch | None = None
        self.also: dict[Branch, None] | None = None
        self.demand: Demand | None = None
        self.avoid: tuple[str, ...] = ()
        self.foretold = False
        self.followers: list[str] = [operation]
        self.state: EntryState = "looking"
        self.demanded = False
        self.attempt: Attempt | None = None
        self.second: Attempt | None = None
        self.published: Lease | None = None
        self.lost: Lease | None = None
        self.attempts = 0
        self.losses = 0
        self.faults = 0
        self.publications = 0

    def waits_in(self, branch: Branch) -> bool:
        """Whether its turn may come there."""
        return self.branch is branch or (self.also is not None and branch in self.also)

    @property
    def lease(self) -> Lease | None:
        """The lease in force, or the one whose result is being published."""
        return self.published if self.attempt is None else self.attempt.lease

    def count(self, code: str) -> None:
        """An attempt failed so: whose failure it was is counted apart."""
        self.losses += code in _LOSSES
        self.faults += code in _FAULTS

    def may_again(self, code: str, limits: Limits) -> bool:
        """Count it; whether it is the worker's or the node's fault, and may be repeated elsewhere."""
        if code not in _LOSSES and code not in _FAULTS:
            return False
        self.count(code)
        spent = self.attempts >= limits.attempts_max
        return not spent and self.losses < limits.losses_max and self.faults < limits.faults_max

    def avoid_too(self, node: str) -> None:
        """It is tried again there only if there is nobody else."""
        if node not in self.avoid:
            self.avoid = tuple(sorted((*self.avoid, node)))
