"""CacheService: what the store knows of itself, and its upkeep on request. Who may change the cache the door decides.

Long work runs in a thread beside serving, and ends when its caller is gone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from buildnet._native import Store
from buildnet.edge.bridge import Call, Method
from buildnet.errors import InvalidRequest, NotFound
from buildnet.wire._gen.buildnet.v1 import cache_pb2 as pb
from buildnet.wire.native import translated

_CACHE = "/buildnet.v1.CacheService/"
_KINDS: Final = ("blob", "action", "path")
_PAGE_RECORDS: Final = 1000
_LOOKED_MAX: Final = 1_000_000
_DAMAGED_MAX: Final = 1000
# How often a caller hears of work that has no steps of its own.
_TELL_EVERY_S: Final = 0.5
# An eviction gives what was used a second chance; the next round takes it.
_ROUNDS_MAX: Final = 3


class CacheService:
    """One store, seen from outside."""

    def __init__(self, store: Store, record: Callable[[str, dict[str, str | int]], None]) -> None:
        self._store = store
        self._record = record
        # Two scrubs at once would only read everything twice.
        self._upkeep = asyncio.Lock()

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        return {
            _CACHE + "List": Method("server_stream", self.records, pb.ListRecordsRequest, pb.ListRecordsResponse),
            _CACHE + "Stat": Method("unary", self.stat, pb.StatBlobRequest, pb.BlobFacts),
            _CACHE + "Why": Method("unary", self.why, pb.WhyRequest, pb.WhyResponse),
            _CACHE + "Usage": Method("server_stream", self.usage, pb.UsageRequest, pb.UsageResponse),
            _CACHE + "Collect": Method("server_stream", self.collect, pb.CollectRequest, pb.CollectResponse),
            _CACHE + "Scrub": Method("server_stream", self.scrub, pb.ScrubRequest, pb.ScrubResponse),
        }

    async def records(self, request: pb.ListRecordsRequest, call: Call) -> AsyncIterator[pb.ListRecordsResponse]:
        """Records in pages; none is held between two of them."""
        if request.kind and request.kind not in _KINDS:
            raise InvalidRequest(f"{request.kind!r} is not a kind; use {', '.join(_KINDS)}", field="kind")
        left = request.limit or None
        place: tuple[int, int] | None = (0, 0)
        while place is not None and left != 0:
            count = _PAGE_RECORDS if left is None else min(left, _PAGE_RECORDS)
            with translated():
                rows, place = await asyncio.to_thread(
                    self._store.page, *place, request.kind or None, request.prefix, count
                )
            if rows:
                left = None if left is None else left - len(rows)
                yield pb.ListRecordsResponse(
                    records=[
                        pb.CacheRecord(kind=kind, name=name, size_bytes=size, stored_bytes=stored)
                        for kind, name, size, stored in rows
                    ]
                )

    async def stat(self, request: pb.StatBlobRequest, call: Call) -> pb.BlobFacts:
        """What is known of one blob."""
        return await self._facts(request.digest)

    async def why(self, request: pb.WhyRequest, call: Call) -> pb.WhyResponse:
        """What keeps one blob, and who refers to it."""
        facts = await self._facts(request.digest)
        gone = threading.Event()
        looked_max = request.looked_max or _LOOKED_MAX
        try:
            with translated():
                names, looked, whole = await asyncio.to_thread(
                    self._store.referrers, request.digest, looked_max, lambda _: not gone.is_set()
                )
        finally:
            gone.set()
        kept = bool(facts.held_by) or facts.usage != "idle"
        return pb.WhyResponse(facts=facts, referrers=names, looked=looked, looked_at_all=whole, kept=kept)

    async def usage(self, request: pb.UsageRequest, call: Call) -> AsyncIterator[pb.UsageResponse]:
        """Progress, and then what the cache takes."""
        statistics = self._store.statistics()
        total = statistics["records"]
        work = _Work(self._store.taken)
        async for counts in work.steps():
            yield pb.UsageResponse(records=counts[0], records_total=total)
        taken = work.result
        groups = [
            pb.UsageGroup(kind=kind, of=of, count=count, size_bytes=size, stored_bytes=stored)
            for kind, of, count, size, stored in taken.pop("groups")
        ]
        yield pb.UsageResponse(
            done=True,
            groups=groups,
            records=sum(group.count for group in groups),
            records_total=total,
            used_bytes=statistics["used_bytes"],
            free_bytes=statistics["free_bytes"],
            **taken,
        )

    async def collect(self, request: pb.CollectRequest, call: Call) -> AsyncIterator[pb.CollectResponse]:
        """What the store takes while it is made smaller, and then what went."""
        used = self._store.statistics()["used_bytes"]
        wanted = request.size_bytes if request.HasField("size_bytes") else used
        if request.dry_run:
            with translated():
                said = await asyncio.to_thread(self._store.rehearse, wanted)
            yield pb.CollectResponse(done=True, used_bytes=used, **said)
            return
        async with self._upkeep:
            work = _Work(lambda tell: self._evict(wanted, tell))
            async for _ in work.steps():
                yield pb.CollectResponse(used_bytes=self._store.statistics()["used_bytes"])
        used = self._store.statistics()["used_bytes"]
        self._record("cache.collected", {"used_bytes": used, **work.result})
        yield pb.CollectResponse(done=True, used_bytes=used, **work.result)

    def _evict(self, wanted: int, tell: Callable[..., object]) -> dict[str, int]:
        done = {"records": 0, "bytes": 0, "moved": 0, "compacted_bytes": 0}
        for _ in range(_ROUNDS_MAX):
            for name, count in self._store.evict(wanted).items():
                done[name] += count
            if self._store.statistics()["used_bytes"] <= wanted or not tell():
                break
        return done

    async def scrub(self, request: pb.ScrubRequest, call: Call) -> AsyncIterator[pb.ScrubResponse]:
        """Progress, and then what was damaged."""
        total = self._store.statistics()["records"]
        async with self._upkeep:
            work = _Work(self._store.scrub)
            async for counts in work.steps():
                records, size, damaged = counts
                yield pb.ScrubResponse(records=records, bytes=size, damaged_count=damaged, records_total=total)
        seen = work.result
        facts = {"records": seen["records"], "damaged": len(seen["damaged"]), "orphans": seen["orphans"]}
        self._record("cache.scrubbed", facts)
        yield pb.ScrubResponse(
            done=True,
            records=seen["records"],
            bytes=seen["bytes"],
            damaged_count=len(seen["damaged"]),
            damaged=seen["damaged"][:_DAMAGED_MAX],
            orphans=seen["orphans"],
            records_total=total,
        )

    async def _facts(self, digest: str) -> pb.BlobFacts:
        with translated():
            known = await asyncio.to_thread(self._store.facts, digest)
        if known is None:
            raise NotFound(f"there is no blob {digest}", kind="blob", name=digest)
        used_at_s, kept_until_s = known.pop("used_at_s"), known.pop("kept_until_s")
        facts = pb.BlobFacts(digest=digest, **known)
        facts.used_at.FromSeconds(used_at_s)
        facts.kept_until.FromSeconds(kept_until_s)
        return facts


class _Work:
    """Work in a thread that tells how far it is, and is told when nobody waits for it any more."""

    def __init__(self, work: Callable[[Callable[..., object]], Any]) -> None:
        self._work = work
        self._gone = threading.Event()
        self._told: tuple[int, ...] = ()
        self.result: Any = None

    def _tell(self, *counts: int) -> bool:
        self._told = counts
        return not self._gone.is_set()

    async def steps(self) -> AsyncIterator[tuple[int, ...]]:
        """What was told last, twice a second, until the work is done; `result` is its answer then."""
        task = asyncio.ensure_future(asyncio.to_thread(self._work, self._tell))
        try:
            while not (await asyncio.wait([task], timeout=_TELL_EVERY_S))[0]:
                if self._told:
                    yield self._told
            with translated():
                self.result = task.result()
        finally:
            self._gone.set()
            # The thread cannot be left: what it works on may be closed next.
            await asyncio.wait([task])
