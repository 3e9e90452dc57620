"""Every Protocol the rooms talk through, on one page. Rooms import this, never each other.

A port says what its caller may rely on; each has one contract suite in tests/contract, run against every
implementation and every fake of buildnet.testing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from buildnet.errors import BuildNetError
from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.action_spec import ActionSpec
from buildnet.model.digest import Digest
from buildnet.model.entry import Entry
from buildnet.model.history import EndedOperation, Parts, PastOperation, Ran, TreeDirectory
from buildnet.model.operation import Intended, Stored, StoredGraph, StoredOperation
from buildnet.model.quick import quick
from buildnet.model.resource import Resource


@dataclass(frozen=True, slots=True)
class Found:
    """What a Discoverer found. `left_out` counts what it did not tell, and `notes` say why, for people."""

    resources: Sequence[Resource] = ()
    left_out: int = 0
    notes: Sequence[str] = ()


class Clock(Protocol):
    """Time as an argument."""

    def now_unix_ms(self) -> int:
        """Wall clock, for people and ledger entries."""
        ...

    def monotonic_s(self) -> float:
        """For deadlines."""
        ...


class ActionCache(Protocol):
    """Results by action. A hit is complete: every blob it references is present (REAPI GetActionResult)."""

    async def get(self, key: ActionKey) -> bytes | None:
        """The exact bytes of the stored ActionResult, or None when absent or incomplete."""
        ...

    async def get_each(self, keys: Sequence[ActionKey]) -> Sequence[bytes | None]:
        """`get` of many, in their order; one that cannot be read is absent, and is said in the log."""
        ...

    def peek(self, key: ActionKey) -> bytes | Literal[False] | None:
        """As `get`, where that waits for nothing; False when only `get` can tell. What cannot be read is absent."""
        ...

    async def put(self, key: ActionKey, result: bytes, entry_index: int) -> None:
        """Store a result that the ledger already holds at `entry_index`.

        Raises:
            BlobsMissing: the result references blobs that are absent; nothing is stored.
        """
        ...


class BlobStore(Protocol):
    """What the control side asks of the CAS; bytes themselves stay in the native half."""

    async def missing_of_result(self, result: bytes) -> Sequence[str]:
        """Digest texts that an ActionResult references, at any depth, and that are absent."""
        ...

    async def hold_action(self, key: ActionKey) -> None:
        """Keep the Action, its Command and its inputs until `release_action`; a second call changes nothing.

        Raises:
            NotFound: the Action or a Directory is absent.
            Overloaded: as much is held as may be; nothing is held for this action.
        """
        ...

    async def hold_each(self, keys: Sequence[ActionKey]) -> Sequence[BuildNetError | None]:
        """As `hold_action`, of many; what kept each from being held."""
        ...

    def release_action(self, key: ActionKey) -> None:
        """End what `hold_action` began; nothing happens when it did not."""
        ...

    async def hold_result(self, name: str, result: bytes) -> Sequence[str]:
        """Keep all that an ActionResult references until `release`, under a name of the caller's.

        Returns digest texts of what is absent; the rest is held all the same.

        Raises:
            Overloaded: as much is held as may be; nothing is held under this name.
        """
        ...

    def release(self, name: str) -> None:
        """End what `hold_result` began; nothing happens when it did not."""
        ...


class Binder(Protocol):
    """Makes of a spec what the scheduler is asked for."""

    async def hold(self, name: str, specs: Collection[ActionSpec]) -> None:
        """Keep the inputs that no other action leaves until `release`, under a name of the caller's.

        Raises:
            InvalidRequest: a tree is none.
            BlobsMissing: inputs are absent; every one is named. The rest is held all the same.
        """
        ...

    async def hold_outputs(self, name: str, result: bytes) -> None:
        """Keep all that an ActionResult references until `release`; what cannot be held is said in the log."""
        ...

    def release(self, name: str) -> None:
        """End what `hold` or `hold_outputs` began; nothing happens when neither did."""
        ...

    async def bind(self, spec: ActionSpec, instance: str, caller: str, results: Mapping[str, bytes]) -> Wanted:
        """Put the action, its command and its input tree into the store.

        Args:
            spec: what is to be run.
            instance: as in the key of its result.
            caller: who asks, "" for nobody known.
            results: exact bytes of the ActionResults of those whose outputs it takes, by their names in the graph.

        Raises:
            InvalidRequest: its inputs are in each other's way.
            BlobsMissing: inputs are absent; every one is named.
            DependencyFailed: another action did not leave what is taken from it.
            BuildNetError: the store refused.

        Repeat: safe.
        """
        ...


class Ledger(Protocol):
    """The append-only, tamper-evident log."""

    async def append(self, entries: Sequence[Entry]) -> int:
        """Return the index of the first entry once all are durable under a signed checkpoint.

        Repeat: not safe; each call appends again.
        """
        ...


class OperationStore(Protocol):
    """What outlives the controller: operations that it accepted, and the newest lease of each action.

    Writes take effect in the order of the calls, those of one moment all or none, and are not waited for: whoever
    depends on one waits for `kept`. What it says of what is not there changes nothing.
    """

    def begin(self, operation: StoredOperation) -> None:
        """An operation is being accepted. Its `number` is fresh."""
        ...

    def lease(self, lease: Lease, number: int, *, alone: bool) -> None:
        """Operation `number` waits for this lease, with every other of its action unless it is `alone`."""
        ...

    def intend(self, fence: int, intended: Intended) -> None:
        """A result is about to be made visible."""
        ...

    def end(self, operation: StoredOperation) -> None:
        """An operation ended, as its `outcome` says."""
        ...

    def release(self, fence: int) -> None:
        """A lease counts for nothing any more."""
        ...

    def forget(self, numbers: Sequence[int]) -> None:
        """Operations that ended are remembered no longer."""
        ...

    def keep(self) -> bool:
        """As `kept`, where that waits for nothing: True when all that was written before survives, False to ask `kept`.

        Raises:
            StorageFull, StateCorrupt: as `kept`.
        """
        ...

    def begin_graph(self, graph: StoredGraph) -> None:
        """A graph is being accepted. Its numbers are fresh.

        Raises:
            Overloaded: the disk cannot keep up; nothing was begun.
        """
        ...

    def conclude(self, operation: StoredOperation) -> None:
        """An operation of a graph that was never begun ended, as its `outcome` says."""
        ...

    def forget_graph(self, numbers: range) -> None:
        """The graph with these numbers, and its operations, are remembered no longer."""
        ...

    async def kept(self) -> None:
        """Return once all that was written before this call survives the end of the process.

        Raises:
            StorageFull, StateCorrupt: it cannot be written; it is tried again with what is written next.
        """
        ...

    async def load(self) -> Stored:
        """All that is kept."""
        ...


class ResourceMatcher(Protocol):
    """What workers offer beyond their properties, as far as it decides where an action may run."""

    def meets(self, node: str, constraints: tuple[str, ...]) -> bool | None:
        """Whether a node meets every constraint; None while nobody can tell. They have been parsed before."""
        ...

    def why_not(self, constraints: tuple[str, ...]) -> str:
        """For people: why the nodes that joined do not meet them. At most a few hundred characters."""
        ...


class Discoverer(Protocol):
    """One way of finding out what this machine offers; built-in, or an entry point of group `buildnet.discoverers`."""

    name: str

    def discover(self) -> Found:
        """Look. Called in a thread of its own, never twice at once; may raise, which is logged and costs only this.

        Repeat: safe; what is unchanged should cost little.
        """
        ...

    def watched(self) -> Sequence[str]:
        """Directories in which a change may change what is found; asked after each `discover`."""
        ...


class WorkerLink(Protocol):
    """A live session to one worker. Methods never block and never raise: a dead session is reported as a loss."""

    def assign(self, lease: Lease) -> None:
        """Ask the worker to run."""
        ...

    def cancel(self, fence: int, reason: str) -> None:
        """Ask the worker to stop and forget; safe for a fence that it does not know."""
        ...

    def prefetch(self, key: ActionKey) -> None:
        """Let the worker fetch what this action needs: it is likely to be given it next."""
        ...

    def settle(self, fence: int) -> None:
        """Tell the worker that its Done was taken (or refused for good): it need not repeat it."""
        ...


@quick
@dataclass(frozen=True, slots=True)
class Progress:
    """What a follower of an operation is told. `stage` is queued, executing or completed (REAPI ExecutionStage), and
    waiting before, for an action of a graph that others are to end for.
    """

    stage: str
    outcome: Outcome | None = None
    worker: str = ""
    position: int | None = None


Follower = Callable[[Progress], None]


class Publisher(Protocol):
    """The one way a result becomes visible: blobs durable, entry committed, cache written, then told."""

    def publish(self, lease: Lease, outcome: Outcome, *, cacheable: bool) -> Awaitable[Outcome]:
        """Return the outcome to tell, with its `entry_index`; a result that lost its blobs comes back as an error."""
        ...


T = TypeVar("T")


class ActionMessages(Protocol):
    """The messages of actions, for a room that knows no encoding. Called in threads of the history's own."""

    def fetch(self, digest: Digest) -> bytes | None:
        """A message's exact bytes as the store has them now, None when it has not."""
        ...

    def refers(self, kind: str, body: bytes) -> Sequence[tuple[str, Digest]]:
        """What a message of kind action, command or directory refers to, each with its kind; not the files."""
        ...

    def parts(self, action: bytes, command: bytes) -> Parts | None:
        """What the Action's digest is made of, None when it cannot be decoded."""
        ...

    def directory(self, body: bytes) -> TreeDirectory | None:
        """One directory, None when it cannot be decoded."""
        ...

    def ran(self, result: bytes) -> Ran:
        """What an ActionResult says of its run, as far as it can be decoded."""
        ...


