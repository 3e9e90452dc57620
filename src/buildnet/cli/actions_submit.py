"""`buildnet actions submit FILE.json` and `buildnet actions watch`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from buildnet.cli import options
from buildnet.cli.failures import FAILED_CHECK

if TYPE_CHECKING:
    from buildnet.client import ActionFilter, ActionInfo, GraphOutcome, SyncClient
    from buildnet.client.spec_file import Draft
    from buildnet.model.action_spec import ActionSpec

# Of operations, those that changed last: more than a server keeps that have ended.
_KNOWN_MAX: Final = 50_000


def facts(info: ActionInfo) -> dict[str, object]:
    """One operation for scripts."""
    from dataclasses import asdict

    return {**asdict(info), "action": info.action and info.action.text}


@click.command("submit", epilog="Example: buildnet actions submit graph.json --client-id nightly-42")
@options.of_server
@click.option("--client-id", default="", help="Makes repeating this command one submission.")
@click.option("--no-wait", is_flag=True, help="Print the ids and do not wait.")
@click.option("--skip-cache", is_flag=True, help="Run it all even if there are results.")
@options.as_json
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
def submit(
    url: str | None,
    state: Path | None,
    instance: str,
    client_id: str,
    no_wait: bool,
    skip_cache: bool,
    as_json: bool,
    file: Path,
) -> None:
    """Submit the action or the graph of actions in FILE, with the local inputs that it names.

    Waits until all have ended and exits with 1 if one did not end well. Ctrl-C cancels what is left.
    """
    from buildnet.client.spec_file import read

    drafts = read(file)
    with options.connected(url, state, instance) as client:
        specs = {name or "action": _uploaded(client, draft) for name, draft in drafts.items()}
        if no_wait:
            graph = client.start_graph(specs, client_id=client_id, skip_cache=skip_cache)
            if as_json:
                options.echo_json({"graph": graph.id, "actions": dict(graph.ids)})
                return
            click.echo(f"graph {graph.id}")
            options.echo_table(["NAME", "ID"], [[name, id_] for name, id_ in graph.ids.items()])
            return
        outcome = _followed(client, specs, client_id, skip_cache)
    _tell(outcome, as_json)
    if outcome.failed:
        raise click.exceptions.Exit(FAILED_CHECK)


def _uploaded(client: SyncClient, draft: Draft) -> ActionSpec:
    tree = client.upload_tree({path: str(local) for path, local in draft.local.items()}) if draft.local else None
    return draft.spec(tree)


def _followed(client: SyncClient, specs: dict[str, ActionSpec], client_id: str, skip_cache: bool) -> GraphOutcome:
    states: dict[str, str] = {}
    shown = sys.stderr.isatty()

    def changed(info: ActionInfo) -> None:
        states[info.id] = info.state
        if shown:
            counts = ", ".join(f"{count} {state}" for state, count in sorted(Counter(states.values()).items()))
            click.echo(f"\r\x1b[Kbuildnet: {counts}", err=True, nl=False)

    try:
        return client.submit_graph(specs, client_id=client_id, skip_cache=skip_cache, on_change=changed)
    finally:
        if shown:
            click.echo("\r\x1b[K", err=True, nl=False)


def _tell(outcome: GraphOutcome, as_json: bool) -> None:
    if as_json:
        options.echo_json(
            {
                "graph": outcome.id,
                "failed": outcome.failed,
                "actions": {name: facts(info) for name, info in outcome.actions.items()},
            }
        )
        return
    rows = [
        [
            name,
            info.state,
            str(info.exit_code) if info.state == "completed" else info.error_code,
            "cache" if info.cached else info.worker[:12] or "-",
            info.id[:12],
        ]
        for name, info in outcome.actions.items()
    ]
    options.echo_table(["NAME", "STATE", "EXIT", "WHERE", "ID"], rows)
    for name in outcome.failed[:10]:
        if message := outcome.actions[name].message:
            click.echo(f"buildnet: {name}: {message}", err=True)


@click.command("watch", epilog="Example: buildnet actions watch --in executing")
@options.of_server
@options.of_actions
@click.option("--once", is_flag=True, help="Tell what is now, and end.")
@options.as_json
def watch(url: str | None, state: Path | None, instance: str, only: ActionFilter, once: bool, as_json: bool) -> None:
    """Tell operations as they are, then each one that changes, until Ctrl-C."""
    # After a break all are told again: of those that are as they were nothing is said.
    known: dict[str, tuple[str, ...]] = {}
    with options.connected(url, state, instance) as client:
        for info in client.watch(only, on_break=options.broke):
            if info is None:
                if once:
                    return
                continue
            now = info.state, info.worker, info.error_code
            is_news = known.pop(info.id, None) != now
            known[info.id] = now
            if len(known) > _KNOWN_MAX:
                del known[next(iter(known))]
            if not is_news:
                continue
            if as_json:
                click.echo(json.dumps(facts(info)))
            else:
                what = info.graph_name or " ".join(info.arguments)[:60]
                end = f" {info.exit_code}" if info.state == "completed" else f" {info.error_code}".rstrip()
                options.echo_line(f"{info.id[:12]}  {info.state}{end}  {info.worker[:12] or '-'}  {what}")
            sys.stdout.flush()
