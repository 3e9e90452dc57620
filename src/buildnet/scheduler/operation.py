"""What a client asked for, from its acceptance until it is forgotten, as this process holds it. It decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from buildnet.model.action import Outcome, Wanted
from buildnet.model.operation import StoredOperation
from buildnet.ports import Clock, Follower, Progress

_QUEUED = Progress("queued")


@dataclass(slots=True)
class Operation:
    """One client's request, from Want until ten minutes after it completed."""

    id: str
    wanted: Wanted
    submitted_at_unix_ms: int
    number: int = 0
    client_id: str = ""
    progress: Progress = _QUEUED
    fence: int | None = None
    completed_at_unix_ms: int | None = None
    completed_at_s: float = 0.0
    followers: list[Follower] = field(default_factory=list)
    # Set while the action is announced and cannot be asked for yet: ends it unasked.
    withdraw: Callable[[], None] | None = None
    # It is known for as long as its graph is.
    is_member: bool = False
    # Its client waits for it, or it is for nobody. Of what an earlier controller accepted this is not known.
    is_awaited: bool = False
    # There is one while somebody waits for it: of a long queue hardly any has.
    changed: asyncio.Event | None = None

    async def wait_changed(self) -> None:
        """Return at the next change."""
        if self.changed is None:
            self.changed = asyncio.Event()
        await self.changed.wait()

    def stored(self, outcome: Outcome | None = None) -> StoredOperation:
        """As it outlives the controller; `outcome` is how it ended."""
        told = (self.number, self.id, self.wanted, self.submitted_at_unix_ms, self.client_id)
        return StoredOperation(*told, outcome, self.completed_at_unix_ms)


def operation_of(kept: StoredOperation, clock: Clock) -> Operation:
    """An operation that an earlier controller kept."""
    operation = Operation(kept.id, kept.wanted, kept.submitted_at_unix_ms, kept.number, kept.client_id)
    if kept.outcome is not None and kept.completed_at_unix_ms is not None:
        operation.progress = Progress("completed", kept.outcome, kept.outcome.worker)
        operation.completed_at_unix_ms = kept.completed_at_unix_ms
        # The monotonic clock began anew; a wall clock that was set back counts as no time.
        ago_s = max(0.0, (clock.now_unix_ms() - kept.completed_at_unix_ms) / 1000)
        operation.completed_at_s = clock.monotonic_s() - ago_s
    return operation