class HistoryReader(Protocol):
    """What is kept of operations that ended, at one moment. Newest first, wherever there are several."""

    def find(self, operation: str) -> Sequence[PastOperation]:
        """The operation of this id, else those whose ids begin so, at most two."""
        ...

    def of_action(self, digest: Digest, count_max: int, *, before: int | None = None) -> Sequence[PastOperation]:
        """Operations of one action in any instance; `before`, when it is given, is a number to be below."""
        ...

    def of_target(self, target: str, count_max: int) -> Sequence[PastOperation]:
        """Operations of one target in any instance."""
        ...

    def candidates(
        self, past: PastOperation, parts: Parts, instances: Sequence[str], count_max: int
    ) -> Sequence[PastOperation]:
        """Operations before `past`, of other actions in `instances`, that may be its relatives: those of its target and
        mnemonic, of its outputs, of its command and of its program, at most `count_max` of each.
        """
        ...

    def shared(self, past: PastOperation) -> bool:
        """Whether an earlier operation was told the same result of the same execution."""
        ...

    def message(self, digest: Digest) -> bytes | None:
        """An Action, Command or Directory that is kept, None when it is not."""
        ...

    def since_unix_ms(self) -> int | None:
        """When the oldest that is kept ended."""
        ...


class History(Protocol):
    """Operations that ended, kept for a while beside the engine. It follows, and holds up nothing."""

    def record(self, ended: EndedOperation) -> None:
        """Keep one soon. Never blocks and never raises: what there is no room for is dropped and counted."""
        ...

    async def look(self, work: Callable[[HistoryReader], T]) -> T:
        """Let `work` read, in a thread, once all that was recorded by now is there."""
        ...

    def statistics(self) -> dict[str, int]:
        """history_recorded and history_dropped since the start; history_waiting now."""
        ...
