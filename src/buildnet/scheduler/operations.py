"""Every operation that is known, and who is told of it: an end is kept before it is told. It decides nothing.

One loop owns it. An operation is known until ten minutes after its end; one of a graph, for as long as its graph is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

from buildnet.model.action import Outcome, Wanted
from buildnet.model.digest import UNKNOWN
from buildnet.model.operation import StoredOperation
from buildnet.ports import Clock, Follower, Progress
from buildnet.scheduler.events import Tell
from buildnet.scheduler.holds import LiveActions
from buildnet.scheduler.keeping import Keeping
from buildnet.scheduler.operation import Operation, operation_of
from buildnet.scheduler.recovery import Recovered

OPERATIONS_KEPT_MAX = 10_000
OPERATIONS_KEPT_S = 600.0


class Operations:
    """Operations by their ids, oldest first."""

    def __init__(
        self, clock: Clock, live: LiveActions | None, keeping: Keeping | None, ended: Callable[[Operation], None]
    ) -> None:
        """`keeping`: what outlives this process; without one nothing does. `ended` hears of every action's end."""
        self._clock = clock
        self._live = live
        self._keeping = keeping
        self._tell_ended = ended
        self._number_next = 1
        self._known: dict[str, Operation] = {}
        # In the order in which they ended: one that runs for hours must not keep those that ended since.
        self._ended: deque[Operation] = deque()
        self._listeners: list[Callable[[str], None]] = []

    def __len__(self) -> int:
        """How many are known."""
        return len(self._known)

    def __getitem__(self, operation_id: str) -> Operation:
        """One that is known; others are a bug."""
        return self._known[operation_id]

    def get(self, operation_id: str) -> Operation | None:
        """An operation by its id."""
        return self._known.get(operation_id)

    def newest_first(self) -> Iterator[Operation]:
        """What is known."""
        return reversed(self._known.values())

    def numbered(self, count: int) -> range:
        """Numbers for so many operations that are being accepted."""
        numbers = range(self._number_next, self._number_next + count)
        self._number_next = numbers.stop
        return numbers

    def restore(self, recovered: Recovered) -> list[str]:
        """Know what an earlier controller knew; the ids of what has not ended, in the order of acceptance."""
        self._number_next = recovered.number_next
        members = frozenset(number for held in recovered.graphs for number in held.operations)
        unended = []
        known: list[StoredOperation] = [*recovered.ended, *(waiting.operation for waiting in recovered.waiting)]
        for kept in sorted(known, key=_by_number):
            operation = operation_of(kept, self._clock)
            operation.is_member = operation.number in members
            self._known[operation.id] = operation
            if kept.outcome is None:
                unended.append(operation.id)
            elif not operation.is_member:
                self._ended.append(operation)
        self._ended = deque(sorted(self._ended, key=lambda operation: operation.completed_at_s))
        return unended

    def add(self, operation: Operation) -> None:
        """Know one; those that ended long ago are forgotten for it."""
        self._known[operation.id] = operation
        self._forget_old()

    def announce(
        self, operation_id: str, number: int, wanted: Wanted, submitted_at_unix_ms: int, withdraw: Callable[[], None]
    ) -> None:
        """Make an operation of a graph known whose action is not: it waits for others. It is submitted, or concluded.

        Args:
            operation_id: its id.
            number: one of `numbered`.
            wanted: stands in for what will be wanted; its digest is UNKNOWN.
            submitted_at_unix_ms: when its graph was accepted.
            withdraw: called when somebody cancels it before it is submitted.

        It outlives this process by its graph, which is kept by whoever announces it.
        """
        progress = Progress("waiting")
        operation = Operation(operation_id, wanted, submitted_at_unix_ms, number, progress=progress, is_member=True)
        operation.withdraw = withdraw
        self._known[operation_id] = operation
        self._changed(operation_id)

    def conclude(self, operation_id: str, outcome: Outcome) -> None:
        """End an operation that was announced and will not be submitted."""
        operation = self._known[operation_id]
        assert operation.withdraw is not None, "it was announced and not submitted"
        self.tell(Tell(operation_id, "completed", outcome))

    def forget_members(self, operation_ids: Iterable[str]) -> None:
        """A graph whose actions have all ended is remembered no longer."""
        for operation_id in operation_ids:
            del self._known[operation_id]

    # Who hears of them.

    def watch(self, listener: Callable[[str], None]) -> None:
        """Hear the id of every operation that changes, for ever."""
        self._listeners.append(listener)

    def follow(self, operation_id: str, follower: Follower) -> None:
        """Hear of an operation's present state at once and of its changes later. Unknown ids are a bug."""
        operation = self._known[operation_id]
        operation.followers.append(follower)
        follower(operation.progress)

    def unfollow(self, operation_id: str, follower: Follower) -> None:
        """Hear no more. The operation goes on: a client that went away may come back and wait."""
        operation = self._known.get(operation_id)
        if operation is not None and follower in operation.followers:
            operation.followers.remove(follower)

    def tell(self, effect: Tell) -> None:
        """All who follow are told where an operation stands; how it ended once that is kept."""
        operation = self._known.get(effect.operation)
        if operation is None or operation.completed_at_unix_ms is not None:
            return
        progress = Progress(effect.stage, effect.outcome, effect.worker)
        if effect.stage != "completed":
            self._say(operation, progress, effect.fence)
            return
        operation.completed_at_unix_ms = self._clock.now_unix_ms()
        operation.completed_at_s = self._clock.monotonic_s()
        announced, operation.withdraw = operation.withdraw is not None, None
        if self._live is not None and not announced:
            self._live.ended(operation.wanted.key)
        if self._keeping is None:
            self._end(operation, progress)
            return
        keep_end = self._keeping.conclude if announced else self._keeping.end
        keep_end(operation.stored(effect.outcome))
        if effect.outcome is not None and effect.outcome.code == "ok":
            # It would end in the same way again: the result is in the ledger, or in the cache.
            self._end(operation, progress)
        else:
            self._keeping.once(lambda error: self._end(operation, progress))

    def _end(self, operation: Operation, progress: Progress) -> None:
        if not operation.is_member:
            self._ended.append(operation)
        operation.progress = progress
        if operation.wanted.key.digest != UNKNOWN:
            self._tell_ended(operation)
        # Of what has ended, its last attempt stays known: that is whose log it is.
        self._say(operation, progress, operation.fence)

    def _say(self, operation: Operation, progress: Progress, fence: int | None) -> None:
        operation.progress, operation.fence = progress, fence
        for follower in list(operation.followers):
            follower(progress)
        if operation.changed is not None:
            operation.changed.set()
            operation.changed = None
        self._changed(operation.id)

    def _changed(self, operation_id: str) -> None:
        for listener in self._listeners:
            listener(operation_id)

    def _forget_old(self) -> None:
        horizon_s = self._clock.monotonic_s() - OPERATIONS_KEPT_S
        while self._ended:
            oldest = self._ended[0]
            if oldest.completed_at_s > horizon_s and len(self._ended) <= OPERATIONS_KEPT_MAX:
                return
            self._ended.popleft()
            del self._known[oldest.id]
            if self._keeping is not None:
                self._keeping.forget([oldest.number])


_by_number = attrgetter("number")
