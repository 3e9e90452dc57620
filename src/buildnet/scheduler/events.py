"""What happens to the scheduler, and what is to be done about it: the words of `scheduler/core.py`. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.node import WorkerOffer
from buildnet.model.quick import quick

# Events.


@quick
@dataclass(frozen=True, slots=True)
class Want:
    """A client asks for an action's result under a fresh operation id."""

    operation: str
    wanted: Wanted


@quick
@dataclass(frozen=True, slots=True)
class Restore:
    """An operation that an earlier controller accepted and did not end.

    `lease` is the newest of its action, if it had one: its worker may still run it, and is waited for. `since_s` is
    when this controller started, if that is past: what came meanwhile is behind it.
    """

    operation: str
    wanted: Wanted
    lease: Lease | None = None
    since_s: float | None = None


@quick
@dataclass(frozen=True, slots=True)
class Found:
    """The answer to Lookup; `outcome` is None for a miss."""

    entry: int
    outcome: Outcome | None


@quick
@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A worker's session began; it still runs the attempts of these fences. A cordoned one is given no work."""

    offer: WorkerOffer
    running: tuple[int, ...] = ()
    cordoned: bool = False


@quick
@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker's session ended; it may still be running. Nobody waits for one that may not return."""

    worker: str
    may_return: bool = True


@quick
@dataclass(frozen=True, slots=True)
class Drain:
    """A worker takes no more."""

    worker: str


@quick
@dataclass(frozen=True, slots=True)
class Cordon:
    """A worker is given no more work, or work again."""

    worker: str
    cordoned: bool


@quick
@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker lives and runs these fences."""

    worker: str
    fences: tuple[int, ...]
    now_s: float


@quick
@dataclass(frozen=True, slots=True)
class Accepted:
    """Execution has begun."""

    worker: str
    fence: int


@quick
@dataclass(frozen=True, slots=True)
class CommandEnded:
    """The command of an attempt has ended; its outputs are still on their way."""

    worker: str
    fence: int


@quick
@dataclass(frozen=True, slots=True)
class Done:
    """An attempt ended."""

    worker: str
    fence: int
    outcome: Outcome


@quick
@dataclass(frozen=True, slots=True)
class Published:
    """The answer to Publish: what to tell."""

    entry: int
    outcome: Outcome


@quick
@dataclass(frozen=True, slots=True)
class ResourcesChanged:
    """What workers offer beyond their properties is other than it was."""


@quick
@dataclass(frozen=True, slots=True)
class Cancel:
    """A client wants its operation to stop."""

    operation: str


@quick
@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now_s: float


Event = (
    Want
    | Restore
    | Found
    | WorkerUp
    | WorkerLost
    | Drain
    | Cordon
    | ResourcesChanged
    | Heartbeat
    | Accepted
    | CommandEnded
    | Done
    | Published
    | Cancel
    | Tick
)


# Effects.


@quick
@dataclass(frozen=True, slots=True)
class Lookup:
    """Ask the action cache, then send Found."""

    entry: int
    key: ActionKey


@quick
@dataclass(frozen=True, slots=True)
class Assign:
    """Give the lease to its worker; `operation` is one of those that wait for it."""

    lease: Lease
    operation: str = ""


@quick
@dataclass(frozen=True, slots=True)
class Prefetch:
    """Tell a worker what it is likely to be given next."""

    worker: str
    key: ActionKey


@quick
@dataclass(frozen=True, slots=True)
class Stop:
    """Tell a worker that an attempt is not wanted."""

    worker: str
    fence: int
    reason: str


@quick
@dataclass(frozen=True, slots=True)
class Unheard:
    """An attempt's lease ran out: no more of its log is known to come, though its worker may be heard again."""

    fence: int


@quick
@dataclass(frozen=True, slots=True)
class Settle:
    """Tell a worker that its Done need not be repeated."""

    worker: str
    fence: int


@quick
@dataclass(frozen=True, slots=True)
class Publish:
    """Make a result visible, then send Published."""

    entry: int
    lease: Lease
    outcome: Outcome
    cacheable: bool


@quick
@dataclass(frozen=True, slots=True)
class Tell:
    """Tell a follower where its operation stands; completed exactly once."""

    operation: str
    stage: Literal["queued", "executing", "completed"]
    outcome: Outcome | None = None
    worker: str = ""
    fence: int | None = None


@quick
@dataclass(frozen=True, slots=True)
class Record:
    """Write an entry to the ledger; nobody waits for it. `operation` is who asked first, where the action begins."""

    kind: str
    lease: Lease | None
    key: ActionKey
    outcome: Outcome | None = None
    operation: str = ""


Effect = Lookup | Assign | Prefetch | Stop | Unheard | Settle | Publish | Tell | Record
