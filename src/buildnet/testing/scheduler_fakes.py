"""The scheduler's neighbours in memory: a cache, blobs, a publisher, a session and a clock. They decide nothing.

What they are asked is written down in the order in which it was asked; what they answer is the test's to choose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from buildnet.errors import BlobsMissing, BuildNetError
from buildnet.model.action import ActionKey, Lease, Outcome
from buildnet.model.operation import Intended, Stored, StoredGraph, StoredLease, StoredOperation
from buildnet.ports import Progress


class ManualClock:
    """Time that passes when a test says so."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def now_unix_ms(self) -> int:
        """See ports.Clock."""
        return round(self.now_s * 1000)

    def monotonic_s(self) -> float:
        """See ports.Clock."""
        return self.now_s


class MemoryBlobs:
    """A BlobStore that lacks what `absent` names, whatever the result; it does not parse results."""

    def __init__(self, asked: list[str] | None = None) -> None:
        self.asked = [] if asked is None else asked
        self.absent: set[str] = set()
        self.held: set[ActionKey] = set()
        self.held_results: dict[str, bytes] = {}
        self.hold_fails: Exception | None = None

    async def missing_of_result(self, result: bytes) -> Sequence[str]:
        """See ports.BlobStore."""
        self.asked.append("blobs")
        return sorted(self.absent)

    async def hold_action(self, key: ActionKey) -> None:
        """See ports.BlobStore."""
        if self.hold_fails is not None:
            raise self.hold_fails
        self.held.add(key)

    async def hold_each(self, keys: Sequence[ActionKey]) -> Sequence[BuildNetError | None]:
        """See ports.BlobStore."""
        if isinstance(self.hold_fails, BuildNetError):
            return [self.hold_fails] * len(keys)
        self.held.update(keys)
        return [None] * len(keys)

    def release_action(self, key: ActionKey) -> None:
        """See ports.BlobStore."""
        self.held.discard(key)

    async def hold_result(self, name: str, result: bytes) -> Sequence[str]:
        """See ports.BlobStore."""
        if self.hold_fails is not None:
            raise self.hold_fails
        self.held_results[name] = result
        return sorted(self.absent)

    def release(self, name: str) -> None:
        """See ports.BlobStore."""
        self.held_results.pop(name, None)


class MemoryCache:
    """An ActionCache over MemoryBlobs; `broken`, when set, is what reading it raises."""

    def __init__(self, blobs: MemoryBlobs, asked: list[str] | None = None) -> None:
        self.asked = [] if asked is None else asked
        self.results: dict[ActionKey, tuple[bytes, int]] = {}
        self.broken: Exception | None = None
        self._blobs = blobs

    async def get(self, key: ActionKey) -> bytes | None:
        """See ports.ActionCache."""
        if self.broken is not None:
            raise self.broken
        if key not in self.results or self._blobs.absent:
            return None
        return self.results[key][0]

    async def get_each(self, keys: Sequence[ActionKey]) -> Sequence[bytes | None]:
        """See ports.ActionCache."""
        return [await self.get(key) for key in keys]

    def peek(self, key: ActionKey) -> bytes | Literal[False] | None:
        """See ports.ActionCache: only `get` tells, so that what comes between is tried."""
        return False

    async def put(self, key: ActionKey, result: bytes, entry_index: int) -> None:
        """See ports.ActionCache."""
        self.asked.append("cache")
        if self._blobs.absent:
            raise BlobsMissing("the result references blobs that are absent", digests=sorted(self._blobs.absent))
        self.results[key] = (result, entry_index)


class HeldPublisher:
    """A Publisher whose publications wait for `answer`: with an outcome to tell, or with an error to raise."""

    def __init__(self) -> None:
        self.asked: list[tuple[Lease, Outcome, bool]] = []
        self._answers: asyncio.Queue[Outcome | Exception] = asyncio.Queue()

    def answer(self, answer: Outcome | Exception) -> None:
        """Let one publication end, the first that waits or the next that comes."""
        self._answers.put_nowait(answer)

    async def publish(self, lease: Lease, outcome: Outcome, *, cacheable: bool) -> Outcome:
        """See ports.Publisher."""
        self.asked.append((lease, outcome, cacheable))
        answer = await self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


