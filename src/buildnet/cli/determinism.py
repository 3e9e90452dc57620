"""`buildnet run --twice`: the same action several times, each run apart, and the outputs that differ by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from buildnet.cli import options
from buildnet.cli.actions_why import short
from buildnet.cli.printable import shown
from buildnet.errors import InvalidRequest, NoCapableWorker

if TYPE_CHECKING:
    from buildnet.client import RunResult, SyncClient
    from buildnet.client.compare import DifferingOutput
    from buildnet.model.digest import Digest

# A code of its own (docs/reference/errors.md), below those that shells and `timeout` give a meaning to.
DIFFERENT = 123
TIMES_MAX = 1000


def check(
    client: SyncClient,
    action: Digest,
    times: int,
    *,
    on_distinct: bool,
    as_json: bool,
    keep: Callable[[RunResult], None],
) -> int:
    """Run an action so often, say in what the runs differ, and return the exit code.

    Args:
        client: of the server that has the action.
        action: its digest.
        times: how often, 2 to 1,000.
        on_distinct: each run on a worker of its own.
        as_json: print JSON.
        keep: takes the first result when all are the same.

    Raises:
        InvalidRequest: `times` is out of range.
        NoCapableWorker: there are fewer workers than runs.
    """
    from buildnet.client.compare import differing_outputs

    if not 2 <= times <= TIMES_MAX:
        raise InvalidRequest(f"--times is from 2 to {TIMES_MAX}, not {times}", field="times")
    runs = _on_distinct(client, action, times) if on_distinct else (client.rerun(action) for _ in range(times))
    results: list[RunResult] = []
    for result in runs:
        results.append(result)
        if sys.stderr.isatty() and not as_json:
            click.echo(f"buildnet: run {len(results)} of {times} on {result.worker[:12]}", err=True)
    differing = differing_outputs(results, client.read)
    if as_json:
        options.echo_json(_facts(action, results, differing))
    else:
        _say(results, differing)
    if differing:
        return DIFFERENT
    keep(results[0])
    return results[0].exit_code


def _on_distinct(client: SyncClient, action: Digest, times: int) -> Iterator[RunResult]:
    nodes = [node.node for node in client.fleet_nodes() if node.state == "active"]
    if len(nodes) < times:
        raise NoCapableWorker(
            f"{times} runs on workers of their own need as many workers, and {len(nodes)} take work; "
            "join more, or ask for fewer runs"
        )
    done = 0
    for place, node in enumerate(nodes):
        try:
            yield client.rerun(action, worker=node)
        except NoCapableWorker:
            # Another one may offer what this one does not.
            if len(nodes) - place - 1 < times - done:
                raise
        else:
            done += 1
        if done == times:
            return


def _say(results: Sequence[RunResult], differing: Sequence[DifferingOutput]) -> None:
    if not differing:
        count = len(results[0].outputs)
        left = "1 output" if count == 1 else f"{count} outputs"
        click.echo(f"buildnet: {len(results)} runs, all the same: {left}, exit code {results[0].exit_code}", err=True)
        return
    click.echo(f"buildnet: {len(results)} runs differ; not the same in all:", err=True)
    for row in differing:
        click.echo(shown(row.path))
        groups: dict[str | None, list[int]] = {}
        for number, seen in enumerate(row.seen, 1):
            groups.setdefault(seen, []).append(number)
        for seen, numbers in groups.items():
            where = ", ".join(f"{number} ({results[number - 1].worker[:12]})" for number in numbers[:8])
            more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
            click.echo(f"    run {where}{more}: {shown(short(seen or 'nothing'))}")


def _facts(action: Digest, results: Sequence[RunResult], differing: Sequence[DifferingOutput]) -> dict[str, object]:
    return {
        "action": action.text,
        "same": not differing,
        "runs": [
            {"worker": result.worker, "exit_code": result.exit_code, "execution_s": result.execution_s}
            for result in results
        ],
        "differing": [{"path": row.path, "seen": list(row.seen)} for row in differing],
    }
