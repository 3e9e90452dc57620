"""What the cache gave, took and refused is in the ledger within seconds, summed up by caller. It decides nothing.

What a killed server had counted and not yet told is lost: entries of results never wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from buildnet.errors import BuildNetError
from buildnet.ledger.usage import StoreAccount, Used, read, refused, written
from buildnet.model.entry import Value
from buildnet.scheduler.operation import Operation

log = logging.getLogger(__name__)

_EVERY_S: Final = 10.0
# Of what is kept there is always something to tell, and an idle server should not fill its ledger with it.
_KEPT_EVERY_MS: Final = 3_600_000
_CALLERS_MAX: Final = 1024

Record = Callable[[str, Mapping[str, Value]], None]


class UsageRecord:
    """Looks at the door's and the store's counters and tells the ledger what is new.

    Args:
        statistics: the store's counters.
        record: writes an entry of a kind.
        monotonic_s: seconds of a clock that never goes back.
    """

    def __init__(
        self, statistics: Callable[[], Mapping[str, int]], record: Record, monotonic_s: Callable[[], float]
    ) -> None:
        self._statistics = statistics
        self._record = record
        self._monotonic_s = monotonic_s
        self._store = StoreAccount(statistics(), self._now_ms())
        self._kept_ms = self._now_ms()
        self._taken: Callable[[], Sequence[Mapping[str, Any]]] = tuple
        self._cached: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def _now_ms(self) -> int:
        return int(self._monotonic_s() * 1000)

    def over(self, taken: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """Where it is asked what callers did since it was last asked (Door.take_usage)."""
        self._taken = taken

    def ended(self, operation: Operation) -> None:
        """An operation ended: that its result was in the cache, or that it was turned away, is counted."""
        outcome = operation.progress.outcome
        if outcome is None:
            return
        caller = operation.wanted.caller
        if outcome.cached:
            _count(self._cached, caller)
        elif outcome.code == "overloaded":
            _count(self._refused, caller)

    def look(self, *, last: bool = False) -> None:
        """Tell what is new; the `last` time, also what else would wait for its hour, and the door is let go."""
        used = [Used(**counts) for counts in self._taken()]
        if last:
            # Who ends operations knows this, and the door knows them: a circle would keep the store's lock.
            self._taken = tuple
        cached, self._cached = self._cached, Counter()
        used += [Used(subject, worker=False, results=count) for subject, count in cached.items()]
        turned_away, self._refused = self._refused, Counter()
        for kind, entries in (
            ("cache.read", read(used)),
            ("cache.written", written(used)),
            ("quota.refused", refused(turned_away)),
        ):
            for facts in entries:
                self._record(kind, facts)
        self._look_at_store(last=last)

    def _look_at_store(self, *, last: bool) -> None:
        statistics, now_ms = self._statistics(), self._now_ms()
        self._store.look(statistics, now_ms)
        evicted = self._store.evicted(statistics)
        if last or evicted is not None or now_ms - self._kept_ms >= _KEPT_EVERY_MS:
            self._kept_ms = now_ms
            # Before what went, so that who reads the account sees what came first.
            if (kept := self._store.kept(statistics)) is not None:
                self._record("cache.kept", kept)
        if evicted is not None:
            self._record("cache.evicted", evicted)

    async def run(self) -> None:
        """Look every ten seconds, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                self.look()
            except BuildNetError as error:
                log.warning("what the cache gave and took could not be counted: %s", error)


def _count(counts: Counter[str], caller: str) -> None:
    # Callers that nobody granted a token cannot be many; a bound all the same.
    if caller in counts or len(counts) < _CALLERS_MAX:
        counts[caller] += 1
    else:
        counts[""] += 1
