"""What of an operation and of a lease outlives the controller that accepted them. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from buildnet.model.action import Lease, Outcome, Wanted


@dataclass(frozen=True, slots=True)
class StoredOperation:
    """One accepted operation; `outcome` is there once it has ended.

    `number` counts accepted operations: lower was first. `client_id` is what its client made repetitions one by, or "".
    A `result` that the action cache has too may be left out of an outcome that is "ok".
    """

    number: int
    id: str
    wanted: Wanted
    submitted_at_unix_ms: int
    client_id: str = ""
    outcome: Outcome | None = None
    completed_at_unix_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Intended:
    """What a publication is about to make visible; the ledger held `ledger_size` entries before."""

    outcome: Outcome
    cacheable: bool
    ledger_size: int


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A lease that was given. `number` is of an operation that waits for it: the only one, if `alone`."""

    lease: Lease
    number: int
    alone: bool
    intended: Intended | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """All that is kept: operations by number, leases by fence."""

    operations: Sequence[StoredOperation] = ()
    leases: Sequence[StoredLease] = ()
