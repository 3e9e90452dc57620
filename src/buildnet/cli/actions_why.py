"""`buildnet actions why|history|diff`: why something ran, its earlier runs, and in what two actions differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from buildnet.cli import moments, options
from buildnet.cli.printable import shown
from buildnet.errors import NotFound

if TYPE_CHECKING:
    from buildnet.client import PastRun, SyncClient
    from buildnet.model.history import Change

_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}/")
_OUTPUTS_SHOWN = 3


@click.command("why", epilog="Example: buildnet actions why 3f2a9c")
@options.of_server
@options.as_json
@click.argument("name", metavar="ID|DIGEST")
def why(url: str | None, state: Path | None, instance: str, as_json: bool, name: str) -> None:
    """Say why an action ran instead of being answered from the cache.

    The nearest earlier action is named, and what has changed since: the path of an input, an argument, a variable, a
    platform property, an effect. ID is an operation's, the beginning of it, or the word newest; DIGEST is an action's,
    HASH/SIZE.
    """
    with options.connected(url, state, instance) as client:
        answer = client.why(resolved(client, name), instance=instance)
    if as_json:
        facts = asdict(answer) | {"action": _facts(answer.action)}
        options.echo_json(facts | {"relative": _facts(answer.relative) if answer.relative else None})
        return
    click.echo(_headline(answer.action))
    click.echo(shown(f"{answer.reason}: {answer.message}"))
    if answer.relative is not None:
        click.echo(f"relative: {_headline(answer.relative)}")
    _echo_changes(answer.changes, answer.left_out)


@click.command("diff", epilog="Example: buildnet actions diff 3f2a9c 91b0de")
@options.of_server
@options.as_json
@click.argument("before", metavar="ID|DIGEST")
@click.argument("after", metavar="ID|DIGEST")
def diff(url: str | None, state: Path | None, instance: str, as_json: bool, before: str, after: str) -> None:
    """Show in what two actions differ. Exits 1 when they do, as diff does."""
    with options.connected(url, state, instance) as client:
        found = client.diff(resolved(client, before), resolved(client, after))
    if as_json:
        options.echo_json(asdict(found) | {"before": found.before.text, "after": found.after.text})
    elif found.changes:
        _echo_changes(found.changes, found.left_out)
    else:
        click.echo(f"both are the action {found.before.text}")
    raise click.exceptions.Exit(1 if found.changes else 0)


@click.command("history", epilog="Example: buildnet actions history //app:main")
@options.of_server
@click.option("--limit", type=options.COUNT, default=50, show_default=True, help="At most this many.")
@options.as_json
@click.argument("name", metavar="ID|DIGEST|TARGET")
def history(url: str | None, state: Path | None, instance: str, limit: int, as_json: bool, name: str) -> None:
    """List runs of an action, or of a build tool's target: when, where, how long, what came out. Newest first."""
    with options.connected(url, state, instance) as client:
        name = resolved(client, name)
        runs = client.past(name, limit=limit)
        if len(runs) == 1 and runs[0].id.startswith(name):
            # An operation is named to see the others of its action.
            runs = client.past(runs[0].action.text, limit=limit)
    if as_json:
        options.echo_json([_facts(run) for run in runs])
        return
    if not runs:
        click.echo(f"buildnet: no run of {name} is in the history", err=True)
        return
    options.echo_table(
        ["ID", "ENDED (UTC)", "RESULT", "WORKER", "QUEUED", "STAGED", "RAN", "STORED", "ACTION", "OUTPUTS"],
        [
            [
                run.id[:12],
                moments.shown(round(run.completed_at_unix_s * 1000)) if run.completed_at_unix_s else "-",
                _result(run),
                run.worker[:12] or "-",
                *map(_span, (run.queued_s, run.staged_s, run.ran_s, run.uploaded_s)),
                run.action.hash[:12],
                _outputs(run),
            ]
            for run in runs
        ],
    )


def resolved(client: SyncClient, name: str) -> str:
    """The name of an operation or action; `newest` is the operation that began last.

    Raises:
        NotFound: there is none.
    """
    if name != "newest":
        return name
    newest = client.actions(limit=1)
    if not newest:
        raise NotFound("the server knows of no operation yet; run something first", kind="operation", name=name)
    return newest[0].id


def _facts(run: PastRun) -> dict[str, Any]:
    texts = {"action": run.action.text, "command": run.command and run.command.text, "root": run.root and run.root.text}
    return asdict(run) | texts


def _headline(run: PastRun) -> str:
    words = " ".join(run.arguments)
    words = words if len(words) <= 100 else words[:100] + "…"
    about = " ".join(filter(None, (run.target, run.mnemonic)))
    name = run.id[:12] or f"action {run.action.hash[:12]}"
    return shown(" ".join(filter(None, (name, _result(run), words, f"({about})" if about else ""))))


def _result(run: PastRun) -> str:
    if run.completed_at_unix_s is None:
        return run.state
    if run.error_code:
        return run.error_code
    return f"exit {run.exit_code}" + (", cached" if run.cached else "")


def _span(span_s: float | None) -> str:
    return "-" if span_s is None else f"{span_s:.3f} s"


def _outputs(run: PastRun) -> str:
    listed = [f"{fact.path} {short(fact.text)}" for fact in run.outputs[:_OUTPUTS_SHOWN]]
    more = run.output_count - len(listed)
    return ", ".join([*listed, *([f"{more} more"] if more > 0 else [])]) or "-"


def short(text: str) -> str:
    """A text whose digests are cut to what a person compares."""
    return _DIGEST.sub(r"\1…/", text)


def _echo_changes(changes: Sequence[Change], left_out: int) -> None:
    if changes:
        options.echo_table(
            ["CHANGED", "NAME", "BEFORE", "AFTER"],
            [
                [
                    change.part.replace("_", " "),
                    change.name or "-",
                    short(change.before) if change.before is not None else "-",
                    (short(change.after) if change.after is not None else "-")
                    + (f"  ({change.note})" if change.note else ""),
                ]
                for change in changes
            ],
        )
    if left_out:
        click.echo(f"and {left_out} more", err=True)
