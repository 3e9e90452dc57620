"""What a start makes of what the controller before it left: who has ended, who waits, what is still to be published.

It decides from what is kept and what the ledger says, and gives nothing to a worker. Why this loses nothing and
publishes nothing twice: docs/design/restart.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from buildnet.errors import BlobsMissing
from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.operation import Stored, StoredGraph, StoredLease, StoredOperation
from buildnet.ports import ActionCache, OperationStore

Subject = ActionKey | int
"""What a lease is for: an action, or one operation whose action is shared with no other."""

PublishedSince = Callable[[int], Awaitable[Mapping[int, int]]]
"""Of the ledger's entries from an index on: the fences that were published, each with its entry's index."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An operation that had not ended, and the newest lease of its action."""

    operation: StoredOperation
    lease: Lease | None


@dataclass(frozen=True, slots=True)
class RecoveredGraph:
    """A graph, and those of its operations that were begun or had ended, by number."""

    graph: StoredGraph
    operations: Mapping[int, StoredOperation]


@dataclass(frozen=True, slots=True)
class Recovered:
    """`ended` by number; of these `fresh` are to be written as ended. `redo` are publications that did not happen.

    `stale` are fences that count for nothing; `forgotten` are numbers of operations whose result nobody has any more.
    """

    ended: Sequence[StoredOperation] = ()
    fresh: Sequence[StoredOperation] = ()
    waiting: Sequence[Waiting] = ()
    redo: Sequence[tuple[Lease, Outcome]] = ()
    stale: Sequence[int] = ()
    forgotten: Sequence[int] = ()
    number_next: int = 1
    graphs: Sequence[RecoveredGraph] = ()


def subject_of(wanted: Wanted, number: int) -> Subject:
    """What a lease for this operation would be for."""
    return number if wanted.do_not_cache else wanted.key


def newest_leases(leases: Iterable[StoredLease]) -> dict[Subject, StoredLease]:
    """The lease with the highest fence of each subject; any other is stale."""
    newest: dict[Subject, StoredLease] = {}
    for held in sorted(leases, key=lambda held: held.lease.fence):
        newest[held.number if held.alone else held.lease.key] = held
    return newest


def decide(stored: Stored, published: Mapping[int, int], now_unix_ms: int) -> Recovered:
    """What follows, were every result that the ledger has in the cache too.

    A result that was published ends its operations. One that was about to be is published now: its blobs were here.
    """
    newest = newest_leases(stored.leases)
    ended: list[StoredOperation] = []
    fresh: list[StoredOperation] = []
    waiting: list[Waiting] = []
    redo: dict[int, tuple[Lease, Outcome]] = {}
    used: set[int] = set()
    for operation in stored.operations:
        if operation.outcome is not None:
            ended.append(operation)
            continue
        held = newest.get(subject_of(operation.wanted, operation.number))
        if held is None:
            waiting.append(Waiting(operation, None))
            continue
        about, fence = held.intended, held.lease.fence
        if about is not None and fence in published:
            outcome = replace(about.outcome, entry_index=published[fence])
            fresh.append(replace(operation, outcome=outcome, completed_at_unix_ms=now_unix_ms))
            continue
        used.add(fence)
        waiting.append(Waiting(operation, held.lease))
        if about is not None:
            redo[fence] = (held.lease, about.outcome)
    stale = [held.lease.fence for held in stored.leases if held.lease.fence not in used]
    last = [operation.number for operation in stored.operations[-1:]] + [graph.numbers[-1] for graph in stored.graphs]
    everything = sorted((*ended, *fresh), key=lambda operation: operation.number)
    begun = {o.number: o for o in (*everything, *(one.operation for one in waiting))} if stored.graphs else {}
    graphs = [
        RecoveredGraph(graph, {number: begun[number] for number in graph.numbers if number in begun})
        for graph in stored.graphs
    ]
    return Recovered(
        everything, fresh, waiting, list(redo.values()), stale, number_next=max(last, default=0) + 1, graphs=graphs
    )


async def recover(
    store: OperationStore, cache: ActionCache, published_since: PublishedSince, now_unix_ms: int
) -> Recovered:
    """Read what is kept, finish what was published, and say what is to be done about the rest.

    Raises:
        StateCorrupt: what is kept cannot be read.
        BuildNetError: the cache cannot be written.
    """
    stored = await store.load()
    about = [held for held in stored.leases if held.intended is not None]
    published: Mapping[int, int] = {}
    if about:
        published = await published_since(min(held.intended.ledger_size for held in about if held.intended))
    gone = await _finish(stored, published, cache)
    held = [held for held in stored.leases if held.lease.fence not in gone]
    recovered = decide(replace(stored, leases=held), published, now_unix_ms)
    return await _with_results(replace(recovered, stale=[*recovered.stale, *gone]), cache)


async def _finish(stored: Stored, published: Mapping[int, int], cache: ActionCache) -> set[int]:
    """Write what is in the ledger into the cache too; return the fences whose results lost their blobs since.

    Such a result is none any more: its action runs again.
    """
    gone: set[int] = set()
    for held in stored.leases:
        about, index = held.intended, published.get(held.lease.fence)
        if about is not None and index is not None and about.cacheable and about.outcome.exit_code == 0:
            assert about.outcome.result is not None
            try:
                await cache.put(held.lease.key, about.outcome.result, index)
            except BlobsMissing:
                gone.add(held.lease.fence)
    return gone


async def _with_results(recovered: Recovered, cache: ActionCache) -> Recovered:
    """Take results that are kept by the cache alone from there; an operation whose result it evicted is forgotten.

    One of a graph is not: that it ended well is what others wait for.
    """
    bare = [o for o in recovered.ended if o.outcome is not None and o.outcome.code == "ok" and o.outcome.result is None]
    if not bare:
        return recovered
    results = await cache.get_each([operation.wanted.key for operation in bare])
    found = dict(zip((operation.number for operation in bare), results, strict=True))
    of_graphs = frozenset(number for held in recovered.graphs for number in held.operations)
    ended: list[StoredOperation] = []
    for operation in recovered.ended:
        result = found.get(operation.number, b"")
        if operation.number not in found:
            ended.append(operation)
        elif result is not None or operation.number in of_graphs:
            ended.append(replace(operation, outcome=_with(operation.outcome, result)))
    forgotten = [number for number, result in found.items() if result is None and number not in of_graphs]
    by_number = {operation.number: operation for operation in ended}
    graphs = [
        replace(held, operations={number: by_number.get(number, was) for number, was in held.operations.items()})
        for held in recovered.graphs
    ]
    return replace(recovered, ended=ended, forgotten=forgotten, graphs=graphs)


def _with(outcome: Outcome | None, result: bytes | None) -> Outcome:
    assert outcome is not None
    return replace(outcome, result=result)
