"""What the core keeps of one wanted action, how often it failed, and what bounds it. It knows nothing of others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from buildnet.model.action import Lease
from buildnet.scheduler.dispatch import DispatchLimits, DispatchMechanisms, Waiting

# Failures that say more about the node than about the action: tried again on another one.
_FAULTS: Final = frozenset({"sandbox_failed", "storage_full", "internal"})
# The worker itself was ended.
_LOSSES: Final = frozenset({"node_down", "cancelled"})

EntryState = Literal["looking", "queued", "returning", "leased", "publishing"]


@dataclass(frozen=True, slots=True)
class Limits(DispatchLimits):
    """What bounds the scheduler. `attempts_max` counts assignments of one entry, whoever ended them; `losses_max` those
    whose worker was lost, `faults_max` those that the worker could not carry out.

    A lease of an earlier controller waits `return_s` for its worker. With `speculate`, what runs `straggler_factor`
    times as long as its like, and `straggler_min_s` at least, is tried on a second worker too.
    """

    queue_length_max: int = 100_000
    attempts_max: int = 8
    losses_max: int = 5
    faults_max: int = 3
    lease_s: float = 4.0
    publications_max: int = 2
    return_s: float = 15.0
    speculate: bool = False
    straggler_factor: float = 3.0
    straggler_min_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Mechanisms(DispatchMechanisms):
    """Switched off one at a time by the explorer; production never passes another than the default."""

    join: bool = True
    look_again: bool = True
    fence: bool = True
    requeue: bool = True
    settle: bool = True
    adopt: bool = True
    stop_loser: bool = True


@dataclass(slots=True, eq=False)
class Attempt:
    """A lease in force. `charge` is what its share is given back."""

    entry: Entry
    lease: Lease
    charge: int
    began_s: float
    deadline_s: float


@dataclass(slots=True, eq=False)
class Entry(Waiting):
    """One wanted action and everybody who waits for it. `second` is the attempt that runs beside a straggler."""

    followers: list[str] = field(default_factory=list)
    state: EntryState = "looking"
    demanded: bool = False
    attempt: Attempt | None = None
    second: Attempt | None = None
    published: Lease | None = None
    # The newest lease, while the entry waits for anybody, or for its worker to come back with it.
    lost: Lease | None = None
    attempts: int = 0
    losses: int = 0
    faults: int = 0
    publications: int = 0

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
