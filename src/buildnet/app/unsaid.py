"""Entries that a killed controller had not written: what its queue kept of operations and leases, and its ledger lacks.

Such entries wait up to 50 ms to be written with others (app/recorder.py). What is missing is told by the next start, as
of then. At worst, where a clock was set back, an entry is told twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from buildnet.ledger.queries import LastWords
from buildnet.model.action import ActionKey
from buildnet.model.entry import Entry, Value
from buildnet.scheduler.recovery import Recovered


def unsaid(recovered: Recovered, last: LastWords, now_unix_ms: int) -> Sequence[Entry]:
    """The entries to write: what was submitted, then what was assigned.

    Args:
        recovered: what the queue kept.
        last: what the ledger said before this start.
        now_unix_ms: the time of these entries.
    """
    since_unix_ms = last.since_unix_ms
    if since_unix_ms is None:
        # A new ledger beside an older queue: what came before is not its matter.
        return ()
    left, seen = last.submitted.copy(), set[ActionKey]()
    found: list[Entry] = []
    for waiting in recovered.waiting:
        wanted = waiting.operation.wanted
        if wanted.key in seen and not wanted.do_not_cache:
            # It joined what was submitted before.
            continue
        seen.add(wanted.key)
        named = wanted.key.instance, wanted.key.digest.text
        if left[named] > 0:
            left[named] -= 1
        elif waiting.operation.submitted_at_unix_ms >= since_unix_ms:
            facts = {**_facts(wanted.key), "operation": waiting.operation.id}
            found.append(Entry("action.submitted", now_unix_ms, facts))
    # Fences only rise, and entries are written in order: what is missing are the newest.
    leases = {waiting.lease.fence: waiting.lease for waiting in recovered.waiting if waiting.lease is not None}
    for fence, lease in sorted(leases.items()):
        if last.fence is not None and fence > last.fence:
            told: dict[str, Value] = {"worker": lease.worker, "fence": fence, "attempt": lease.attempt}
            found.append(Entry("action.assigned", now_unix_ms, {**_facts(lease.key), **told}))
    return found


def _facts(key: ActionKey) -> dict[str, Value]:
    return {"action": key.digest.text, "instance": key.instance}
