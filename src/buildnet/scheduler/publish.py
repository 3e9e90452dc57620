"""The one way a result becomes visible: blobs durable, intent kept, entry committed, cache written, the client told.

The one meeting point of scheduler, ledger and action cache. It refuses to write a cache entry that the ledger does
not hold, to log a result whose blobs are not there, and to let an untrusted node speak for everybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

from buildnet.errors import BlobsMissing, LeaseLost
from buildnet.model.action import Lease, Outcome
from buildnet.model.caller import is_apart
from buildnet.model.entry import Entry, Value
from buildnet.model.posting import Move, caller_account, node_account
from buildnet.ports import ActionCache, BlobStore, Clock, Ledger

Intend = Callable[[Lease, Outcome, bool], Awaitable[None]]
"""A lease, its outcome and whether it may be cached."""


class OrderedPublisher:
    """Publisher over a BlobStore, a Ledger and an ActionCache."""

    def __init__(
        self,
        blobs: BlobStore,
        ledger: Ledger,
        cache: ActionCache,
        clock: Clock,
        intend: Intend | None = None,
        trusts: Callable[[str], bool] = lambda node: True,
    ) -> None:
        """`intend`: keeps what is about to be published; the next start ends what this process was killed in. `trusts`:
        whether what a node made may be everybody's, as it is now, and not as it was when the lease was given.
        """
        self._trusts = trusts
        self._intend = intend
        self._blobs = blobs
        self._ledger = ledger
        self._cache = cache
        self._clock = clock

    async def publish(self, lease: Lease, outcome: Outcome, *, cacheable: bool) -> Outcome:
        """Make one attempt's result visible, in the order of the law.

        Only an exit code of zero is cached: a failing command may fail for a passing reason (REAPI allows either).

        Raises:
            LeaseLost: the result would be everybody's, and its node is not trusted any more; nothing was written.
            BlobsMissing: the worker said Done before its blobs were here; nothing was written.
            BuildNetError: the ledger or the cache refused; nothing is visible.
        """
        assert outcome.result is not None
        if not is_apart(lease.key.instance) and not self._trusts(lease.worker):
            raise LeaseLost(
                f"node {lease.worker} was trusted when it was given {lease.key.digest}, and is not any more; its "
                "result is dropped",
                fence=lease.fence,
            )
        missing = await self._blobs.missing_of_result(outcome.result)
        if missing:
            raise BlobsMissing(
                f"the result of {lease.key.digest} lacks {len(missing)} of its blobs", digests=list(missing)
            )
        if self._intend is not None:
            await self._intend(lease, outcome, cacheable)
        cached = cacheable and outcome.exit_code == 0
        index = await self._ledger.append([self._entry(lease, outcome, cached=cached)])
        if cached:
            await self._cache.put(lease.key, outcome.result, index)
        return replace(outcome, entry_index=index)

    def _entry(self, lease: Lease, outcome: Outcome, *, cached: bool) -> Entry:
        assert outcome.result is not None
        fields: dict[str, Value] = {
            "action": lease.key.digest.text,
            "instance": lease.key.instance,
            "worker": lease.worker,
            "fence": lease.fence,
            "attempt": lease.attempt,
            "exit_code": outcome.exit_code,
            "cached": cached,
            "result_sha256": hashlib.sha256(outcome.result).hexdigest(),
            "transfers": [_used(lease, outcome).text],
        }
        if outcome.cpu_from == "wall":
            fields["cpu_from"] = outcome.cpu_from
        return Entry("action.published", self._clock.now_unix_ms(), fields)


def _used(lease: Lease, outcome: Outcome) -> Move:
    """What the node gave to who asked."""
    amounts: tuple[tuple[str, int], ...] = (("actions", 1),)
    if outcome.cpu_from:
        amounts += (("cpu_ms", outcome.cpu_ms),)
    return Move(node_account(lease.worker), caller_account(lease.caller), amounts)