class MemoryOperations:
    """An OperationStore. `survivor` is what a start after a kill would find: all that was kept by then.

    What is written is kept at once, or, with `hold`, when `let_go` is called; `broken` is what keeping raises.
    """

    def __init__(self, stored: Stored = Stored()) -> None:  # noqa: B008 - frozen
        self._operations = {operation.number: operation for operation in stored.operations}
        self._leases = {held.lease.fence: held for held in stored.leases}
        self._graphs = {graph.number: graph for graph in stored.graphs}
        self._kept: Stored = stored
        self._going = asyncio.Event()
        self._going.set()
        self.broken: BuildNetError | None = None

    def hold(self) -> None:
        """Keep nothing from now on."""
        self._going.clear()

    def let_go(self) -> None:
        """Keep all that was written."""
        self._going.set()
        self._keep()

    def survivor(self) -> MemoryOperations:
        """The store that the next start opens."""
        return MemoryOperations(self._kept)

    def _keep(self) -> None:
        if self._going.is_set():
            self._kept = Stored(
                [self._operations[number] for number in sorted(self._operations)],
                [self._leases[fence] for fence in sorted(self._leases)],
                [self._graphs[number] for number in sorted(self._graphs)],
            )

    def begin(self, operation: StoredOperation) -> None:
        """See ports.OperationStore."""
        self._operations[operation.number] = operation
        self._keep()

    def lease(self, lease: Lease, number: int, *, alone: bool) -> None:
        """See ports.OperationStore."""
        self._leases[lease.fence] = StoredLease(lease, number, alone)
        self._keep()

    def intend(self, fence: int, intended: Intended) -> None:
        """See ports.OperationStore."""
        if fence in self._leases:
            self._leases[fence] = replace(self._leases[fence], intended=intended)
        self._keep()

    def end(self, operation: StoredOperation) -> None:
        """See ports.OperationStore."""
        if operation.number in self._operations:
            self._operations[operation.number] = operation
        self._keep()

    def release(self, fence: int) -> None:
        """See ports.OperationStore."""
        self._leases.pop(fence, None)
        self._keep()

    def forget(self, numbers: Sequence[int]) -> None:
        """See ports.OperationStore."""
        for number in numbers:
            self._operations.pop(number, None)
        self._keep()

    def keep(self) -> bool:
        """See ports.OperationStore: only `kept` tells, so that what comes between is tried."""
        return False

    def begin_graph(self, graph: StoredGraph) -> None:
        """See ports.OperationStore."""
        self._graphs[graph.number] = graph
        self._keep()

    def conclude(self, operation: StoredOperation) -> None:
        """See ports.OperationStore."""
        self._operations[operation.number] = operation
        self._keep()

    def forget_graph(self, numbers: range) -> None:
        """See ports.OperationStore."""
        self._graphs.pop(numbers.start, None)
        for number in numbers:
            self._operations.pop(number, None)
        self._keep()

    async def kept(self) -> None:
        """See ports.OperationStore."""
        await self._going.wait()
        if self.broken is not None:
            raise self.broken

    async def load(self) -> Stored:
        """See ports.OperationStore."""
        return self._kept


@dataclass
class RecordingLink:
    """A WorkerLink that keeps what was said; `assigned` waits for a lease, in order."""

    stopped: list[tuple[int, str]] = field(default_factory=list)
    settled: list[int] = field(default_factory=list)
    prefetched: list[ActionKey] = field(default_factory=list)
    leases: asyncio.Queue[Lease] = field(default_factory=asyncio.Queue)

    def assign(self, lease: Lease) -> None:
        """See ports.WorkerLink."""
        self.leases.put_nowait(lease)

    def cancel(self, fence: int, reason: str) -> None:
        """See ports.WorkerLink."""
        self.stopped.append((fence, reason))

    def prefetch(self, key: ActionKey) -> None:
        """See ports.WorkerLink."""
        self.prefetched.append(key)

    def settle(self, fence: int) -> None:
        """See ports.WorkerLink."""
        self.settled.append(fence)

    async def assigned(self, timeout_s: float = 5.0) -> Lease:
        """The next lease.

        Raises:
            TimeoutError: none came.
        """
        async with asyncio.timeout(timeout_s):
            return await self.leases.get()


class Heard:
    """A Follower that keeps what it was told."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self._completed = asyncio.Event()

    def __call__(self, progress: Progress) -> None:
        """See ports.Follower."""
        self.progress.append(progress)
        if progress.stage == "completed":
            self._completed.set()

    @property
    def stages(self) -> list[str]:
        """Stages in the order in which they were told."""
        return [progress.stage for progress in self.progress]

    async def outcome(self, timeout_s: float = 5.0) -> Outcome:
        """How it ended.

        Raises:
            TimeoutError: it did not end.
        """
        async with asyncio.timeout(timeout_s):
            await self._completed.wait()
        outcome = self.progress[-1].outcome
        assert outcome is not None
        return outcome
