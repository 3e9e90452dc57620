"""Ends that a killed controller had not written: of actions that the ledger holds open, and nobody waits for.

Such an entry waits up to 2 ms to be written (app/recorder.py). Without it a reader would hold its action open for ever.
What anybody waits for, or what ended under this controller, is left alone: that is told in its own time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from buildnet.ledger.action_view import Run
from buildnet.ledger.follower import Follower
from buildnet.model.entry import Entry, Value
from buildnet.scheduler.operation import Operation
from buildnet.scheduler.service import Scheduler


def unended(
    held_open: Iterable[Run],
    operations: Iterable[Operation],
    find: Callable[[str], Operation | None],
    began_unix_ms: int,
    now_unix_ms: int,
) -> Iterator[Entry]:
    """The entries to write.

    Args:
        held_open: actions of earlier controllers that the ledger holds open.
        operations: all that the scheduler knows.
        find: one of them by its id.
        began_unix_ms: when this controller began.
        now_unix_ms: the time of these entries.
    """
    busy = {
        (operation.wanted.key.instance, operation.wanted.key.digest.text)
        for operation in operations
        if operation.completed_at_unix_ms is None or operation.completed_at_unix_ms >= began_unix_ms
    }
    for run in held_open:
        if (run.instance, run.action) in busy:
            continue
        facts: dict[str, Value] = {"action": run.action, "instance": run.instance}
        operation = find(run.operation)
        outcome = None if operation is None else operation.progress.outcome
        if outcome is None or outcome.code == "cancelled":
            yield Entry("action.cancelled", now_unix_ms, facts)
        elif outcome.code == "ok":
            # It was not published, or the ledger would say so: it was found.
            yield Entry("action.cached", now_unix_ms, facts)
        else:
            told = {"error": outcome.code, "message": outcome.message[:1000]}
            yield Entry("action.failed", now_unix_ms, {**facts, **told})


async def end_unended(
    follower: Follower,
    size: int,
    scheduler: Scheduler,
    record: Callable[[Entry], None],
    began_unix_ms: int,
    now_unix_ms: Callable[[], int],
) -> None:
    """Write them once the follower has read the first `size` entries: those before anything was asked of this one."""
    await follower.reached(size)
    held_open = [run for run in follower.views.actions.open() if run.number < size]
    for entry in unended(
        reversed(held_open), scheduler.operations(), scheduler.find_operation, began_unix_ms, now_unix_ms()
    ):
        record(entry)
