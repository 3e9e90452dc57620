"""`buildnet fleet ls|show|watch|drain|cordon|uncordon|tier|rm|allow|tokens`. Names from other machines are never
printed raw.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from buildnet.cli import options, printable, sizes
from buildnet.cli.fleet_tokens import tokens
from buildnet.errors import NodeDown, NotFound

if TYPE_CHECKING:
    from buildnet.client import NodeInfo, SyncClient

_SKEW_SHOWN_S = 1.0
_EACH = {
    "memory_bytes_max": "of memory",
    "disk_bytes_max": "of disk",
    "pids_max": "processes",
    "log_bytes_max": "of log",
}
_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_nodes = click.argument("nodes", metavar="NODE...", nargs=-1, required=True)


@click.group("fleet", epilog="Example: buildnet fleet ls")
def command() -> None:
    """Show workers, drain, cordon and remove them.

    NODE is an id, the first letters of one, or a host's name.
    """


command.add_command(tokens)


@command.command("ls", epilog="Example: buildnet fleet ls --all")
@options.of_server
@click.option("--all", "include_absent", is_flag=True, help="Also those that left, are cordoned or were removed.")
@options.as_json
def ls(url: str | None, state: Path | None, instance: str, include_absent: bool, as_json: bool) -> None:
    """List the workers whose sessions are open."""
    with options.connected(url, state, instance) as client:
        nodes = client.fleet_nodes(include_absent=include_absent)
    if as_json:
        options.echo_json([asdict(node) for node in nodes])
        return
    now_unix_s = time.time()  # noqa: TID251 - shown to a person, decides nothing
    options.echo_table(
        ["NODE", "STATE", "TIER", "HOST", "RUNNING", "SLOTS", "VERSION", "SEEN", "NOTE"],
        [
            [
                node.node[:12],
                node.state,
                printable.shown(node.tier or "-"),
                node.hostname or "-",
                str(node.running),
                str(node.slots or "-"),
                node.version or "-",
                _ago(node.last_seen_unix_s, now_unix_s),
                _note(node),
            ]
            for node in nodes
        ],
    )


@command.command("show", epilog="Example: buildnet fleet show 8135a906ccdf")
@options.of_server
@options.as_json
@click.argument("node")
def show(url: str | None, state: Path | None, instance: str, as_json: bool, node: str) -> None:
    """Show one worker: what it offers and what it runs."""
    with options.connected(url, state, instance) as client:
        info = client.fleet_find(node)
        most = _most(client, info.node)
        acts = [act for act in client.actions(limit=1000) if act.worker == info.node and act.state == "executing"]
    if as_json:
        options.echo_json({**asdict(info), "actions": [act.id for act in acts]})
        return
    for name, value in asdict(info).items():
        if name in ("properties", "capacity", "used") or value is None or value in ("", False):
            continue
        shown = _time(value) if name.endswith("_unix_s") else str(value)
        click.echo(f"{name.removesuffix('_unix_s'):12} {printable.shown(shown)}")
    if info.capacity is not None:
        click.echo(f"{'capacity':12} {info.capacity.text}")
        click.echo(f"{'in use':12} {(info.used and info.used.text) or 'nothing'}")
    if most:
        click.echo(f"{'each action':12} {printable.shown(', '.join(most))}")
    for name, values in sorted(info.properties.items()):
        click.echo(f"{'offers':12} {printable.shown(name)}={printable.shown(', '.join(values))}")
    for act in acts:
        click.echo(f"{'runs':12} {act.id[:12]} {printable.shown(' '.join(act.arguments)[:60])}")


@command.command("watch", epilog="Example: buildnet fleet watch")
@options.of_server
@options.as_json
def watch(url: str | None, state: Path | None, instance: str, as_json: bool) -> None:
    """Print every worker, then each change, until Ctrl-C."""
    with options.connected(url, state, instance) as client:
        for node in _changes(client):
            if as_json:
                options.echo_json(asdict(node))
                continue
            now = datetime.now(UTC).strftime("%H:%M:%S")  # noqa: TID251 - shown to a person, decides nothing
            host, load = printable.shown(node.hostname or "-"), f"{node.running}/{node.slots}"
            click.echo(f"{now} {node.node[:12]:12} {node.state:8} {load:>9} {host} {_note(node)}".rstrip())


def _most(client: SyncClient, node: str) -> list[str]:
    """For people: what one action may use there, as far as the node has announced it."""
    try:
        facts = [fact for _, found in client.resources(kind="sandbox", node=node) for fact in found.attributes]
    except NotFound:
        # It has joined a moment ago, or long since left.
        return []
    known = dict(facts)
    told = [
        (sizes.shown(amount) if name.endswith("bytes_max") else str(amount)) + f" {of}"
        for name, of in _EACH.items()
        if isinstance(amount := known.get(name), int) and amount
    ]
    return [*told, "no cpus beyond those that it asked for"] if known.get("cpu_is_capped") else told


def _changes(client: SyncClient) -> Iterator[NodeInfo]:
    """Nodes as they are and as they change. After a break all are told again: what is as it was is left out, and a node
    that the server does not know any more has no session there.
    """
    known: dict[str, NodeInfo] = {}
    heard, broke = _since_break()
    for node in client.fleet_watch(on_break=broke):
        if node is None:
            for name in sorted(known.keys() - heard):
                yield replace(known.pop(name), state="left", running=0)
            continue
        heard.add(node.node)
        now = replace(node, last_seen_unix_s=None, clock_skew_s=None)
        if known.get(node.node) != now:
            known[node.node] = now
            yield node


def _since_break() -> tuple[set[str], Callable[[NodeDown], None]]:
    """Names for those that were told since the connection broke last, and what to call when it does."""
    heard = set[str]()

    def broke(failure: NodeDown) -> None:
        heard.clear()
        options.broke(failure)

    return heard, broke


@command.command("drain", epilog="Example: buildnet fleet drain --wait 8135a906ccdf")
@options.of_server
@click.option("--wait", is_flag=True, help="Return once they have left.")
@options.as_json
@_nodes
def drain(
    url: str | None, state: Path | None, instance: str, wait: bool, as_json: bool, nodes: tuple[str, ...]
) -> None:
    """Let workers finish what they run, take no more, and leave; their processes end. Cannot be taken back.

    Ctrl-C while waiting ends the waiting alone.
    """
    with options.connected(url, state, instance) as client:
        asked = [client.fleet_drain(client.fleet_find(node).node) for node in nodes]
        if wait:
            try:
                _wait(client, {node.node for node in asked}, quiet=as_json)
            except KeyboardInterrupt:
                click.echo("buildnet: no longer waiting; the drain goes on, see: buildnet fleet ls --all", err=True)
                raise
            asked = [client.fleet_find(node.node) for node in asked]
    _told(asked, as_json, "has left" if wait else "is draining")


def _wait(client: SyncClient, waited: set[str], *, quiet: bool) -> None:
    """Until all have left; what still runs is told at each change.

    Raises:
        NodeDown: the server was away for too long, or knows nothing of one when it is back.
    """
    told: dict[str, int] = {}
    heard, broke = _since_break()
    for node in client.fleet_watch(on_break=broke):
        if node is None and not waited <= heard:
            # It may be on its way to a server that was started anew, and may have left.
            break
        if node is None:
            continue
        heard.add(node.node)
        if node.node not in waited:
            continue
        if node.state in ("left", "removed"):
            waited.discard(node.node)
            if not waited:
                return
        elif not quiet and told.get(node.node) != node.running:
            told[node.node] = node.running
            click.echo(f"buildnet: {node.node[:12]} runs {node.running} more", err=True)
    raise NodeDown("the server was started anew while the drain went on; ask again", url=client.url)


@command.command("cordon", epilog="Example: buildnet fleet cordon 8135a906ccdf")
@options.of_server
@options.as_json
@_nodes
def cordon(url: str | None, state: Path | None, instance: str, as_json: bool, nodes: tuple[str, ...]) -> None:
    """Give workers no more work; what they run goes on. Lasts until `uncordon`, over restarts."""
    with options.connected(url, state, instance) as client:
        _told([client.fleet_cordon(client.fleet_find(node).node) for node in nodes], as_json, "is cordoned")


@command.command("uncordon", epilog="Example: buildnet fleet uncordon 8135a906ccdf")
@options.of_server
@options.as_json
@_nodes
def uncordon(url: str | None, state: Path | None, instance: str, as_json: bool, nodes: tuple[str, ...]) -> None:
    """Give cordoned workers work again."""
    with options.connected(url, state, instance) as client:
        told = [client.fleet_cordon(client.fleet_find(node).node, cordoned=False) for node in nodes]
    _told(told, as_json, "is given work")


@command.command("tier", epilog="Example: buildnet fleet tier untrusted 8135a906ccdf")
@options.of_server
@options.as_json
@click.argument("tier", type=click.Choice(["trusted", "untrusted"]))
@_nodes
def tier(url: str | None, state: Path | None, instance: str, as_json: bool, tier: str, nodes: tuple[str, ...]) -> None:
    """Trust workers that joined by a line so far. What an untrusted one makes is for callers in a namespace alone.

    Their sessions end and begin anew; what they run is run anew, where that may be.
    """
    with options.connected(url, state, instance) as client:
        _told([client.fleet_set_tier(client.fleet_find(node).node, tier) for node in nodes], as_json, f"is {tier}")


@command.command("rm", epilog="Example: buildnet fleet rm 8135a906ccdf")
@options.of_server
@options.as_json
@_nodes
def remove(url: str | None, state: Path | None, instance: str, as_json: bool, nodes: tuple[str, ...]) -> None:
    """Close workers' sessions at once: what they run is run elsewhere, and they may not join until `allow`.

    A full id, or the key of a node that joined by a line, may be one that is not known. A node's sessions end with it;
    an access token stays valid: `buildnet token revoke` ends that.
    """
    with options.connected(url, state, instance) as client:
        _told([client.fleet_remove(_id_of(client, node)) for node in nodes], as_json, "is removed")


def _id_of(client: SyncClient, name: str) -> str:
    try:
        return client.fleet_find(name).node
    except NotFound:
        if _ID.fullmatch(name) is None:
            raise
        return name


@command.command("allow", epilog="Example: buildnet fleet allow 8135a906ccdf")
@options.of_server
@options.as_json
@_nodes
def allow(url: str | None, state: Path | None, instance: str, as_json: bool, nodes: tuple[str, ...]) -> None:
    """Let removed workers join again."""
    with options.connected(url, state, instance) as client:
        allowed = [client.fleet_find(node).node for node in nodes]
        for node in allowed:
            client.fleet_allow(node)
    if as_json:
        options.echo_json(allowed)
        return
    for node in allowed:
        click.echo(f"{node} may join")


def _told(nodes: list[NodeInfo], as_json: bool, what: str) -> None:
    if as_json:
        options.echo_json([asdict(node) for node in nodes])
        return
    for node in nodes:
        more = f", {node.running} still run" if node.running and node.state != "removed" else ""
        click.echo(f"{node.node} {what}{more}")


def _note(node: NodeInfo) -> str:
    notes = []
    if node.cordoned and node.state != "cordoned":
        notes.append("cordoned")
    if node.asked_by:
        notes.append(f"by {node.asked_by}")
    if node.clock_skew_s is not None and abs(node.clock_skew_s) > _SKEW_SHOWN_S:
        notes.append(f"clock {node.clock_skew_s:+.1f} s")
    return printable.shown(", ".join(notes))


def _ago(unix_s: float | None, now_unix_s: float) -> str:
    if unix_s is None:
        return "-"
    ago_s = max(0.0, now_unix_s - unix_s)
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if ago_s >= 2 * unit_s:
            return f"{ago_s / unit_s:.0f} {unit} ago"
    return f"{ago_s:.0f} s ago"


def _time(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        # A server may say any number.
        return f"second {unix_s}"
