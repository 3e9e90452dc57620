"""`buildnet cas ls|stat|why|du`: looking into a server's cache. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from buildnet.cli import options, sizes
from buildnet.cli.progress import followed

if TYPE_CHECKING:
    from buildnet.client.cache import BlobFacts, Reasons, Usage

_REFERRERS_SHOWN = 10


@click.command("ls", epilog="Example: buildnet cas ls --kind action --limit 20")
@options.of_server
@click.option("--kind", type=click.Choice(["blob", "action", "path"]), help="Only blobs, action results, or paths.")
@click.option("--prefix", default="", help="Only names that begin so; of an entry NAMESPACE:NAME.")
@click.option(
    "--limit", type=click.IntRange(0, 2**31 - 1), default=100, show_default=True, help="At most this many; 0 for all."
)
@options.as_json
def ls(
    url: str | None, state: Path | None, instance: str, kind: str | None, prefix: str, limit: int, as_json: bool
) -> None:
    """List what is in the cache, oldest first: kind, size, bytes on the disk, name."""
    with options.connected(url, state, instance) as client:
        for record in client.cache_records(kind=kind or "", prefix=prefix, limit=limit):
            if as_json:
                options.echo_json(asdict(record))
            else:
                sizes_shown = f"{sizes.shown(record.size_bytes):>11} {sizes.shown(record.stored_bytes):>11}"
                click.echo(f"{record.kind:6} {sizes_shown}  {record.name}")


def _at(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _usage(facts: BlobFacts) -> str:
    return {
        "recent": f"used lately: kept until {_at(facts.kept_until_unix_s)}",
        "referenced": "used since it was written: it has a second chance",
        "restored": f"not used since the server was started: kept until {_at(facts.kept_until_unix_s)} all the same",
        "idle": "not used since it was written",
    }.get(facts.usage, facts.usage)


@click.command("stat", epilog="Example: buildnet cas stat HASH/SIZE")
@options.of_server
@options.as_json
@click.argument("digest")
def stat(url: str | None, state: Path | None, instance: str, as_json: bool, digest: str) -> None:
    """Show how a blob is kept: bytes on the disk, segment, last use, who holds it."""
    with options.connected(url, state, instance) as client:
        facts = client.cache_stat(digest)
    if as_json:
        options.echo_json(asdict(facts))
        return
    rows = {
        "digest": facts.digest,
        "on the disk": f"{sizes.shown(facts.stored_bytes)}, {facts.stored_as}",
        "segment": f"{facts.segment}, {facts.segments_before} go before it",
        "last used": _at(facts.used_at_unix_s),
        "use": _usage(facts),
        "held by": ", ".join(facts.held_by) or "nobody",
    }
    for name, value in rows.items():
        click.echo(f"{name:12} {value}")


@click.command("why", epilog="Example: buildnet cas why HASH/SIZE")
@options.of_server
@click.option("--look-at", type=options.COUNT, default=1_000_000, show_default=True, help="Entries to look at.")
@options.as_json
@click.argument("digest")
def why(url: str | None, state: Path | None, instance: str, look_at: int, as_json: bool, digest: str) -> None:
    """Say what keeps a blob from being evicted, and which results refer to it."""
    with options.connected(url, state, instance) as client:
        reasons = client.cache_why(digest, looked_max=look_at)
    if as_json:
        options.echo_json(asdict(reasons))
        return
    for line in _reasons(reasons):
        click.echo(line)


def _reasons(reasons: Reasons) -> Iterator[str]:
    facts = reasons.facts
    for name in facts.held_by:
        yield f"held by {name}"
    if facts.usage != "idle":
        yield _usage(facts)
    if not reasons.kept and facts.segments_before == 0:
        yield "nothing keeps it: it is among the next to go"
    elif not reasons.kept:
        yield f"nothing keeps it: it goes after {facts.segments_before} older segments"
    for name in reasons.referrers[:_REFERRERS_SHOWN]:
        yield f"referred to by {name}"
    if (more := len(reasons.referrers) - _REFERRERS_SHOWN) > 0:
        yield f"and by {more} more"
    whole = "all of them" if reasons.looked_at_all else "not all: look further with --look-at"
    found = "" if reasons.referrers else "no result refers to it; "
    yield f"{found}{reasons.looked} entries were looked at, {whole}"


@click.command("du", epilog="Example: buildnet cas du")
@options.of_server
@options.as_json
def du(url: str | None, state: Path | None, instance: str, as_json: bool) -> None:
    """Show what the cache takes: by sort, what is dead, files of large blobs, room on the disk."""
    with options.connected(url, state, instance) as client:
        usage = followed(client.cache_usage(), "counting", quiet=as_json)
    if as_json:
        options.echo_json(_usage_facts(usage))
        return
    rows = [
        [
            group.kind,
            group.of or "-",
            f"{group.count:,}",
            sizes.shown(group.size_bytes),
            sizes.shown(group.stored_bytes),
        ]
        for group in usage.groups
    ]
    options.echo_table(["KIND", "OF", "COUNT", "CONTENT", "ON DISK"], rows)
    dead = max(0, usage.segment_bytes - usage.live_bytes)
    click.echo()
    click.echo(f"{sizes.shown(usage.used_bytes)} on the disk, {sizes.shown(usage.free_bytes)} free beside it")
    click.echo(f"  {sizes.shown(usage.segment_bytes)} in {usage.segments} segments, {sizes.shown(dead)} of it dead")
    click.echo(f"  {sizes.shown(usage.large_bytes)} in {usage.large_files} files of large blobs")


def _usage_facts(usage: Usage) -> dict[str, Any]:
    facts = asdict(usage)
    del facts["done"], facts["records_total"]
    return {**facts, "dead_bytes": max(0, usage.segment_bytes - usage.live_bytes)}
