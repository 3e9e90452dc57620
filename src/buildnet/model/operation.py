"""What of an operation and of a lease outlives the controller that accepted them. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from buildnet.model.action import Lease, Outcome, Wanted
from buildnet.model.history import Requested
from buildnet.model.quick import quick


@quick
@dataclass(frozen=True, slots=True)
class StoredOperation:
    """One accepted operation; `outcome` is there once it has ended.

    `number` counts accepted operations: lower was first. `client_id` is what a repetition of its request is known by,
    or "". A `result` that the action cache has too may be left out of an outcome that is "ok".
    """

    number: int
    id: str
    wanted: Wanted
    submitted_at_unix_ms: int
    client_id: str = ""
    outcome: Outcome | None = None
    completed_at_unix_ms: int | None = None


@quick
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
class GraphTerms:
    """What holds for every action of a graph. `client_id` is what a repetition of its request is known by, or ""."""

    instance: str
    caller: str
    skip_cache_lookup: bool = False
    requested: Requested = field(default_factory=Requested)
    client_id: str = ""


@dataclass(frozen=True, slots=True)
class StoredGraph:
    """One accepted graph. Its actions are operations `number`, `number` + 1 and so on, in the order of `members`.

    `members` are their ids and what they are called. `actions` says what they are, in a form that is its writer's. Of
    an action there is a StoredOperation once its inputs are known or it has ended.
    """

    id: str
    number: int
    terms: GraphTerms
    submitted_at_unix_ms: int
    members: tuple[tuple[str, str], ...]
    actions: bytes

    @property
    def numbers(self) -> range:
        """The numbers of its operations."""
        return range(self.number, self.number + len(self.members))


@dataclass(frozen=True, slots=True)
class Stored:
    """All that is kept: operations by number, leases by fence, graphs by number."""

    operations: Sequence[StoredOperation] = ()
    leases: Sequence[StoredLease] = ()
    graphs: Sequence[StoredGraph] = ()
