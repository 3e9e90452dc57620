"""What a controller that is killed leaves: all that was kept, and a beginning of what it was writing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from buildnet.model.action import Lease
from buildnet.model.operation import Intended, Stored, StoredOperation
from buildnet.testing.scheduler_fakes import MemoryOperations


class TornOperations(MemoryOperations):
    """An OperationStore over a journal: what is written is kept by `keep`, in its order."""

    def __init__(self, stored: Stored = Stored()) -> None:  # noqa: B008 - frozen
        super().__init__(stored)
        self._written: list[Callable[[], None]] = []

    def _keep(self) -> None:
        """What is kept is asked for once, after a kill."""

    def begin(self, operation: StoredOperation) -> None:
        self._written.append(partial(super().begin, operation))

    def lease(self, lease: Lease, number: int, *, alone: bool) -> None:
        self._written.append(partial(super().lease, lease, number, alone=alone))

    def intend(self, fence: int, intended: Intended) -> None:
        self._written.append(partial(super().intend, fence, intended))

    def end(self, operation: StoredOperation) -> None:
        self._written.append(partial(super().end, operation))

    def release(self, fence: int) -> None:
        self._written.append(partial(super().release, fence))

    def forget(self, numbers: Sequence[int]) -> None:
        self._written.append(partial(super().forget, numbers))

    def keep(self) -> bool:
        written, self._written = self._written, []
        for write in written:
            write()
        return True

    def torn(self, chance: random.Random) -> Stored:
        """What the next start finds after a kill at this moment."""
        del self._written[chance.randint(0, len(self._written)) :]
        self.keep()
        return Stored(
            [self._operations[number] for number in sorted(self._operations)],
            [self._leases[fence] for fence in sorted(self._leases)],
        )
