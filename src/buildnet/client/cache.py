"""Messages of CacheService as plain values, for the command line and other callers. It decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from buildnet.client.connection import Connection
from buildnet.wire._gen.buildnet.v1 import cache_pb2

_CACHE: Final = "/buildnet.v1.CacheService/"


@dataclass(frozen=True, slots=True)
class Record:
    """One blob or entry of a listing; sizes of its content and on the disk."""

    kind: str
    name: str
    size_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class BlobFacts:
    """What a server knows of one blob. Times are in seconds since 1970."""

    digest: str
    stored_bytes: int
    stored_as: str
    segment: int
    segments_before: int
    usage: str
    used_at_unix_s: int
    kept_until_unix_s: int
    held_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reasons:
    """What keeps one blob, and at most 100 entries that refer to it."""

    facts: BlobFacts
    kept: bool
    referrers: tuple[str, ...]
    looked: int
    looked_at_all: bool


@dataclass(frozen=True, slots=True)
class Group:
    """What records of one sort take."""

    kind: str
    of: str
    count: int
    size_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What the cache takes; until `done` only how far the count is."""

    done: bool
    records: int
    records_total: int
    groups: tuple[Group, ...]
    segments: int
    segment_bytes: int
    live_bytes: int
    large_files: int
    large_bytes: int
    used_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What an eviction took; until `done` only what the store takes now."""

    done: bool
    used_bytes: int
    records: int
    size_bytes: int
    moved: int
    compacted_bytes: int


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a scrub read; which records were damaged is known when it is `done`."""

    done: bool
    records: int
    records_total: int
    size_bytes: int
    damaged_count: int
    damaged: tuple[str, ...]
    orphans: int


def record_of(message: cache_pb2.CacheRecord) -> Record:
    """One record of a listing."""
    return Record(message.kind, message.name, message.size_bytes, message.stored_bytes)


def facts_of(message: cache_pb2.BlobFacts) -> BlobFacts:
    """What is known of one blob."""
    return BlobFacts(
        digest=message.digest,
        stored_bytes=message.stored_bytes,
        stored_as=message.stored_as,
        segment=message.segment,
        segments_before=message.segments_before,
        usage=message.usage,
        used_at_unix_s=message.used_at.seconds,
        kept_until_unix_s=message.kept_until.seconds,
        held_by=tuple(message.held_by),
    )


def reasons_of(message: cache_pb2.WhyResponse) -> Reasons:
    """What keeps one blob."""
    return Reasons(
        facts=facts_of(message.facts),
        kept=message.kept,
        referrers=tuple(message.referrers),
        looked=message.looked,
        looked_at_all=message.looked_at_all,
    )


def usage_of(message: cache_pb2.UsageResponse) -> Usage:
    """What the cache takes."""
    return Usage(
        done=message.done,
        records=message.records,
        records_total=message.records_total,
        groups=tuple(
            Group(group.kind, group.of, group.count, group.size_bytes, group.stored_bytes) for group in message.groups
        ),
        segments=message.segments,
        segment_bytes=message.segment_bytes,
        live_bytes=message.live_bytes,
        large_files=message.large_files,
        large_bytes=message.large_bytes,
        used_bytes=message.used_bytes,
        free_bytes=message.free_bytes,
    )


def collected_of(message: cache_pb2.CollectResponse) -> Collected:
    """What an eviction took."""
    return Collected(
        done=message.done,
        used_bytes=message.used_bytes,
        records=message.records,
        size_bytes=message.bytes,
        moved=message.moved,
        compacted_bytes=message.compacted_bytes,
    )


def scrubbed_of(message: cache_pb2.ScrubResponse) -> Scrubbed:
    """What a scrub read."""
    return Scrubbed(
        done=message.done,
        records=message.records,
        records_total=message.records_total,
        size_bytes=message.bytes,
        damaged_count=message.damaged_count,
        damaged=tuple(message.damaged),
        orphans=message.orphans,
    )


class CacheCalls(Connection):
    """The calls of CacheService."""

    async def cache_records(self, *, kind: str = "", prefix: str = "", limit: int = 0) -> AsyncIterator[Record]:
        """What is in the cache, oldest first; `limit` 0 is all."""
        request = cache_pb2.ListRecordsRequest(kind=kind, prefix=prefix, limit=limit)
        async for page in self._stream(_CACHE + "List", request, cache_pb2.ListRecordsResponse):
            for record in page.records:
                yield record_of(record)

    async def cache_stat(self, digest: str) -> BlobFacts:
        """What is known of one blob.

        Raises:
            NotFound: it is absent.
        """
        request = cache_pb2.StatBlobRequest(digest=digest)
        return facts_of(await self._unary(_CACHE + "Stat", request, cache_pb2.BlobFacts))

    async def cache_why(self, digest: str, *, looked_max: int = 0) -> Reasons:
        """What keeps one blob; at most `looked_max` entries are looked at for references, 0 for 1,000,000.

        Raises:
            NotFound: it is absent.
        """
        request = cache_pb2.WhyRequest(digest=digest, looked_max=looked_max)
        return reasons_of(await self._unary(_CACHE + "Why", request, cache_pb2.WhyResponse))

    async def cache_usage(self) -> AsyncIterator[Usage]:
        """Progress, and last what the cache takes."""
        async for message in self._stream(_CACHE + "Usage", cache_pb2.UsageRequest(), cache_pb2.UsageResponse):
            yield usage_of(message)

    async def cache_collect(self, size_bytes: int | None = None, *, dry_run: bool = False) -> AsyncIterator[Collected]:
        """Progress, and last what was evicted so that the store takes at most `size_bytes`; None: only what is dead."""
        request = cache_pb2.CollectRequest(size_bytes=size_bytes, dry_run=dry_run)
        async for message in self._stream(_CACHE + "Collect", request, cache_pb2.CollectResponse):
            yield collected_of(message)

    async def cache_scrub(self) -> AsyncIterator[Scrubbed]:
        """Progress, and last what was damaged. The server stops when this is left."""
        async for message in self._stream(_CACHE + "Scrub", cache_pb2.ScrubRequest(), cache_pb2.ScrubResponse):
            yield scrubbed_of(message)
