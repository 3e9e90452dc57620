"""What was taken from the cache, given to it and refused, summed up as entries. Pure; it counts nothing itself.

Each entry holds many callers' sums, so that any number of calls costs the ledger little; in each unit what one account
gave another took (docs/design/ledger.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from buildnet.model.entry import Value
from buildnet.model.posting import Move, caller_account, worker_account

Facts = dict[str, Value]
T = TypeVar("T")

READ: Final = "cache:read"
WRITTEN: Final = "cache:written"
STORE: Final = "cache:store"
EVICTED: Final = "cache:evicted"
KEPT: Final = "cache:kept"
REFUSED: Final = "quota:refused"
OTHERS: Final = "callers:others"

# An entry is at most 8 KiB, and a line has two names of up to 78 and two amounts of up to 20 characters.
_LINES_MAX: Final = 32
_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Used:
    """What one caller did: `subject` is who its credentials name, None for all whom nobody told apart.

    `results` are results of actions and values under names that were there, `reads` other calls that read;
    `read_bytes` is what all of them took, gRPC's framing included, as `written_bytes` is of `writes`.
    """

    subject: str | None
    worker: bool
    results: int = 0
    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0

    @property
    def account(self) -> str:
        """The account of who it is."""
        if self.subject is None:
            return OTHERS
        return worker_account(self.subject) if self.worker else caller_account(self.subject)


def read(used: Iterable[Used]) -> Iterator[Facts]:
    """Facts of `cache.read` entries: results and bytes that went from the cache to callers."""
    those = [one for one in used if one.results or one.read_bytes]
    for some in _some(those):
        lines = [Move(READ, one.account, _amounts(actions=one.results, bytes=one.read_bytes)).text for one in some]
        yield {"reads": sum(one.reads for one in some), "results": sum(one.results for one in some), "transfers": lines}


def written(used: Iterable[Used]) -> Iterator[Facts]:
    """Facts of `cache.written` entries: bytes that callers sent to the cache, kept or already there."""
    those = [one for one in used if one.written_bytes]
    for some in _some(those):
        lines = [Move(one.account, WRITTEN, _amounts(bytes=one.written_bytes)).text for one in some]
        yield {"writes": sum(one.writes for one in some), "transfers": lines}


def refused(counts: Mapping[str, int]) -> Iterator[Facts]:
    """Facts of `quota.refused` entries, of how many actions of each caller were turned away."""
    for some in _some([(subject, count) for subject, count in sorted(counts.items()) if count]):
        lines = [Move(caller_account(subject), REFUSED, (("actions", count),)).text for subject, count in some]
        yield {"actions": sum(count for _, count in some), "transfers": lines}


class StoreAccount:
    """What came into the store and went from it, and how long it was kept, by the store's own counters.

    Args:
        statistics: the counters at the beginning: `bytes_written`, `evicted`, `evicted_bytes`, `used_bytes`.
        now_ms: a clock that never goes back.
    """

    def __init__(self, statistics: Mapping[str, int], now_ms: int) -> None:
        self._told = dict(statistics)
        self._looked_ms = now_ms
        self._used_bytes = statistics["used_bytes"]
        # Of byte_hours, not yet told: in bytes times milliseconds, so that nothing is lost to rounding.
        self._byte_ms = 0

    def evicted(self, statistics: Mapping[str, int]) -> Facts | None:
        """Facts of `cache.evicted`, when something was since it was last told."""
        records, size_bytes = (self._since(statistics, name) for name in ("evicted", "evicted_bytes"))
        if not records and not size_bytes:
            return None
        facts: Facts = {"records": records}
        if size_bytes:
            facts["transfers"] = [Move(STORE, EVICTED, (("bytes", size_bytes),)).text]
        return facts

    def look(self, statistics: Mapping[str, int], now_ms: int) -> None:
        """Count the time since the last look, at the mean of what was kept then and is now."""
        used_bytes = statistics["used_bytes"]
        self._byte_ms += (self._used_bytes + used_bytes) // 2 * (now_ms - self._looked_ms)
        self._used_bytes, self._looked_ms = used_bytes, now_ms

    def kept(self, statistics: Mapping[str, int]) -> Facts | None:
        """Facts of `cache.kept`: bytes that came since it was last told, and for how long bytes were kept."""
        fresh = self._since(statistics, "bytes_written")
        byte_hours, self._byte_ms = divmod(self._byte_ms, _HOUR_MS)
        lines = [Move(WRITTEN, STORE, (("bytes", fresh),)).text] if fresh else []
        if byte_hours:
            lines.append(Move(STORE, KEPT, (("byte_hours", byte_hours),)).text)
        return {"used_bytes": statistics["used_bytes"], "transfers": lines} if lines else None

    def _since(self, statistics: Mapping[str, int], name: str) -> int:
        since = statistics[name] - self._told[name]
        self._told[name] = statistics[name]
        return since


def _amounts(**amounts: int) -> tuple[tuple[str, int], ...]:
    return tuple((unit, amount) for unit, amount in amounts.items() if amount)


def _some(those: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(those), _LINES_MAX):
        yield those[start : start + _LINES_MAX]
