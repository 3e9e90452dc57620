"""`buildnet actions ls|show|logs|cancel`; submit, watch, why, history, diff, rerun and repro are in files beside it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from buildnet.cli import moments, options, printable, told_effects
from buildnet.cli.actions_again import repro, rerun
from buildnet.cli.actions_submit import facts, submit, watch
from buildnet.cli.actions_why import diff, history, resolved, why
from buildnet.cli.log_printer import LogPrinter
from buildnet.errors import InvalidRequest

if TYPE_CHECKING:
    from buildnet.client import ActionFilter


@click.group("actions", epilog="Example: buildnet actions ls")
def command() -> None:
    """What runs, what ran, what it printed, and why it ran."""


for _other in (why, history, diff, rerun, repro):
    command.add_command(_other)


command.add_command(submit)
command.add_command(watch)


@command.command("ls", epilog="Example: buildnet actions ls --limit 20")
@options.of_server
@options.of_actions
@click.option("--limit", type=options.COUNT, default=50, show_default=True, help="At most this many.")
@options.as_json
def ls(url: str | None, state: Path | None, instance: str, only: ActionFilter, limit: int, as_json: bool) -> None:
    """List operations, newest first; cached answers of the door are not operations."""
    with options.connected(url, state, instance) as client:
        actions = client.actions(limit=limit, only=only)
    if as_json:
        options.echo_json([facts(info) for info in actions])
        return
    now = time.time()  # noqa: TID251 - shown to a person, decides nothing
    options.echo_table(
        ["ID", "STATE", "EXIT", "WORKER", "TOOK", "AGE", "COMMAND"],
        [
            [
                info.id[:12],
                info.state,
                str(info.exit_code) if info.state == "completed" else info.error_code or "-",
                info.worker[:12] or "-",
                f"{info.completed_at_unix_s - info.submitted_at_unix_s:.2f} s" if info.completed_at_unix_s else "-",
                f"{now - info.submitted_at_unix_s:.0f} s",
                " ".join(info.arguments)[:60],
            ]
            for info in actions
        ],
    )


@command.command("show", epilog="Example: buildnet actions show 3f2a9c")
@options.of_server
@options.as_json
@click.argument("operation", metavar="ID")
def show(url: str | None, state: Path | None, instance: str, as_json: bool, operation: str) -> None:
    """Show one operation by its id, the beginning of it or the word newest: where it stands, and what it could do."""
    with options.connected(url, state, instance) as client:
        info = client.action(resolved(client, operation))
        told = client.effects(info.id) if info.state in ("completed", "failed") else None
    if as_json:
        options.echo_json({**facts(info), "effects": told_effects.facts(told)})
        return
    for name, value in facts(info).items():
        if name == "exit_code" and info.state != "completed":
            continue
        if name.endswith("_unix_s") and isinstance(value, float):
            click.echo(f"{name.removesuffix('_unix_s'):20} {moments.shown(round(value * 1000))} UTC")
        elif value not in ("", None) and value is not False:
            shown = " ".join(value) if isinstance(value, tuple) else str(value)
            click.echo(f"{name:20} {printable.shown(shown)}")
    for name, shown in told_effects.lines(told) if told is not None else ():
        click.echo(f"{name:20} {printable.shown(shown)}")


@command.command("logs", epilog="Example: buildnet actions logs -f 3f2a9c")
@options.of_server
@click.option("-f", "--follow", is_flag=True, help="Stay until the action ends.")
@click.option("--stdout", "streams", flag_value="1", help="Only what it prints to stdout.")
@click.option("--stderr", "streams", flag_value="2", help="Only what it prints to stderr.")
@click.option("--since-offset", "since", default="0", metavar="BYTES[:BYTES]", help="Skip so much of stdout[:stderr].")
@click.option("--timestamps", is_flag=True, help="Say before each line when it was printed, in UTC.")
@options.as_json
@click.argument("operation", metavar="ID")
def logs(
    url: str | None,
    state: Path | None,
    instance: str,
    follow: bool,
    streams: str | None,
    since: str,
    timestamps: bool,
    as_json: bool,
    operation: str,
) -> None:
    """Print what an action prints or printed: stdout to stdout, stderr to stderr, in the order in which it came.

    ID is an operation's, the beginning of it, or the word newest.
    """
    offsets = _offsets(since)
    printer = LogPrinter(timestamps=timestamps)
    with options.connected(url, state, instance) as client:
        info = client.action(resolved(client, operation))
        chosen = [int(streams)] if streams else ()
        for piece in client.logs(info.id, follow=follow, streams=chosen, offsets=offsets, on_break=printer.broke):
            if as_json:
                options.echo_json(
                    {
                        "stream": piece.stream,
                        "offset": piece.offset,
                        "text": piece.data.decode(errors="replace"),
                        "gap": piece.gap,
                        "printed_at_unix_s": piece.printed_at_unix_s,
                        "fence": piece.fence,
                    }
                )
            else:
                printer.show(piece)


def _offsets(text: str) -> tuple[int, int]:
    stdout, _, stderr = text.partition(":")
    if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in (stdout, stderr or "0")):
        raise InvalidRequest(
            f"{text!r} is no offset; write bytes of stdout, and of stderr after a colon: --since-offset 4096:0",
            field="--since-offset",
        )
    return int(stdout), int(stderr or "0")


@command.command("cancel", epilog="Example: buildnet actions cancel 3f2a9c")
@options.of_server
@click.option("--graph", help="All that is left of this graph.")
@click.option("--invocation", help="All that this invocation of a build tool asked for.")
@click.argument("operation", metavar="ID", required=False)
def cancel(
    url: str | None,
    state: Path | None,
    instance: str,
    graph: str | None,
    invocation: str | None,
    operation: str | None,
) -> None:
    """Stop one operation, by its id or the beginning of it, a graph, or an invocation."""
    if sum(1 for given in (operation, graph, invocation) if given) != 1:
        raise click.UsageError("give an ID, --graph or --invocation, and one of them")
    with options.connected(url, state, instance) as client:
        if operation:
            client.cancel(client.action(operation).id)
            return
        count = client.cancel_graph(graph) if graph else client.cancel_invocation(str(invocation))
    click.echo(f"{count} operations were stopped")
