"""`buildnet cas gc|scrub`: the upkeep of a server's cache, on request. Ctrl-C ends the server's work too."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from buildnet.cli import failures, options, sizes
from buildnet.cli.progress import followed


@click.command("gc", epilog="Example: buildnet cas gc --to 10GiB --dry-run")
@options.of_server
@click.option("--to", "size_bytes", type=sizes.Size(), help="Evict until the store takes at most this.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@options.as_json
def gc(
    url: str | None, state: Path | None, instance: str, size_bytes: int | None, dry_run: bool, as_json: bool
) -> None:
    """Evict what was not used for longest, and give back what is dead.

    What is held, or was used within the last minutes, stays: the store may take more than was asked for.
    """
    with options.connected(url, state, instance) as client:
        done = followed(client.cache_collect(size_bytes, dry_run=dry_run), "evicting", quiet=as_json)
    if as_json:
        facts = asdict(done)
        del facts["done"]
        options.echo_json({**facts, "dry_run": dry_run})
        return
    went = "would go" if dry_run else "went"
    click.echo(f"{done.records:,} records of {sizes.shown(done.size_bytes)} {went}")
    left_bytes = max(0, done.used_bytes - done.size_bytes) if dry_run else done.used_bytes
    click.echo(f"the store {'would take' if dry_run else 'takes'} {sizes.shown(left_bytes)}")
    if size_bytes is not None and left_bytes > size_bytes:
        click.echo(f"that is more than {sizes.shown(size_bytes)}: the rest is in use (see: buildnet cas why)")


@click.command("scrub", epilog="Example: buildnet cas scrub")
@options.of_server
@options.as_json
@click.pass_context
def scrub(ctx: click.Context, url: str | None, state: Path | None, instance: str, as_json: bool) -> None:
    """Read everything once more. Exits with 1 when something was damaged; that is absent from then on."""
    with options.connected(url, state, instance) as client:
        seen = followed(client.cache_scrub(), "reading", quiet=as_json)
    if as_json:
        facts = asdict(seen)
        del facts["done"], facts["records_total"]
        options.echo_json(facts)
    else:
        for name in seen.damaged:
            click.echo(f"damaged: {name}")
        if (more := seen.damaged_count - len(seen.damaged)) > 0:
            click.echo(f"and {more} more")
        click.echo(
            f"{seen.records:,} records, {sizes.shown(seen.size_bytes)}: {seen.damaged_count} damaged, "
            f"{seen.orphans} files that nothing named removed"
        )
    if seen.damaged_count:
        ctx.exit(failures.FAILED_CHECK)
