"""`buildnet fleet tokens new|ls|revoke`: what one worker joins with, once. The line is printed to standard output
alone, and nobody can have it printed again.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from buildnet.cli import options, printable


@click.group("tokens", epilog="Example: buildnet fleet tokens new --note rack7")
def tokens() -> None:
    """Make, list and revoke tokens with which workers join."""


@tokens.command("new", epilog="Example: buildnet fleet tokens new --expires 2h --note rack7")
@options.of_server
@click.option("--expires", default="1h", show_default=True, help="How long it may be used, as in 30m; 30 d at most.")
@click.option("--note", default="", help="Who or what it is for.")
@click.option(
    "--tier",
    type=click.Choice(["trusted", "untrusted"]),
    default="trusted",
    show_default=True,
    help="How far the worker is trusted; what an untrusted one makes is for callers in a namespace alone.",
)
@click.option(
    "--address",
    help="HOST:PORT at which the worker reaches the server, or https://HOST:PORT where only HTTP/2 passes.  "
    "[default: as this command does]",
)
@options.as_json
def new(
    url: str | None,
    state: Path | None,
    instance: str,
    expires: str,
    note: str,
    tier: str,
    address: str | None,
    as_json: bool,
) -> None:
    """Print a line by which one worker joins: buildnet join 'LINE'. It is of use once."""
    from buildnet.model.credentials import Address
    from buildnet.model.join_line import CARRIERS
    from buildnet.model.quantity import duration_s_of

    lifetime_s = duration_s_of(expires, "expires")
    with options.connected(url, state, instance) as client:
        target = Address.parse(address or client.url).target
        scheme = (address or "").partition("://")[0].lower()
        carrier = scheme if scheme in CARRIERS else ""
        token, line = client.fleet_new_token(target, lifetime_s=lifetime_s, note=note, tier=tier, carrier=carrier)
    if as_json:
        options.echo_json({"line": line.text, **asdict(token)})
    else:
        click.echo(line.text)


@tokens.command("ls", epilog="Example: buildnet fleet tokens ls --json")
@options.of_server
@options.as_json
def ls(url: str | None, state: Path | None, instance: str, as_json: bool) -> None:
    """List join tokens, the newest first; none of them can be read here."""
    with options.connected(url, state, instance) as client:
        found = client.fleet_join_tokens()
    if as_json:
        options.echo_json([asdict(token) for token in found])
        return
    options.echo_table(
        ["ID", "STATE", "TIER", "ENDS", "MADE BY", "USED BY KEY", "NOTE"],
        [
            [
                token.id,
                token.state,
                printable.shown(token.tier),
                _time(token.expires_at_unix_s),
                token.made_by or "-",
                token.used_by[:16] or "-",
                token.note,
            ]
            for token in found
        ],
    )


@tokens.command("revoke", epilog="Example: buildnet fleet tokens revoke 0123456789abcdef")
@options.of_server
@options.as_json
@click.argument("token_id", metavar="ID")
def revoke(url: str | None, state: Path | None, instance: str, as_json: bool, token_id: str) -> None:
    """Let a join token be of no use. A node that has joined with it stays: `buildnet fleet rm` is for nodes."""
    with options.connected(url, state, instance) as client:
        token = client.fleet_revoke_token(token_id)
    if as_json:
        options.echo_json(asdict(token))
    elif token.state == "used":
        click.echo(f"{token.id} was used by the node with the key {token.used_by}; to shut it out: buildnet fleet rm")
    else:
        click.echo(f"{token.id} is {token.state}")


def _time(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        # A server may say any number.
        return f"second {unix_s}"
