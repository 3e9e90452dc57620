"""What the scheduler ended and what clients ran themselves, told to the history in its words.

It decides nothing and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from buildnet.edge.results import ClientResult
from buildnet.model.action import ActionKey
from buildnet.model.digest import Digest
from buildnet.model.history import EndedOperation, Requested
from buildnet.ports import Clock, History
from buildnet.scheduler.operation import Operation
from buildnet.wire.actions import Described
from buildnet.wire.request_metadata import requested_by


def teller(history: History, described: Callable[[str], Described | None]) -> Callable[[Operation], None]:
    """What is to hear of every operation that ends. `described` knows what was asked for, by operation id."""

    def ended(operation: Operation) -> None:
        outcome = operation.progress.outcome
        # What was turned away at the door never was an operation of anybody's build.
        if outcome is None or outcome.code == "overloaded":
            return
        known = described(operation.id)
        wanted = operation.wanted
        history.record(
            EndedOperation(
                operation=operation.id,
                key=wanted.key,
                submitted_at_unix_ms=operation.submitted_at_unix_ms,
                ended_at_unix_ms=operation.completed_at_unix_ms or operation.submitted_at_unix_ms,
                code=outcome.code,
                exit_code=outcome.exit_code,
                cached=outcome.cached,
                kept=not wanted.do_not_cache,
                lookup_skipped=wanted.skip_cache_lookup,
                entry_index=outcome.entry_index,
                worker=outcome.worker,
                caller=wanted.caller,
                result=outcome.result,
                requested=known.requested if known is not None else Requested(),
            )
        )

    return ended


def result_teller(history: History, clock: Clock, new_id: Callable[[], str]) -> Callable[[ClientResult, int], None]:
    """What is to hear of every result that a client wrote, and of the entry that says so.

    When the client began is not known: it counts as asked for when its result came.
    """

    def written(result: ClientResult, entry_index: int) -> None:
        now = clock.now_unix_ms()
        history.record(
            EndedOperation(
                operation=new_id(),
                key=ActionKey(result.namespace, Digest.parse(result.action)),
                submitted_at_unix_ms=now,
                ended_at_unix_ms=now,
                code="ok",
                entry_index=entry_index,
                caller=result.caller,
                result=result.result,
                requested=requested_by(result.requested),
            )
        )

    return written
