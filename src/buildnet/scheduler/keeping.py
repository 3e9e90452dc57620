"""Says to the store what of operations and leases is to outlive this process, and when it counts no more.

Of each action only the newest lease is kept, for as long as anybody waits for the action.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from buildnet.errors import BuildNetError
from buildnet.model.action import Lease
from buildnet.model.operation import StoredOperation
from buildnet.ports import OperationStore
from buildnet.scheduler.recovery import Recovered, Subject, subject_of

Act = Callable[[BuildNetError | None], None]
"""What is done once something is kept, or with what kept it from that."""

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Keeping:
    """The scheduler's side of an OperationStore."""

    def __init__(self, store: OperationStore, spawn: Spawn) -> None:
        self._store = store
        self._spawn = spawn
        self._acts: list[Act] = []
        self._is_due = False
        self._task: asyncio.Task[None] | None = None
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

    def once(self, act: Act) -> None:
        """Do it once all that was written by now outlives this process, or with what kept it from that."""
        self._acts.append(act)
        if not self._is_due:
            # At the end of this turn of the loop: more may come in it.
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._keep_now)

    async def kept(self) -> None:
        """See ports.OperationStore; what waited for it is done too."""
        if self._store.keep():
            self._do(None)
        else:
            await self._store.kept()

    async def acted(self) -> None:
        """Return once all that was given to `once` by now is done.

        Raises:
            StorageFull, StateCorrupt: what was written cannot be kept.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(failure: BuildNetError | None) -> None:
            if done.done():
                return
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

        self.once(tell)
        await done

    def stop(self) -> None:
        """Do nothing more of what waits: nobody is there to do it for."""
        self._acts.clear()

    def _keep_now(self) -> None:
        self._is_due = False
        if not self._acts:
            return
        try:
            is_kept = self._store.keep()
        except BuildNetError as error:
            self._do(error)
            return
        if is_kept:
            self._do(None)
        elif self._task is None or self._task.done():
            self._task = self._spawn(self._keep())

    async def _keep(self) -> None:
        while self._acts:
            acts, self._acts = self._acts, []
            failure: BuildNetError | None = None
            try:
                await self._store.kept()
            except BuildNetError as error:
                failure = error
            for act in acts:
                act(failure)

    def _do(self, failure: BuildNetError | None) -> None:
        acts, self._acts = self._acts, []
        for act in acts:
            act(failure)
