"""`buildnet ledger tail|verify|prove`."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from buildnet.cli import options


@click.group("ledger", epilog="Example: buildnet ledger verify")
def command() -> None:
    """Read and verify the ledger."""


@command.command("tail", epilog="Example: buildnet ledger tail -f")
@options.of_server
@click.option("-f", "--follow", is_flag=True, help="Stay and print what comes.")
@click.option("--from", "start", type=int, help="First entry.  [default: the last 20]")
@options.as_json
def tail(url: str | None, state: Path | None, instance: str, follow: bool, start: int | None, as_json: bool) -> None:
    """Print entries in order."""
    with options.connected(url, state, instance) as client:
        for index, body in client.ledger_tail(_last(client) if start is None else start, follow=follow):
            value = json.loads(body)
            if as_json:
                options.echo_json({"index": index, "body": value})
                continue
            at = datetime.fromtimestamp(value.pop("at_unix_ms") / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
            kind = value.pop("kind")
            value.pop("v", None)
            facts = " ".join(f"{name}={str(fact)[:16]}" for name, fact in value.items() if fact != "")
            click.echo(f"{index:>7} {at} {kind:18} {facts}")


def _last(client: object) -> int:
    from buildnet.client import SyncClient

    assert isinstance(client, SyncClient)
    return max(0, client.ledger_size() - 20)


@command.command("verify", epilog="Example: buildnet ledger verify --state ~/.local/state/buildnet")
@options.state
@click.option("--known", type=click.Path(exists=True, path_type=Path), help="A checkpoint that you kept elsewhere.")
@options.as_json
def verify(state: Path | None, known: Path | None, as_json: bool) -> None:
    """Recompute the whole ledger from its files: entries, tree, signatures, every byte. Needs no server.

    Exits with 1 when anything was altered, and says where.
    """
    from buildnet.app.config import default_state_dir
    from buildnet.ledger import audit

    report = audit.verify(state or default_state_dir(), known.read_text() if known else None)
    if as_json:
        options.echo_json({"verified": True, **asdict(report)})
        return
    click.echo(f"verified: {report.size} entries, root {report.root[:16]}…, in {report.seconds:.2f} s")
    for kind, count in sorted(report.kinds.items()):
        click.echo(f"  {count:>7} {kind}")
    if report.waiting:
        click.echo(f"  {report.waiting:>7} of these wait in the tail, under no checkpoint yet")


@command.command("prove", epilog="Example: buildnet ledger prove 12")
@options.of_server
@options.as_json
@click.argument("index", type=int)
def prove(url: str | None, state: Path | None, instance: str, as_json: bool, index: int) -> None:
    """Fetch one entry with its proof and check the proof here, against the signed checkpoint."""
    with options.connected(url, state, instance) as client:
        proof = client.prove(index)
    if as_json:
        options.echo_json(proof)
    else:
        click.echo(f"proven: entry {index} is in the tree of {proof['tree_size']} entries that {proof['key']} signed")
        click.echo(str(proof["body"]))
