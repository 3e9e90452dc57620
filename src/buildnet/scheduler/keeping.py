"""Says to the store what of operations and leases is to outlive this process, and when it counts no more.

Of each action only the newest lease is kept, for as long as anybody waits for the action.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from buildnet.model.action import Lease
from buildnet.model.operation import StoredOperation
from buildnet.ports import OperationStore
from buildnet.scheduler.recovery import Recovered, Subject, subject_of


class Keeping:
    """The scheduler's side of an OperationStore."""

    def __init__(self, store: OperationStore) -> None:
        self._store = store
        self._waiting: Counter[Subject] = Counter()
        self._newest: dict[Subject, int] = {}

    def restore(self, recovered: Recovered) -> None:
        """Go on from what was kept, and keep what recovery has found out."""
        operations = [waiting.operation for waiting in recovered.waiting]
        self._waiting.update(subject_of(operation.wanted, operation.number) for operation in operations)
        for waiting in recovered.waiting:
            if waiting.lease is not None:
                self._newest[subject_of(waiting.operation.wanted, waiting.operation.number)] = waiting.lease.fence
        for operation in recovered.fresh:
            self._store.end(operation)
        for fence in recovered.stale:
            self._store.release(fence)
        self._store.forget(recovered.forgotten)

    def begin(self, operation: StoredOperation) -> None:
        """An operation is being accepted."""
        self._store.begin(operation)
        self._waiting[subject_of(operation.wanted, operation.number)] += 1

    def lease(self, lease: Lease, operation: StoredOperation) -> None:
        """A lease was decided, for which this operation waits among others."""
        subject = subject_of(operation.wanted, operation.number)
        if (older := self._newest.get(subject)) is not None:
            self._store.release(older)
        self._newest[subject] = lease.fence
        self._store.lease(lease, operation.number, alone=operation.wanted.do_not_cache)

    def end(self, operation: StoredOperation) -> None:
        """An operation ended; after the last one its action's lease counts for nothing."""
        self._store.end(operation)
        subject = subject_of(operation.wanted, operation.number)
        self._waiting[subject] -= 1
        if self._waiting[subject] > 0:
            return
        del self._waiting[subject]
        if (fence := self._newest.pop(subject, None)) is not None:
            self._store.release(fence)

    def conclude(self, operation: StoredOperation) -> None:
        """An operation of a graph ended that was never begun."""
        self._store.conclude(operation)

    def forget(self, numbers: Iterable[int]) -> None:
        """Operations that ended are remembered no longer."""
        self._store.forget(list(numbers))

    def keep(self) -> bool:
        """See ports.OperationStore."""
        return self._store.keep()

    async def kept(self) -> None:
        """See ports.OperationStore."""
        await self._store.kept()
