"""What the ledger says of actions: all that are open, and the newest that have ended. Pure: `state, entry -> state`.

It believes entries and guesses nothing: what they do not tell of an action is empty. No entry makes it fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final

from buildnet.ledger.said import Fields, Row, number_of, text_of

ENDED_MAX: Final = 1000
ENDS: Final = {
    "action.published": "completed",
    "action.cached": "completed",
    "action.failed": "failed",
    "action.cancelled": "cancelled",
}
_BEGINS: Final = frozenset(("action.assigned", "action.adopted"))


# One is another's equal when it is that one: of equal actions that run apart there are many.
@dataclass(slots=True, eq=False)
class Run:
    """One action from its submission to its end. `number` is the index of the first entry that tells of it, `entry` of
    the one by which it ended; `leases` are its fences that go on, each with its node.

    `state` is queued, executing, completed, failed or cancelled; `cached`: its result was there, and nobody ran it.
    """

    number: int
    action: str
    instance: str
    submitted_at_unix_ms: int
    operation: str = ""
    state: str = "queued"
    worker: str = ""
    leases: tuple[tuple[int, str], ...] = ()
    attempts: int = 0
    assigned_at_unix_ms: int | None = None
    ended_at_unix_ms: int | None = None
    entry: int | None = None
    exit_code: int | None = None
    cached: bool = False
    error: str = ""
    message: str = ""

    @property
    def id(self) -> str:
        """The operation that asked first, or what stands for it where the entries do not name one."""
        return self.operation or f"entry-{self.number}"


_NAMES: Final = tuple(field.name for field in fields(Run))
_ROW: Final = attrgetter(*_NAMES)


class ActionView:
    """Open actions, and the `ended_max` that ended last."""

    def __init__(self, ended_max: int = ENDED_MAX) -> None:
        self._ended_max = ended_max
        self._open: dict[int, Run] = {}
        self._ended: dict[int, Run] = {}
        self._by_key: dict[tuple[str, str], list[Run]] = {}
        self._by_fence: dict[int, Run] = {}
        self._by_id: dict[str, Run] = {}

    def open(self) -> Iterator[Run]:
        """What has not ended, the newest first."""
        return reversed(self._open.values())

    def ended(self) -> Iterator[Run]:
        """What has ended, the newest end first."""
        return reversed(self._ended.values())

    def find(self, id_: str) -> Run | None:
        """The one of this id."""
        return self._by_id.get(id_)

    def apply(self, index: int, kind: str, at_unix_ms: int, said: Fields) -> None:
        """Take one entry of any kind; those that tell of no action mean nothing to it."""
        if kind == "action.submitted":
            run = Run(index, text_of(said, "action"), text_of(said, "instance"), at_unix_ms, text_of(said, "operation"))
            known = self._by_id.get(run.id)
            if known is None or known.number not in self._open:
                # One that is open was told twice, by a start after a kill (app/unsaid.py).
                self._add(run)
        elif kind == "controller.started":
            # What goes on under this one is adopted, and told.
            for run in self._open.values():
                for held, _ in run.leases:
                    self._release(run, held)
        elif kind in _BEGINS:
            self._begin(index, kind, at_unix_ms, said)
        elif kind == "action.attempted":
            fence = number_of(said, "fence")
            if fence is not None and (attempted := self._by_fence.get(fence)) is not None:
                self._release(attempted, fence)
        elif kind in ENDS:
            self._end(index, kind, at_unix_ms, said)

    def _add(self, run: Run) -> None:
        self._open[run.number] = self._by_id[run.id] = run
        self._by_key.setdefault((run.instance, run.action), []).append(run)
        for fence, _ in run.leases:
            self._by_fence[fence] = run

    def _meant(self, index: int, at_unix_ms: int, said: Fields, fence: int | None, *, leased: bool) -> Run:
        """The run that an entry tells of: by its fence, else the oldest of its action, first those that are `leased` or
        not. One that the ledger does not know begins here.
        """
        if fence is not None and (known := self._by_fence.get(fence)) is not None:
            return known
        action, instance = text_of(said, "action"), text_of(said, "instance")
        like = self._by_key.get((instance, action), ())
        for run in like:
            if bool(run.leases) is leased:
                return run
        if like:
            return like[0]
        fresh = Run(index, action, instance, at_unix_ms)
        self._add(fresh)
        return fresh

    def _begin(self, index: int, kind: str, at_unix_ms: int, said: Fields) -> None:
        fence, node = number_of(said, "fence"), text_of(said, "worker")
        run = self._meant(index, at_unix_ms, said, fence, leased=False)
        if fence is not None and self._by_fence.get(fence) is not run:
            run.leases = (*run.leases, (fence, node))
            self._by_fence[fence] = run
        run.state, run.worker = "executing", node
        run.attempts = max(run.attempts, number_of(said, "attempt") or 0)
        if kind == "action.assigned" or run.assigned_at_unix_ms is None:
            run.assigned_at_unix_ms = at_unix_ms

    def _release(self, run: Run, fence: int) -> None:
        del self._by_fence[fence]
        run.leases = tuple(lease for lease in run.leases if lease[0] != fence)
        if run.leases:
            run.worker = run.leases[-1][1]
        else:
            run.state, run.worker = "queued", ""

    def _end(self, index: int, kind: str, at_unix_ms: int, said: Fields) -> None:
        if kind == "action.cached" and (text_of(said, "instance"), text_of(said, "action")) not in self._by_key:
            # It had ended, and was looked up again: a kill came before the queue kept its end.
            return
        fence = number_of(said, "fence")
        run = self._meant(index, at_unix_ms, said, fence, leased=fence is not None)
        for held, _ in run.leases:
            del self._by_fence[held]
        like = self._by_key[run.instance, run.action]
        like.remove(run)
        if not like:
            del self._by_key[run.instance, run.action]
        del self._open[run.number]
        run.leases, run.state = (), ENDS[kind]
        run.worker = text_of(said, "worker")
        run.attempts = max(run.attempts, number_of(said, "attempt") or 0)
        run.ended_at_unix_ms, run.entry = at_unix_ms, index
        run.exit_code, run.cached = number_of(said, "exit_code"), kind == "action.cached"
        run.error, run.message = text_of(said, "error"), text_of(said, "message")
        self._keep(run)

    def _keep(self, run: Run) -> None:
        self._ended[run.number] = self._by_id[run.id] = run
        while len(self._ended) > self._ended_max:
            oldest = self._ended.pop(next(iter(self._ended)))
            if self._by_id.get(oldest.id) is oldest:
                del self._by_id[oldest.id]

    def rows(self) -> Iterator[Row]:
        """All that it holds, for `restore`."""
        for run in (*self._ended.values(), *self._open.values()):
            yield _ROW(run)

    def restore(self, row: Row) -> None:
        """Take one of the rows, in their order, as JSON gives them back.

        Raises:
            ValueError, TypeError: it is none.
        """
        if len(row) != len(_NAMES):
            raise ValueError(f"an action has {len(_NAMES)} fields")
        run = Run(*row)
        run.leases = tuple((int(fence), str(node)) for fence, node in run.leases)
        if run.ended_at_unix_ms is None:
            self._add(run)
        else:
            self._keep(run)
